"""The catalogue in one SQLite file: journals, faults of disks and files, damage and its repair."""

from __future__ import annotations

import gc
import os
import random
import re
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from catalog_contract import Model, assert_agrees, assert_hears, heard, place, row, same

from adapterhub.catalog import Scope, SqliteCatalog
from adapterhub.catalog import _connections as connections
from adapterhub.catalog._schema import FORMAT, file_system, format_of, journal_mode
from adapterhub.errors import IntegrityError

PAGE = 8192


@pytest.fixture
def catalog() -> Iterator[SqliteCatalog]:
    with place("sqlite") as url:
        yield SqliteCatalog(url.removeprefix("sqlite:///"))


def filled(catalog: SqliteCatalog, tasks: int = 300) -> Model:
    """Enough tasks for several pages of each table, with histories, tags, tombstones and vectors of all kinds."""
    model = Model()
    rows = [
        row(
            f"g{n % 3}/t{n}",
            "v1" if n % 7 else None,
            f"{n:064x}",
            tags=("x", f"y{n % 5}")[: n % 3],
            base_model=f"m{n % 2}",
            source=f"source {n} " * 9,
        )
        for n in range(tasks)
    ]
    for part in (rows, rows[: tasks // 3]):
        vectors = [heard(one.name, n % 4, n % 5 != 0) for n, one in enumerate(part) if n % 6]
        catalog.put(part, encoder="e", vectors=vectors)
        model.put(part, "e", vectors)
    gone = [one.name for one in rows[::11]]
    catalog.delete(gone)
    model.delete(gone)
    catalog.retire([rows[1].name])
    model.mark([rows[1].name], "retired")
    catalog.close()
    return model


# --- journals


def test_the_write_ahead_log_only_where_it_can_work() -> None:
    for version in ((3, 40, 1), (3, 51, 2), (3, 51, 3), (3, 60, 0)):
        assert {journal_mode(version, system) for system in ("ext4", "btrfs", "tmpfs", "overlay", "")} == {"WAL"}
        network = ("nfs", "nfs4", "lustre", "gpfs", "cifs", "9p", "fuse.sshfs", "fuse", "fuseblk")
        assert {journal_mode(version, system) for system in network} == {"DELETE"}


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    lines = [
        "disk / ext4 rw",
        "a /home nfs4 rw",
        "b /home/me/my\\040data lustre rw",
        "c /data ext4 rw",
        "d /data gpfs rw",
        "x",
    ]
    mounts.write_text("\n".join(lines))
    places = {
        "/catalog.sqlite": "ext4",
        "/homes/c": "ext4",
        "/home/you/c": "nfs4",
        "/home/me/my data/sub/c": "lustre",
        "/data/c": "gpfs",
    }
    assert {place: file_system(Path(place), mounts) for place in places} == places
    assert file_system(Path("/a"), tmp_path / "none") == ""


def test_a_file_on_a_network_has_the_rollback_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = SqliteCatalog(tmp_path / "catalog.sqlite")
    model = filled(local)
    monkeypatch.setattr(connections, "file_system", lambda path: "nfs4")
    catalog = SqliteCatalog(local.path)
    catalog.put([row("more")])
    model.put([row("more")])
    assert_agrees(catalog, model)
    assert_hears(catalog, model, "e")
    connection = sqlite3.connect(catalog.path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert not list(tmp_path.glob("*-wal"))


def test_the_log_is_written_back_and_stays_small(catalog: SqliteCatalog) -> None:
    reader = SqliteCatalog(catalog.path)
    log, sizes = catalog.path.with_name("catalog.sqlite-wal"), []
    for number in range(600):
        catalog.put([row("a", source=f"{number}" * 500)])
        assert reader.seq == number + 1
        sizes.append(log.stat().st_size)
    assert max(sizes) < 2 * 256 * 8 * PAGE
    assert sizes[-1] == sizes[300]  # begun anew, not grown


# --- connections


def test_calls_share_connections_and_close_ends_them(catalog: SqliteCatalog) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("a system that does not list open files")
    before = descriptors()
    for number in range(20):
        catalog.put([row(f"t{number}")])
        assert catalog.count() == number + 1
    one = descriptors()
    assert before < one <= before + 4
    list(zip(catalog.blocks("e"), catalog.blocks("e"), strict=True))
    catalog.close()
    assert descriptors() == before
    assert catalog.count() == 20


def test_threads_read_and_write_at_once(catalog: SqliteCatalog) -> None:
    faults: list[BaseException] = []

    def use(worker: int) -> None:
        try:
            for number in range(20):
                catalog.put([row(f"w{worker}/t{number}")])
                assert catalog.count(f"w{worker}") == number + 1
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=use, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (faults, catalog.count(), catalog.seq) == ([], 80, 80)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_writes(catalog: SqliteCatalog) -> None:
    catalog.put([row("first")])
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            catalog.put([row(f"parent/t{number}")])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        children = []
        for number in range(5):
            child = os.fork()
            if child == 0:
                try:
                    catalog.put([row(f"child/t{number}")])
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 5
    finally:
        stop.set()
        writer.join()
    assert catalog.count("child") == 5
    assert catalog.count() == catalog.seq
    assert catalog.verify() == []


def test_a_file_may_be_deleted_between_two_calls(catalog: SqliteCatalog) -> None:
    catalog.put([row("a")])
    catalog.path.unlink()
    assert catalog.names() == []
    assert catalog.put([row("b")]) == 1
    assert catalog.verify() == []


def test_a_file_may_be_replaced_between_two_calls(catalog: SqliteCatalog) -> None:
    catalog.put([row("a")])
    other = SqliteCatalog(catalog.path.with_name("other.sqlite"))
    other.put([row("b"), row("c")])
    other.close()
    catalog.close()
    assert catalog.names() == ["a"]
    other.path.replace(catalog.path)
    assert catalog.names() == ["b", "c"]
    assert catalog.put([row("d")]) == 2
    assert SqliteCatalog(catalog.path).names() == ["b", "c", "d"]


# --- faults of the disk


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    catalog = SqliteCatalog(tmp_path / "none" / "catalog.sqlite")
    for call in (catalog.names, lambda: catalog.put([row("a")])):
        with pytest.raises(IntegrityError, match=r"none/catalog.sqlite cannot be used: .*Check the folder"):
            call()


def test_a_place_that_cannot_be_written_to() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("a system without /proc, the folder in which not even root can make a file")
    catalog = SqliteCatalog("/proc/catalog.sqlite")
    for call in (catalog.names, lambda: catalog.put([row("a")])):
        with pytest.raises(IntegrityError, match=r"cannot be used: .*Check the folder"):
            call()


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="cannot be used"):
        SqliteCatalog(tmp_path).names()


def test_a_file_that_may_only_be_read(catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.put([row("a")])
    catalog.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **other: connect(f"file:{path}?mode=ro", uri=True, **other))
    assert catalog.names() == ["a"]
    with pytest.raises(IntegrityError, match=r"cannot be written to: .*Check the rights"):
        catalog.put([row("b")])
    monkeypatch.undo()
    catalog.close()
    assert catalog.names() == ["a"]


def test_a_full_disk(catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(catalog)
    connect = sqlite3.connect

    def small(path: Path, **other: object) -> sqlite3.Connection:
        connection = connect(path, **other)
        connection.execute(f"PRAGMA max_page_count = {catalog.path.stat().st_size // PAGE + 2}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(IntegrityError, match=r"the disk is full. Nothing was written. Free space"):
        catalog.put([row(f"new/t{n}", source="x" * 2000) for n in range(100)])
    monkeypatch.undo()
    catalog.close()
    assert_agrees(catalog, model)
    assert catalog.verify() == []


def test_a_file_that_reaches_its_limit(catalog: SqliteCatalog) -> None:
    """In a child process, as the limit holds for the whole process."""
    model = filled(catalog)
    child = os.fork()
    if child == 0:
        try:
            limit = catalog.path.stat().st_size + 4 * PAGE
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                catalog.put([row(f"new/t{n}", source="x" * 2000) for n in range(1000)])
            except IntegrityError as error:
                os._exit(0 if "Check the folder and the disk" in str(error) or "disk is full" in str(error) else 2)
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_agrees(catalog, model)
    assert catalog.verify() == []


def test_a_lock_that_is_never_given_back(catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.put([row("a")])
    monkeypatch.setattr(connections, "TIMEOUT", 0.1)
    with connections.locked(catalog.path.with_name("catalog.sqlite-lock"), 1):
        with pytest.raises(IntegrityError, match=r"is locked: another process .* 0.1 s. Wait for it to end, or end it"):
            catalog.put([row("b")])
        assert catalog.names() == ["a"]  # readers go on
    other = sqlite3.connect(catalog.path, isolation_level=None)  # someone who does not know the lock
    other.execute("BEGIN IMMEDIATE")
    catalog.close()
    with pytest.raises(IntegrityError, match="is locked: another process"):
        catalog.put([row("b")])
    other.execute("ROLLBACK")
    other.close()
    assert catalog.put([row("b")]) == 2


# --- another format, and damage


def write_format_1(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    connection.execute("CREATE TABLE task (name TEXT PRIMARY KEY)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def write_another_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (name TEXT)")
    connection.close()


def write_no_database(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be read as one" * 40)


OTHERS = {
    write_format_1: "its format is 1, this version reads 4",
    write_another_database: "a database of something else",
    write_no_database: "is damaged: file is not a database. Run `adapterhub fsck`",
}


@pytest.mark.parametrize("content", [b"no database at all, " * 100, bytes(40_000)])
def test_a_file_that_never_was_a_catalogue_is_not_repaired(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="does not begin like one, and no task was found in it"):
        SqliteCatalog(path).repair()
    assert path.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["notes.txt", "notes.txt-lock"]


@pytest.mark.parametrize("write", OTHERS)
def test_another_file_is_refused_or_made_again_where_it_is_derived(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "catalog.sqlite"
    write(path)
    before = path.read_bytes()
    for call in (SqliteCatalog(path).names, lambda: SqliteCatalog(path).put([row("a")])):
        with pytest.raises(IntegrityError, match=OTHERS[write]):
            call()
    assert [OTHERS[write] in fault for fault in SqliteCatalog(path).verify()] == [True]
    assert path.read_bytes() == before
    assert SqliteCatalog(path, derived=True).names() == []
    assert SqliteCatalog(path).put([row("a")]) == 1
    path.unlink()
    write(path)
    assert SqliteCatalog(path, derived=True).put([row("b")]) == 1
    assert SqliteCatalog(path).names() == ["b"]


def pages_of(path: Path) -> dict[str, list[int]]:
    """Which pages belong to which table or index."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT name, pageno FROM dbstat").fetchall()
    except sqlite3.OperationalError:
        pytest.skip("SQLite was built without dbstat")
    finally:
        connection.close()
    return {name: [page for other, page in rows if other == name] for name, _ in rows}


def spoil(path: Path, page: int, seed: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(random.Random(seed).randbytes(PAGE))


def test_a_derived_file_with_a_damaged_page_says_so_and_is_made_again(tmp_path: Path) -> None:
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", derived=True)
    filled(catalog)
    spoil(catalog.path, pages_of(catalog.path)["task"][-1])
    with pytest.raises(IntegrityError, match=r"is damaged: .* It has been deleted. Ask again"):
        catalog.records()
    assert (catalog.seq, catalog.records(), catalog.verify()) == (0, [], [])


@pytest.mark.parametrize(
    "table",
    ["task", "vector", "example", "version", "task_name", "tag", "base_model", "base_name", "sqlite_schema", "meta"],
)
def test_all_that_can_be_read_of_a_damaged_file_is_kept(catalog: SqliteCatalog, table: str) -> None:
    model = filled(catalog)
    pages = pages_of(catalog.path)
    pages["sqlite_schema"] = [1]
    for seed, page in enumerate(pages[table][-2:]):
        spoil(catalog.path, page, seed)
    assert any("Run `adapterhub fsck`" in fault for fault in catalog.verify())
    assert SqliteCatalog(catalog.path).verify() != []
    report = catalog.repair()
    assert report[0].startswith("The file was damaged. A new one was made")
    assert catalog.path.with_name("catalog.sqlite.damaged").exists()
    assert (
        sorted(path.name for path in catalog.path.parent.iterdir() if "work" in path.name or "repaired" in path.name)
        == []
    )
    assert catalog.verify() == []
    found = {record.name: record for record in catalog.changes(0).records}
    lost = set(model.tasks) - set(found)
    for name, record in found.items():
        expected = model.tasks[name].record
        assert (record.card, record.version, record.id) == (expected.card, expected.version, expected.id)
    if table != "task":
        assert lost == set()
    assert 0 <= len(lost) < len(model.tasks) / 2
    assert all(any(repr(name) in line and "lost" in line for line in report) for name in lost)
    if table not in ("vector", "example"):
        kept = {item.name: item for item in catalog.vectors("e")}
        expected = {entry.record.name: entry.vectors for entry in model.active() if entry.vectors is not None}
        assert set(expected) - set(kept) <= lost
        assert all(same(item, expected[name]) for name, item in kept.items())
    assert catalog.put([row("new")], encoder="e", vectors=[heard("new")]) > model.seq
    new = catalog.get("new")
    assert new is not None
    assert new.id > model.last
    assert catalog.repair() == []


def test_tasks_are_found_where_the_tree_above_their_pages_is_damaged(catalog: SqliteCatalog) -> None:
    model = filled(catalog)
    catalog.put([row("long", source="s" * 30_000)])  # on pages of its own
    model.put([row("long", source="s" * 30_000)])
    catalog.close()
    spoil(catalog.path, pages_of(catalog.path)["task"][0])
    assert any(f"{len(model.tasks)} tasks were found on pages" in line for line in catalog.repair())
    assert catalog.verify() == []
    assert {record.name: record.card for record in catalog.changes(0).records} == {
        name: entry.record.card for name, entry in model.tasks.items()
    }
    assert set(catalog.changes(0).deleted) == model.deleted(0)
    assert len(catalog.missing("e")) == catalog.count()
    spoil(catalog.path, pages_of(catalog.path)["vector"][0])
    assert catalog.repair() != []
    assert len(list(catalog.path.parent.glob("*.damaged*"))) == 2
    assert catalog.count() == len(model.active())


def test_a_changed_byte_is_found_or_changes_nothing(catalog: SqliteCatalog, tmp_path: Path) -> None:
    model = filled(catalog, 60)
    whole, chance, found = catalog.path.read_bytes(), random.Random(0), 0
    for number in range(120):
        spoilt = bytearray(whole)
        at = chance.randrange(len(whole))
        spoilt[at] ^= 1 << chance.randrange(8)
        path = tmp_path / f"spoilt{number}.sqlite"
        path.write_bytes(spoilt)
        copy = SqliteCatalog(path)
        if copy.verify():
            found += 1
            copy.close()
            continue
        records = {record.name: record for record in copy.changes(0).records}
        assert {name: (one.card, one.id) for name, one in records.items()} == {
            name: (entry.record.card, entry.record.id) for name, entry in model.tasks.items()
        }
        for item in copy.vectors("e"):
            expected = model.tasks[item.name].vectors
            assert expected is not None
            assert same(item, expected)
        copy.close()
    assert found >= 5


WRONG = {
    "DELETE FROM task WHERE name = 'g1/t1'": "belong to a task",
    "UPDATE task SET card = 'x' WHERE name = 'g1/t1'": "'g1/t1' .* is not as it was written",
    "UPDATE task SET sha256 = NULL WHERE name = 'g1/t1'": "'g1/t1' .* is not as it was written",
    "UPDATE base_model SET name = 'other' WHERE name = 'm1'": "base model .* is not as it was written",
    "DELETE FROM vector WHERE id = (SELECT id FROM task WHERE name = 'g0/t3')": "that was heard has vectors",
    "DELETE FROM example": "of several examples have the examples",
    "UPDATE vector SET data = zeroblob(12)": "not as they were written",
    "UPDATE vector SET count = 9 WHERE count = 2": "not as they were written",
    "UPDATE example SET data = zeroblob(length(data))": "not as they were written",
    "UPDATE task SET heard = 0 WHERE name = 'g0/t3'": "A task with vectors was heard",
    "DELETE FROM tag WHERE tag = 'x'": "Tags are those of the tasks",
    "INSERT INTO tag VALUES ('z', 0, 999)": "Tags are those of the tasks",
    "DELETE FROM version WHERE id = (SELECT id FROM task WHERE name = 'g1/t4')": "adapter is in its history",
    "INSERT INTO version VALUES (999, 'v1', NULL, 1)": "A history belongs to a task",
    "INSERT INTO tombstone SELECT id, name, seq FROM task LIMIT 1": "number of a deleted task",
    "UPDATE meta SET seq = 1": "commit counter",
    "UPDATE meta SET last = 1": "counter of tasks",
    "UPDATE meta SET encoder = NULL": "encoder is noted twice",
    "UPDATE meta SET encoder = NULL; UPDATE binding SET encoder = NULL": "encoder that they were made with",
    "DELETE FROM base_model": "name of base model 1 is lost",
    "UPDATE task SET state = 1 WHERE name = 'g1/t4'": "state follows from its adapter",
}


@pytest.mark.parametrize("statement", WRONG)
def test_rows_that_contradict_each_other_are_found_and_settled(catalog: SqliteCatalog, statement: str) -> None:
    model = filled(catalog, 40)
    seq = catalog.seq
    connection = sqlite3.connect(catalog.path, isolation_level=None)
    for part in statement.split(";"):
        assert connection.execute(part).rowcount != 0
    connection.close()
    faults = catalog.verify()
    assert any(re.search(WRONG[statement], fault) for fault in faults), faults
    assert all(fault.endswith("Run `adapterhub fsck`.") for fault in faults)
    report = catalog.repair()
    assert any(re.search(WRONG[statement], line) for line in report), report
    assert catalog.verify() == []
    assert catalog.repair() == []
    lost = set(model.tasks) - {record.name for record in catalog.changes(0).records}
    if statement.startswith(("DELETE FROM task", "UPDATE task SET card", "UPDATE task SET sha")):
        assert lost == {"g1/t1"}
    else:
        assert lost == set()
    assert catalog.put([row("new")]) > seq
    new = catalog.get("new")
    assert new is not None
    assert new.id > model.last


def test_what_was_left_of_a_row_is_kept_beside_the_catalogue(catalog: SqliteCatalog) -> None:
    filled(catalog, 10)
    connection = sqlite3.connect(catalog.path, isolation_level=None)
    connection.execute("UPDATE task SET card = 'changed' WHERE name = 'g1/t4'")
    connection.close()
    with pytest.raises(IntegrityError, match=r"is damaged: The row of task .* Run `adapterhub fsck`"):
        catalog.get("g1/t4")
    line = catalog.repair()[0]
    kept = catalog.path.with_name("catalog.sqlite.lost.jsonl")
    assert str(kept) in line
    assert '"card": "changed"' in kept.read_text()
    assert catalog.get("g1/t4") is None


class Meanwhile:
    """A connection; just before one of its statements something else happens."""

    def __init__(self, connection: sqlite3.Connection, before: str, happens: Callable[[], object]) -> None:
        self.connection, self.before, self.happens = connection, before, happens

    def execute(self, statement: str) -> sqlite3.Cursor:
        if self.before in statement:
            self.happens()
        return self.connection.execute(statement)


def test_a_file_that_another_process_is_just_making_is_not_taken_for_something_else(catalog: SqliteCatalog) -> None:
    catalog.path.touch()
    connection = sqlite3.connect(catalog.path)
    assert format_of(connection) == 0
    assert format_of(Meanwhile(connection, "sqlite_master", lambda: catalog.put([row("a")]))) == FORMAT
    connection.close()


# --- copies


def test_a_copy_is_one_state_while_others_write(catalog: SqliteCatalog, tmp_path: Path) -> None:
    filled(catalog)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            catalog.put([row(f"w/t{number}"), row("w/last", source=str(number))])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.05)
        catalog.backup(tmp_path / "copy.sqlite")
    finally:
        stop.set()
        writer.join()
    copy = SqliteCatalog(tmp_path / "copy.sqlite")
    assert copy.verify() == []
    last = copy.get("w/last")
    assert last is not None
    assert copy.count("w") == int(last.source) + 1
    assert copy.seq == last.seq
    with pytest.raises(ValueError, match=r"copy.sqlite. Give another name"):
        catalog.backup(tmp_path / "copy.sqlite")
    copy.close()
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.sqlite"]


def test_scopes_of_many_tasks(catalog: SqliteCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub.catalog import _scope

    model = filled(catalog)
    for few in (_scope._FEW, 3):  # both ways of restricting to a branch
        monkeypatch.setattr(_scope, "_FEW", few)
        for scope in (Scope("g1", ("x",)), Scope("g1", base_model="m1"), Scope("g2/t5", ("x", "y0")), Scope("g0")):
            assert catalog.ids(scope).tolist() == model.ids(scope)
    assert catalog.ids(Scope(tags=("x",))).dtype == np.int64


def test_a_catalogue_that_is_made_anew_has_another_token(tmp_path: Path) -> None:
    catalog = SqliteCatalog(tmp_path / "derived.sqlite", derived=True)
    before = catalog.vector_changes("e", 0).token
    catalog.discard()
    assert catalog.vector_changes("e", 0).token != before
