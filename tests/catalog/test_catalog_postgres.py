"""What is PostgreSQL's own: migrations, several processes, servers that come and go, replicas, rights."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import pytest
from catalog_postgres import PASSWORD, PrivateServer, postgres_url, private_server, schema, why_not
from psycopg import sql

from adapterhub.catalog import Catalog, Scope, TaskRecord, TaskVectors
from adapterhub.catalog import _postgres_pool as pool
from adapterhub.catalog import _postgres_schema as migrations
from adapterhub.catalog import _postgres_vectors as reading
from adapterhub.catalog._postgres import PostgresCatalog
from adapterhub.catalog._postgres_url import Address
from adapterhub.errors import InputError, IntegrityError, TaskNotFoundError

WIDTH = 6


def record(name: str, version: str | None = "v1", content: str = "c", **fields: object) -> TaskRecord:
    return dataclasses.replace(TaskRecord(name, version, "0" * 64, '{"description":"x"}', content), **fields)


def heard(name: str, count: int, seed: int = 0, content: str = "c") -> TaskVectors:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count + 1, WIDTH)).astype(np.float32)
    return TaskVectors.of(name, rows[0] if seed % 3 else None, rows[1:], content)


@pytest.fixture(scope="session")
def server_url() -> str:
    url = postgres_url()
    if url is None:
        pytest.skip(why_not())
    return url


@pytest.fixture(scope="session")
def server() -> PrivateServer:
    found = private_server()
    if found is None:
        pytest.skip(why_not())
    return found


@pytest.fixture
def url(server_url: str) -> Iterator[str]:
    with schema(server_url) as found:
        yield found


@contextmanager
def opened(url: str, **options: object) -> Iterator[PostgresCatalog]:
    catalog = PostgresCatalog(url, **options)
    try:
        yield catalog
    finally:
        catalog.close()


@pytest.fixture
def catalog(url: str) -> Iterator[PostgresCatalog]:
    with opened(url) as found:
        yield found


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Statements in the schema of a URL, past the catalogue; the rows of the last one."""
    head, _, name = url.partition("?schema=")
    with psycopg.connect(head, autocommit=True) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(name or "public")))
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


# The schema


def test_an_empty_database_is_migrated_at_the_first_use(url: str) -> None:
    with opened(url) as catalog:
        typed: Catalog = catalog
        assert (typed.seq, typed.names(), typed.encoder) == (0, [], None)
    assert execute(url, "SELECT format FROM catalog") == [(migrations.FORMAT,)]
    with opened(url) as catalog:
        assert catalog.put([record("a")]) == 1
    with opened(url) as catalog:
        assert (catalog.seq, catalog.names()) == (1, ["a"])


