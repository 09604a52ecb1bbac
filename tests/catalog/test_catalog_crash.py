"""Writers killed at any moment: what was acknowledged is there, nothing by half, and commits keep their order."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from catalog_contract import heard, narrow, same
from catalog_workers import ENCODER, kill_at_random

from adapterhub.catalog import SqliteCatalog, TaskRecord

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
# One warm process forks all others: each of them would need seconds to import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["adapterhub.catalog", "catalog_workers"])


class Change(NamedTuple):
    """A line of a worker's log."""

    kind: str
    action: str
    names: list[str]
    number: int
    seq: int


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def lives_of(folder: Path, worker: int) -> list[list[Change]]:
    found = []
    for log in sorted(folder.glob(f"log-{worker}-*")):
        lines = log.read_text().splitlines(keepends=True)
        found.append([Change(*json.loads(line)) for line in lines if line.endswith("\n")])
    return found


def history(folder: Path, worker: int, commits: int) -> tuple[list[Change], list[Change]]:
    """Changes that a worker knows to be done, in order, and those that may be: cut off before the answer came."""
    done, open_ = [], []
    for life in lives_of(folder, worker):
        for asked, answer in zip(life[::2], life[1::2], strict=False):
            assert (asked.kind, answer.kind, asked.number) == ("asked", "done", answer.number)
            assert 0 < answer.seq <= commits
            done.append(answer)
        if len(life) % 2:
            open_.append(life[-1])
            done.append(life[-1])  # in its place in the order; whether it happened the tables must tell
    return done, open_


def check(folder: Path, processes: int) -> int:
    catalog = SqliteCatalog(folder / "catalog.sqlite")
    assert catalog.verify() == []
    commits = catalog.seq
    known = {record.name: record for record in catalog.changes(0).records}
    acknowledged: list[int] = []
    for worker in range(processes):
        done, _ = history(folder, worker, commits)
        acknowledged += [change.seq for change in done if change.kind == "done"]
        seqs = [change.seq for change in done if change.kind == "done"]
        assert seqs == sorted(seqs)
        mine = {name: record for name, record in known.items() if name.startswith(f"w{worker}/")}
        assert_one_of(possible(done), mine, catalog)
    assert len(set(acknowledged)) == len(acknowledged)
    assert commits <= len(acknowledged) + sum(len(history(folder, worker, commits)[1]) for worker in range(processes))
    catalog.close()
    return len(acknowledged)


class Told(NamedTuple):
    """What a log says of one task: the change that wrote its row, its state, and the change that gave its vectors."""

    row: int | None
    status: str = "active"
    vectors: int | None = None


def possible(done: list[Change]) -> dict[str, set[Told]]:
    """Every state that each task may be in: a change without an answer may or may not have happened."""
    states: dict[str, set[Told]] = {}
    for change in done:
        for name in change.names:
            before = states.get(name, {Told(None)})
            after = {moved(state, change) for state in before}
            states[name] = after if change.kind == "done" else before | after
    return states


def moved(state: Told, change: Change) -> Told:
    if change.action == "delete" or (state.row is None and change.action in ("retire", "put_vectors")):
        return Told(None)
    if change.action == "retire":
        return state._replace(status="retired")
    if change.action == "put_vectors":
        return state._replace(vectors=change.number)
    return Told(change.number, "active", change.number if change.action == "put" else None)


def assert_one_of(states: dict[str, set[Told]], known: dict[str, TaskRecord], catalog: SqliteCatalog) -> None:
    assert set(known) <= set(states)
    found = {item.name: item for item in catalog.vectors(ENCODER)}
    for name, allowed in states.items():
        record = known.get(name)
        if record is None:
            assert Told(None) in allowed, name
            continue
        number = int(record.source)
        assert (record.version, record.content_hash, record.tags) == (f"v{number}", f"c{number}", (f"t{number}",))
        assert catalog.versions(name)[-1].version == record.version
        matching = [one for one in allowed if (one.row, one.status) == (number, record.status)]
        assert matching, (name, record, allowed)
        if record.status == "active":
            fitting = [
                one
                for one in matching
                if (name in found) == (one.vectors is not None)
                and (one.vectors is None or same(found[name], heard(name, 2, True, f"c{number}", one.vectors)))
            ]
            assert fitting, (name, matching)
    blocks = {int(key): at for block in catalog.blocks(ENCODER) for at, key in enumerate(block.ids)}
    assert sorted(blocks) == sorted(item.id for item in found.values())
    assert all(narrow(item)[0] == 2 for item in found.values())


def run(folder: Path, kills: int) -> int:
    worker = CONTEXT.Process(target=kill_at_random, args=(str(folder), 4, kills))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    return check(folder, 4)


def test_killed_at_a_few_moments(folder: Path) -> None:
    assert run(folder, 12) > 12


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [300])
def test_killed_at_many_moments(tmp_path: Path, kills: int) -> None:
    assert run(tmp_path, kills) > kills


def test_the_tables_agree_with_sqlite_itself(folder: Path) -> None:
    run(folder, 2)
    connection = sqlite3.connect(folder / "catalog.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
