"""Killed at any moment a task is there whole or not at all; several processes may write at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from registry_folders import die_at_each, kill_at_random, make_adapter, register_many, tree
from registry_stores import KINDS, HashEncoder, open_at
from registry_storm import allowed_states, state_of, storm

from adapterhub.adapter import content_hash
from adapterhub.registry import Registry
from adapterhub.task import Task

# One warm process forks all others: each of them would need seconds to import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["adapterhub.adapter", "adapterhub.registry"])


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing there either, and fsync costs nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def assert_whole(registry: Registry, name: str) -> None:
    folder = registry.adapter_path(name)
    assert folder is not None
    assert content_hash(folder) == registry[name].sha256


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob(".catalog/staging-*"), *root.rglob(".task.yaml.*"), *root.rglob(".retired.yaml.*")]


def do(target: Callable[..., None], *arguments: object) -> None:
    worker = CONTEXT.Process(target=target, args=arguments)
    worker.start()
    worker.join()
    assert worker.exitcode == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments_while_registering(memory_path: Path, kind: str, rounds: int) -> None:
    adapter = make_adapter(memory_path / "adapter", size=200_000)
    root, acknowledged = memory_path / "registry", memory_path / "acknowledged"
    acknowledged.touch()
    registry = open_at(kind, root)
    do(kill_at_random, registry.place, str(adapter), str(acknowledged), rounds)
    assert registry.verify() == []
    assert leftovers(root) == []
    names = acknowledged.read_text().split()
    assert len(names) >= rounds
    assert set(names) <= set(registry)
    for name in registry:
        assert_whole(registry, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("processes", "kills"), [(3, 8), pytest.param(4, 300, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_nothing_is_lost_in_a_storm(memory_path: Path, kind: str, processes: int, kills: int) -> None:
    adapter = make_adapter(memory_path / "adapter", size=50_000)
    do(storm, kind, str(memory_path), str(adapter), processes, kills, 1)
    assert [path.read_text() for path in memory_path.glob("fault*")] == []
    registry = open_at(kind, memory_path / "registry")
    assert registry.verify() == []
    assert leftovers(memory_path) == []
    for number in range(processes):
        for name, allowed in allowed_states(memory_path / f"log{number}").items():
            assert state_of(registry, name) in allowed
    for task in registry.tasks():
        if task.adapter is not None:
            assert_whole(registry, task.name)
    encoder = HashEncoder()
    for found in registry.vectors(encoder):
        wanted = [encoder.stored(text) for text in registry[found.name].examples]
        assert np.array_equal(found.examples, np.reshape(wanted, (len(wanted), 8)))
    again = {
        id: total
        for block in registry.catalog.blocks("fake")
        for id, total in zip(block.ids, block.totals, strict=True)
    }
    assert {found.id: found.total.tobytes() for found in registry.vectors(encoder) if found.id in again} == {
        int(id): total.tobytes() for id, total in again.items()
    }
    assert registry.verify() == []


CHANGES = {
    "add": ("new/one/task", None, "New."),
    "replace": ("old/task", "Old.", "Another."),
    "remove": ("old/task", "Old.", None),
    "retire": ("old/task", "Old.", None),
    "import": ("old/task", "Old.", "Imported."),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("action", "step"),
    [("replace", 7), ("import", 11)] + [pytest.param(action, 1, marks=pytest.mark.slow) for action in CHANGES],
)
def test_killed_before_a_file_operation(memory_path: Path, kind: str, action: str, step: int) -> None:
    first, second = (make_adapter(memory_path / name, name) for name in ("first", "second"))
    line = {"name": "old/task", "description": "Imported.", "adapter": "v2", "examples": ["e"]}
    (memory_path / "tasks.jsonl").write_text(json.dumps(line) + "\n")
    shutil.copytree(second, memory_path / "tasks.adapters/old/task/v2")
    template = memory_path / "template"
    registry = open_at(kind, template)
    registry.add(Task("old/task", "Old."), first)
    registry.add(Task("old/task/below", "Below."), first)
    if kind == "sqlite":
        registry.store.catalog.close()
    untouched = {path: data for path, data in tree(template).items() if "below" in path}
    folder = memory_path / "copies"
    folder.mkdir()
    do(die_at_each, kind, str(template), str(folder), str(second), action, step)
    name, before, after = CHANGES[action]
    seen = [check_after_death(kind, root, name, untouched, action) for root in sorted(folder.iterdir())]
    cut = seen.index(after)
    assert cut > (2 if step == 1 else 0)
    assert seen == [before] * cut + [after] * (len(seen) - cut)


def check_after_death(kind: str, root: Path, name: str, untouched: dict[str, bytes], action: str) -> str | None:
    """What is left of one task: its description if it is there, and then whole; all else must be as it was."""
    registry = open_at(kind, root)
    assert registry.verify() == []
    assert leftovers(root) == []
    state = tree(root)
    assert untouched.items() <= state.items()
    assert sorted(registry) == sorted(({"old/task", "old/task/below"} - {name}) | ({name} & set(registry)))
    if name in registry:
        assert_whole(registry, name)
        assert registry.versions(name) == [f"v{n}" for n in range(1, 1 + int(str(registry[name].adapter)[1:]))]
        return registry[name].description
    if action == "retire":
        registry.restore(name)
        assert_whole(registry, name)
        return None
    assert not [path for path in state if f"{name}/" in path and "below" not in path]
    assert not (registry.store.home("new")).exists()
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_register_ten_tasks_each_at_once(memory_path: Path, kind: str) -> None:
    tmp_path = memory_path
    adapter = make_adapter(tmp_path / "adapter")
    registry = open_at(kind, tmp_path / "registry")
    workers = [
        CONTEXT.Process(
            target=register_many, args=(registry.place, str(adapter), f"group/p{n}", 10, str(tmp_path / f"ack{n}"))
        )
        for n in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert registry.verify() == []
    assert sorted(registry) == sorted(f"group/p{n}/t{k}" for n in range(2) for k in range(10))
    for name in registry:
        assert_whole(registry, name)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_replace_one_task_and_every_version_is_kept(tmp_path: Path, kind: str) -> None:
    adapters = [make_adapter(tmp_path / f"adapter{n}", str(n)) for n in range(4)]
    registry = open_at(kind, tmp_path / "registry")
    faults: list[Exception] = []

    def write(adapter: Path) -> None:
        try:
            registry.add(Task("a", "x"), adapter, replace=True)
            registry.refresh()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(adapter,)) for adapter in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert registry.versions("a") == ["v1", "v2", "v3", "v4"]
    hashes = {content_hash(registry.store.home("a") / version) for version in registry.versions("a")}
    assert hashes == {content_hash(adapter) for adapter in adapters}
    assert registry.verify() == []