def test_openers_at_once_make_the_tables_once(url: str) -> None:
    barrier, seen, failed = threading.Barrier(6), [], []

    def work(number: int) -> None:
        barrier.wait()
        try:
            with opened(url) as catalog:
                seen.append(catalog.put([record(f"t{number}")]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("format", range(1, migrations.FORMAT))
def test_older_tables_are_brought_up_to_date_and_keep_their_rows(url: str, format: int) -> None:
    name = url.partition("?schema=")[2]
    row = """INSERT INTO task (id, name, version, sha256, card, content_hash, source, base_model, tags, seq, status)
        VALUES (1, 'a/b', 'v1', NULL, '{}', 'c', '', 'base', '{x,y}', 1, 'active')"""
    old = "UPDATE catalog SET seq = 1, last_id = 1, format = "
    version = "INSERT INTO version VALUES (1, 'v1', NULL, 1)"
    execute(url, f"CREATE SCHEMA {name}", *migrations.MIGRATIONS[:format], row, version, f"{old} {format}")
    with opened(url) as catalog:
        expected = TaskRecord("a/b", "v1", None, "{}", "c", "", "base", ("x", "y"), 1, "active", 1)
        assert catalog.records() == [expected]
        assert catalog.put_vectors("e", [heard("a/b", 2)]) == 2
        assert len(catalog.vectors("e")) == 1
        assert catalog.verify() == []
    assert execute(url, "SELECT format FROM catalog") == [(migrations.FORMAT,)]


def test_a_migration_that_fails_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(url) as catalog:
        catalog.put([record("a")])
    broken = (*migrations.MIGRATIONS, "CREATE TABLE extra (x integer); SELECT 1 / 0")
    with monkeypatch.context() as patch, opened(url) as catalog:
        patch.setattr(migrations, "MIGRATIONS", broken)
        patch.setattr(migrations, "FORMAT", len(broken))
        with pytest.raises((IntegrityError, InputError), match=r"division by zero"):
            catalog.names()
    assert execute(url, "SELECT to_regclass('extra')") == [(None,)]
    with opened(url) as catalog:
        assert catalog.names() == ["a"]


def test_newer_tables_are_refused(url: str) -> None:
    with opened(url) as early:
        early.put([record("a")])
        execute(url, "UPDATE catalog SET format = 99")
        with opened(url) as catalog, pytest.raises(IntegrityError, match=r"Found 99. Upgrade adapterhub"):
            catalog.names()
        with pytest.raises(IntegrityError, match=r"Found 99"):
            early.put([record("b")])
    assert execute(url, "SELECT seq FROM catalog") == [(1,)]


def test_tables_of_something_else_are_left_alone(url: str) -> None:
    name = url.partition("?schema=")[2]
    execute(url, f"CREATE SCHEMA {name}", "CREATE TABLE task (theirs integer)")
    with opened(url) as catalog, pytest.raises(IntegrityError, match=r"schema of its own"):
        catalog.names()
    assert execute(url, "SELECT to_regclass('catalog')") == [(None,)]


def test_dropped_tables_are_told_and_made_again(url: str, catalog: PostgresCatalog) -> None:
    catalog.put([record("a")])
    execute(url, f"DROP SCHEMA {url.partition('?schema=')[2]} CASCADE")
    with pytest.raises(IntegrityError, match=r"Open it again"):
        catalog.names()
    assert catalog.names() == []


def test_two_schemas_are_apart(server_url: str) -> None:
    with schema(server_url) as one, schema(server_url) as two, opened(one) as first, opened(two) as second:
        first.put([record("a"), record("b")])
        assert (second.names(), second.seq) == ([], 0)
        second.put([record("c")])
        assert (first.names(), second.names()) == (["a", "b"], ["c"])
        name = one.partition("?schema=")[2]
        with opened(f"{server_url}?options=-c%20search_path%3D{name}") as third:
            assert third.names() == ["a", "b"]


def test_no_schema_at_all_is_told(server_url: str) -> None:
    refused(f"{server_url}?options=-c%20search_path%3Dnowhere", "names no schema that is there")


# Values


TEXTS = [
    "",
    "plain",
    "tab\tand\nline",
    "back\\slash \\N \\.",
    "quote \" and '",
    "ünï ✓ 𝛼",
    "{a,b}",
    "NULL",
    "%s %% %(x)s",
]


def test_many_rows_and_few_rows_are_stored_alike(server_url: str) -> None:
    rows = [
        record(
            f"t/{number:03}", None if number % 7 == 0 else f"v{number}", card=text, source=text, base_model=text,
            tags=() if number % 3 == 0 else (text or "x", "NULL", "a,b"), sha256=None if number % 5 == 0 else text,
        )
        for number, text in enumerate(TEXTS * 20)
    ]  # fmt: skip
    vectors = [heard(row.name, number % 4, number) for number, row in enumerate(rows)]
    with schema(server_url) as one, schema(server_url) as two, opened(one) as bulk, opened(two) as single:
        bulk.put(rows, encoder="e", vectors=vectors)
        for row, item in zip(rows, vectors, strict=True):
            single.put([row], encoder="e", vectors=[item])
        stored = bulk.records()
        assert [dataclasses.replace(row, seq=0, id=0) for row in stored] == rows
        assert [dataclasses.replace(row, seq=0) for row in single.records()] == [
            dataclasses.replace(row, seq=0) for row in stored
        ]
        for left, right, given in zip(bulk.vectors("e"), single.vectors("e"), vectors, strict=True):
            for field in ("total", "description", "examples"):
                assert np.array_equal(getattr(left, field), getattr(right, field))
                assert np.array_equal(getattr(left, field), getattr(given, field))
        assert bulk.verify() == single.verify() == []
        bulk.put([record(row.name, content="new") for row in rows])
        assert bulk.vectors("e") == []
        assert [row.id for row in bulk.records()] == [row.id for row in stored]
        assert bulk.verify() == []


def test_names_sort_by_their_bytes_in_any_locale(catalog: PostgresCatalog) -> None:
    names = ["a", "a-b", "a-b/c", "a/b", "a/b-c", "a/b/c", "a0", "ab", "b", "b/a"]
    catalog.put([record(name) for name in names])
    assert catalog.names() == sorted(names)
    for under in ("a", "a/b", "b", "none"):
        below = [name for name in sorted(names) if name == under or name.startswith(under + "/")]
        assert catalog.names(under) == below
        assert catalog.count(under) == len(below)
        assert catalog.names_of(catalog.ids(Scope(under=under))) == sorted(below, key=names.index)
    assert catalog.children("a") == [("a/b", 2), ("a/b-c", 1)]


@pytest.mark.parametrize("size", [1, 4, 5, 11, 65536])
def test_blocks_are_the_vectors_bit_for_bit(
    catalog: PostgresCatalog, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(reading, "_PIECE", 3)
    names = [f"t{number:02}" for number in range(11)]
    given = [heard(name, number % 4, number) for number, name in enumerate(names)]
    catalog.put([record(name) for name in names], encoder="e", vectors=given)
    found = list(catalog.blocks("e", size=size))
    assert [len(block) for block in found] == [min(size, 11 - start) for start in range(0, 11, size)]
    alone = {item.id: item for item in catalog.vectors("e")}
    keys = np.concatenate([block.ids for block in found])
    assert keys.tolist() == sorted(alone)
    for block in found:
        for row, key in enumerate(block.ids):
            item = alone[int(key)]
            assert block.counts[row] == item.count
            assert np.array_equal(block.totals[row], item.total)
            assert block.described[row] == (item.description is not None)
            expected = np.zeros(WIDTH) if item.description is None else item.description
            assert np.array_equal(block.descriptions[row], expected)
    some = keys[[1, 4, 9]]
    assert np.concatenate([block.ids for block in catalog.blocks("e", some, size=2)]).tolist() == some.tolist()


def test_blocks_are_one_snapshot_and_give_their_connection_back(url: str) -> None:
    with opened(f"{url}&connect_timeout=1", pool_size=2) as catalog:
        names = [f"t{number}" for number in range(5)]
        catalog.put([record(name) for name in names], encoder="e", vectors=[heard(name, 2) for name in names])
        blocks = catalog.blocks("e", size=2)
        first = next(blocks)
        catalog.delete(names[3:])
        assert len(first) + sum(len(block) for block in blocks) == 5
        assert sum(len(block) for block in catalog.blocks("e")) == 3
        for _ in range(4):
            next(catalog.blocks("e", size=1))
        assert catalog.count() == 3


def test_bound_anew_everything_is_a_change(catalog: PostgresCatalog) -> None:
    catalog.put([record("a"), record("b", None)], encoder="e", vectors=[heard("a", 1)])
    seen = catalog.vector_changes("e", 0)
    assert (seen.present.tolist(), seen.gone.tolist()) == ([1], [2])
    catalog.bind("f")
    catalog.put_vectors("f", [heard("b", 1)])
    news = catalog.vector_changes("f", seen.seq)
    assert (news.present.tolist(), news.gone.tolist()) == ([], [1, 2])
    with pytest.raises(InputError, match=r"holds vectors of f. Found e"):
        list(catalog.blocks("e"))


def test_damaged_vectors_are_found(url: str, catalog: PostgresCatalog) -> None:
    catalog.put([record("a"), record("b")], encoder="e", vectors=[heard("a", 3), heard("b", 1)])
    execute(url, "UPDATE example SET data = set_byte(data, 0, get_byte(data, 0) # 255) WHERE task_id = 1")
    execute(url, "UPDATE vector SET data = set_byte(data, 0, get_byte(data, 0) # 255) WHERE task_id = 2")
    execute(url, "DELETE FROM version WHERE task_id = 1", "INSERT INTO version VALUES (77, 'v1', NULL, 1)")
    faults = "\n".join(catalog.verify())
    for text in (
        "task number 1 do not have their examples",
        "task number 2 do not have",
        "a: its adapter",
        "number 77",
    ):
        assert text in faults
    with pytest.raises(IntegrityError, match=r"checksum"):
        catalog.vectors("e")


def test_a_fault_in_the_middle_of_a_commit_leaves_nothing(catalog: PostgresCatalog) -> None:
    catalog.put([record("a")], encoder="e", vectors=[heard("a", 1)])
    wide = TaskVectors.of("c", None, np.ones((1, WIDTH + 1), dtype=np.float32), "c")
    with pytest.raises(InputError, match=f"\\({WIDTH},\\)"):
        catalog.put([record("b"), record("c")], encoder="e", vectors=[wide])
    with pytest.raises(TaskNotFoundError, match=r"Did you mean `a`"):
        catalog.retire(["a", "aa"])
    assert (catalog.seq, catalog.names(), catalog.verify()) == (1, ["a"], [])
    assert catalog.put([record("d")]) == 2
    assert catalog.ids(Scope()).tolist() == [1, 2]


# Several threads and processes


def test_threads_share_a_small_pool(url: str) -> None:
    with opened(url, pool_size=2) as catalog:
        numbers: list[int] = []

        def work(worker: int) -> None:
            for task in range(5):
                numbers.append(catalog.put([record(f"w{worker}/t{task}")]))
                assert catalog.get(f"w{worker}/t{task}") is not None

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(numbers) == list(range(1, 31))


def test_a_taken_pool_is_told(url: str) -> None:
    with opened(f"{url}&connect_timeout=1", pool_size=1) as catalog:
        catalog.put([record("a")], encoder="e", vectors=[heard("a", 1)])
        blocks = catalog.blocks("e")
        next(blocks)
        with pytest.raises(IntegrityError, match=r"All 1 connections .* were busy for 1 s. Raise `pool_size`"):
            catalog.names()
        blocks.close()
        assert catalog.names() == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")
def test_an_object_may_be_used_after_a_fork(catalog: PostgresCatalog) -> None:
    catalog.put([record("a")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the pool has threads; the child uses none of them
        child = os.fork()
    if child == 0:
        ok = False
        try:
            ok = catalog.names() == ["a"] and catalog.put([record("b")]) == 2
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert catalog.names() == ["a", "b"]
    assert catalog.put([record("c")]) == 3


WRITER = """
import sys
import numpy as np
from adapterhub.catalog import TaskRecord, TaskVectors
from adapterhub.catalog._postgres import PostgresCatalog
url, worker, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
catalog = PostgresCatalog(url)
rng = np.random.default_rng(0)
for turn in range(count):
    names = [f"w{worker}/t{turn}-{number}" for number in range(size)]
    rows = [TaskRecord(name, "v1", None, "{}", "c") for name in names]
    vectors = [TaskVectors.of(name, None, rng.standard_normal((3, 6)).astype(np.float32), "c") for name in names]
    print(catalog.put(rows, encoder="e", vectors=vectors), *names, flush=True)
"""


def writer(url: str, worker: int, size: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, str(worker), str(size), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def acknowledged(process: subprocess.Popen[str]) -> dict[int, list[str]]:
    lines = [line for line in process.communicate()[0].split("\n")[:-1] if line]
    return {int(line.split()[0]): line.split()[1:] for line in lines}


@pytest.mark.slow
def test_no_reader_misses_a_commit_of_two_processes(url: str, catalog: PostgresCatalog) -> None:
    assert catalog.seq == 0
    writers = [writer(url, worker, 1, 150) for worker in range(2)]
    since, found, orders = 0, [], []
    ids: set[int] = set()
    while True:
        ended = all(process.poll() is not None for process in writers)
        news = catalog.changes(since)
        orders += [row.seq for row in news.records]
        found += [row.name for row in news.records]
        ids |= set(catalog.vector_changes("e", since).present.tolist())
        since = news.seq
        if ended:
            break
    commits: dict[int, list[str]] = {}
    for process in writers:
        commits |= acknowledged(process)
    assert sorted(commits) == list(range(1, 301))
    assert orders == list(range(1, 301))
    assert found == [commits[number][0] for number in range(1, 301)]
    assert ids == set(catalog.ids(Scope()).tolist())


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_and_halves_nothing(url: str, catalog: PostgresCatalog) -> None:
    chance = random.Random(0)
    assert catalog.seq == 0
    kept: dict[int, list[str]] = {}
    for turn in range(4):
        processes = [writer(url, 2 * turn + number, 3, 100_000) for number in range(2)]
        began = catalog.seq
        while catalog.seq < began + 20:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            kept |= acknowledged(process)
        assert catalog.put([record(f"after/t{turn}")]) > max(kept)  # the lock is free again
        there: dict[int, int] = {}
        for row in catalog.records():
            there[row.seq] = there.get(row.seq, 0) + 1
        assert set(there.values()) <= {1, 3}
        names = set(catalog.names())
        assert all(names >= set(each) for each in kept.values())
        assert len(catalog.vectors("e")) == len(names) - turn - 1
        assert catalog.verify() == []


# Servers that come and go


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_was_restarted_is_found_again(server: PrivateServer, how: signal.Signals) -> None:
    with schema(server.url) as url, opened(f"{url}&connect_timeout=2") as catalog:
        catalog.put([record("a")], encoder="e", vectors=[heard("a", 2)])
        threads = [threading.Thread(target=catalog.names) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.stop(how)
        try:
            with pytest.raises(IntegrityError, match=r"cannot be reached.*Check that the server runs"):
                catalog.names()
            with pytest.raises(IntegrityError, match=r"cannot be reached"):
                catalog.put([record("b")])
        finally:
            server.start()
        began = time.monotonic()
        assert catalog.names() == ["a"]
        assert time.monotonic() - began < 4
        assert catalog.put([record("c")]) == 2
        server.stop(how)
        server.start()
        began = time.monotonic()
        assert catalog.put([record("d")]) == 3
        assert time.monotonic() - began < 1
        assert catalog.verify() == []


def put_while_it_dies(catalog: PostgresCatalog, server: PrivateServer) -> None:
    with catalog._servers.writing() as commit:
        commit.put([record("b"), record("a", "v2")], {})
        server.stop(signal.SIGQUIT)
        commit.put([record("c")], {})


@pytest.mark.slow
def test_a_server_that_dies_in_a_commit_keeps_no_half(server: PrivateServer) -> None:
    with schema(server.url) as url, opened(f"{url}&connect_timeout=2") as catalog:
        catalog.put([record("a")])
        try:
            with pytest.raises(IntegrityError, match=r"went away.*as a whole or not at all"):
                put_while_it_dies(catalog, server)
        finally:
            server.start()
        assert [(row.name, row.version) for row in catalog.records()] == [("a", "v1")]
        assert (catalog.seq, catalog.verify()) == (1, [])
        assert catalog.put([record("b")]) == 2


def test_a_writer_that_hangs_is_told_after_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(url) as slow:
        assert setting(slow, "lock_timeout") == "1min"
        monkeypatch.setattr(pool, "_SESSION", "SET lock_timeout = '200ms'")
        with opened(url) as catalog:
            with slow._servers.writing() as commit:
                commit.put([record("a")], {})
                assert catalog.names() == []  # readers do not wait
                with pytest.raises(IntegrityError, match=r"is being written by another process"):
                    catalog.put([record("b")])
            assert catalog.put([record("c")]) == 2


def setting(catalog: PostgresCatalog, name: str) -> str:
    return str(catalog._servers.newest(lambda connection: connection.execute(f"SHOW {name}").fetchone())[0])


def test_a_commit_reaches_the_disk_whatever_the_default_is(server_url: str, url: str) -> None:
    with opened(f"{url}&options=-c%20synchronous_commit%3Doff") as catalog:
        assert setting(catalog, "synchronous_commit") == "on"
    with opened(f"{url}&options=-c%20synchronous_commit%3Dremote_apply") as catalog:
        assert setting(catalog, "synchronous_commit") == "remote_apply"


# Replicas


@pytest.fixture
def schemas(server_url: str) -> Iterator[list[str]]:
    with schema(server_url) as one, schema(server_url) as two, schema(server_url) as three:
        yield [one, two, three]


def test_a_replica_answers_if_it_has_caught_up(schemas: list[str]) -> None:
    one, two, _ = schemas
    with opened(one) as primary, opened(two) as follower, opened(one, replicas=[two]) as catalog:
        primary.put([record("a", base_model="primary")], encoder="e", vectors=[heard("a", 1)])
        follower.put([record("a", base_model="replica")], encoder="e", vectors=[heard("a", 2)])
        assert catalog.get("a").base_model == "replica"
        assert next(catalog.blocks("e")).counts.tolist() == [2]
        assert catalog.put([record("b")]) == 2  # goes to the primary, and is seen at once
        assert catalog.names() == ["a", "b"]
        assert catalog.get("a").base_model == "primary"
        assert next(catalog.blocks("e")).counts.tolist() == [1]
        follower.put([record("b")])
        assert catalog.get("a").base_model == "replica"
        primary.put([record("c")])
        assert catalog.get("a").base_model == "replica"  # what this process has not seen may be missing
        assert catalog.seq == 3  # asked of the primary
        assert catalog.get("a").base_model == "primary"


def test_no_answer_is_older_than_the_one_before(schemas: list[str]) -> None:
    one, two, three = schemas
    with opened(one) as primary, opened(two) as fast, opened(three) as slow:
        for each, name in ((primary, "primary"), (fast, "fast"), (slow, "slow")):
            each.put([record("a", base_model=name)])
        fast.put([record("b")])
        with opened(one, replicas=[two, three]) as catalog:
            assert catalog.get("a").base_model == "fast"
            execute(two, "UPDATE catalog SET seq = 0")  # as if another server answered under that address
            assert catalog.get("a").base_model == "primary"


@pytest.mark.parametrize("named", ["alone", "in the URL"])
def test_a_replica_that_is_away_is_passed_over(url: str, named: str) -> None:
    dead = {"replicas": ["postgresql://127.0.0.1:1/postgres?connect_timeout=1"]} if named == "alone" else {}
    with opened(url if dead else f"{url}&replicas=127.0.0.1:1,127.0.0.1:2", **dead) as catalog:
        assert len(catalog._servers._replicas) == (1 if dead else 2)
        catalog.put([record("a")], encoder="e", vectors=[heard("a", 1)])
        assert catalog.names() == ["a"]
        assert len(next(catalog.blocks("e"))) == 1
        began = time.monotonic()
        for _ in range(20):
            catalog.names()
        assert time.monotonic() - began < 1


def test_a_replica_without_tables_is_not_changed(server_url: str, url: str) -> None:
    with schema(server_url) as empty, opened(url, replicas=[empty]) as catalog:
        catalog.put([record("a")])
        assert catalog.names() == ["a"]
        name = empty.partition("?schema=")[2]
        assert execute(server_url, f"SELECT to_regnamespace('{name}')") == [(None,)]


@pytest.mark.slow
def test_a_real_standby_follows(server: PrivateServer, tmp_path: Path) -> None:
    with schema(server.url) as url, server.standby() as standby:
        follow(url, standby)


def follow(url: str, standby: PrivateServer) -> None:
    with opened(f"{url}&replicas=127.0.0.1:{standby.port}") as catalog:
        with opened(f"{standby.url}?schema={url.partition('?schema=')[2]}") as follower:
            for number in range(20):
                name = f"t{number}"
                catalog.put([record(name)], encoder="e", vectors=[heard(name, 2)])
                assert name in catalog.names()
                assert sum(len(block) for block in catalog.blocks("e")) == number + 1
            deadline = time.monotonic() + 20
            while follower.seq < 20 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert follower.names() == catalog.names()
            with pytest.raises(IntegrityError, match=r"refuses it.*read-only.*primary server to write"):
                follower.put([record("x")])
        with catalog._servers.streaming() as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


# Who may come in, and what is said about it


def test_a_password_is_in_no_message(server: PrivateServer) -> None:
    wrong = server.url.replace("p%40ss%2Fw%C3%B6rd", "s3cr%40t")
    with opened(wrong) as catalog, pytest.raises(IntegrityError, match=r"Check .*password") as caught:
        catalog.names()
    assert catalog.url == f"postgresql://tester:***@127.0.0.1:{server.port}/postgres"
    for text in (str(caught.value), repr(catalog), repr(Address.of(wrong)), catalog.url):
        assert "s3cr" not in text
    with schema(server.url) as url, opened(url) as catalog:
        catalog.names()
        assert PASSWORD not in catalog.url
        assert "%40ss" not in catalog.url
        assert catalog.url.endswith("/postgres?" + url.partition("?")[2])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgres://me@h:5/d?schema=s", "postgres://me@h:5/d?schema=s"),
        ("postgresql://me:hush@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:hu%40sh@h1:1,h2:2/d?connect_timeout=3", "postgresql://me:***@h1:1,h2:2/d?connect_timeout=3"),
        ("postgresql://h/d?password=hush&user=me", "postgresql://h/d?password=***&user=me"),
        ("postgresql://h/d?pass%77ord=hush", "postgresql://h/d?pass%77ord=***"),
        ("postgresql://h/d?sslpassword=hush", "postgresql://h/d?sslpassword=***"),
        ("postgresql://me:hush@h/d?replicas=h2:5,h3", "postgresql://me:***@h/d?replicas=h2:5,h3"),
        ("postgresql://me:hush@[::1]:5/d", "postgresql://me:***@[::1]:5/d"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert Address.of(url).shown == shown
    assert PostgresCatalog(url).url == shown
    assert "hush" not in repr(Address.of(url))


def test_replicas_in_the_url_are_the_same_database_elsewhere() -> None:
    found = Address.of("postgresql://me:hu%40sh@h1:1/d?schema=s&replicas=h2:5,[::1]:6&sslmode=require")
    assert found.replicas == (
        "postgresql://me:hu%40sh@h2:5/d?sslmode=require",
        "postgresql://me:hu%40sh@[::1]:6/d?sslmode=require",
    )
    assert Address.of("postgresql://h1/d?replicas=h2").replicas == ("postgresql://h2/d?",)
    assert Address.of(found.replicas[0], found.schema).schema == "s"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hush@h/d",
        "host=h password=hush",
        "postgresql://me:hush/d",
        "postgresql://me:hu/sh@h/d?what=hush",
        "postgresql://me:hush@h:port/d",
        "postgresql://me:hush@h/d?connect_timeout=soon",
        "postgresql://me:hush@h/d?schema=No",
        "postgresql://me:hush@h/d?schema=",
        "postgresql://me:hush@h/d?schema=a;b",
        "postgresql://me:%zzhush@h/d",
    ],
)
def test_bad_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(InputError, match=r"postgresql://") as caught:
        PostgresCatalog(url)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_not_there_is_told(server: PrivateServer) -> None:
    with opened(f"{server.url}x") as catalog, pytest.raises(IntegrityError, match=r'cannot be reached.*"postgresx"'):
        catalog.names()
    with opened("postgresql://127.0.0.1:1/x") as catalog, pytest.raises(IntegrityError, match=r"refused"):
        catalog.names()
    with opened("postgresql://127.0.0.1:1/x") as catalog:
        (fault,) = catalog.verify()
        assert "cannot be reached" in fault


@contextmanager
def role(server: PrivateServer, url: str, *rights: str) -> Iterator[str]:
    """URL of a user with these rights in the schema of a URL."""
    name = url.partition("?schema=")[2]
    user = f"{name}_user"
    execute(server.url, f"CREATE ROLE {user} LOGIN PASSWORD 'hush'")
    try:
        for right in rights:
            execute(server.url, f"GRANT {right.format(schema=name)} TO {user}")
        yield f"postgresql://{user}:hush@127.0.0.1:{server.port}/postgres?schema={name}"
    finally:
        execute(server.url, f"DROP OWNED BY {user}", f"DROP ROLE {user}")


READ = ("USAGE ON SCHEMA {schema}", "SELECT ON ALL TABLES IN SCHEMA {schema}")


def test_a_user_who_may_only_read_reads(server: PrivateServer) -> None:
    with schema(server.url) as url, opened(url) as owner:
        owner.put([record("a")], encoder="e", vectors=[heard("a", 1)])
        with role(server, url, *READ) as reader, opened(reader) as catalog:
            assert catalog.names() == ["a"]
            assert len(catalog.vectors("e")) == 1
            assert catalog.verify() == []
            assert catalog.missing("e") == []
            for change in (
                lambda: catalog.put([record("b")]),
                lambda: catalog.retire(["a"]),
                lambda: catalog.bind("f"),
            ):
                with pytest.raises(IntegrityError, match=r"refuses it: permission denied.*Use a user who may do it"):
                    change()
        assert (owner.names(), owner.seq) == (["a"], 1)


def test_a_user_without_rights_is_told(server: PrivateServer) -> None:
    with schema(server.url) as url, opened(url) as owner:
        assert owner.seq == 0
        with role(server, url) as nobody:
            refused(nobody, "refuses it|names no schema")
    with schema(server.url) as empty, role(server, empty) as nobody:
        refused(nobody, "refuses it: permission denied for database")


def refused(url: str, why: str) -> None:
    with opened(url) as catalog, pytest.raises(IntegrityError, match=why):
        catalog.names()
