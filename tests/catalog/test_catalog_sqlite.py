"""The card index: commits in order, subtrees, tombstones, vectors, several writers."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from adapterhub.catalog import Catalog, SqliteCatalog, TaskRecord, TaskVectors
from adapterhub.catalog._sqlite import journal_mode
from adapterhub.errors import InputError, IntegrityError, TaskNotFoundError


def record(name: str, version: str | None = "v1", content: str = "c") -> TaskRecord:
    return TaskRecord(name, version, "0" * 64, '{"description":"x"}', content)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def catalog(tmp_path: Path) -> SqliteCatalog:
    return SqliteCatalog(tmp_path / "catalog.sqlite")


def test_it_is_a_catalog(catalog: SqliteCatalog) -> None:
    typed: Catalog = catalog
    assert typed.seq == 0
    assert typed.names() == []
    assert typed.get("a") is None


def test_rows_come_back_and_commits_are_numbered(catalog: SqliteCatalog) -> None:
    assert catalog.put([record("a"), record("b", None)]) == 1
    assert catalog.put([record("a", "v2")]) == 2
    assert catalog.get("a") == dataclasses.replace(record("a", "v2"), seq=2)
    assert catalog.get("b") == dataclasses.replace(record("b", None), seq=1)
    assert catalog.versions("a") == [("v1", "0" * 64), ("v2", "0" * 64)]
    assert catalog.versions("b") == []
    assert SqliteCatalog(catalog.path).seq == 2


def test_a_subtree_is_the_branch_and_what_is_below_it(catalog: SqliteCatalog) -> None:
    names = ["a", "a-b", "a/b", "a/b-c", "a/b/c", "a/b/c/d", "a/c", "a0", "ab", "b"]
    catalog.put([record(name) for name in names])
    for prefix in ("", "a", "a/b", "a/b/c/d", "z"):
        expected = [name for name in names if not prefix or name == prefix or name.startswith(prefix + "/")]
        assert catalog.names(prefix) == sorted(expected)
        assert [found.name for found in catalog.records(prefix)] == sorted(expected)


def test_a_retired_task_is_kept_and_not_listed(catalog: SqliteCatalog) -> None:
    catalog.put([record("a"), record("b")])
    catalog.put([dataclasses.replace(record("a"), status="retired")])
    assert catalog.names() == ["b"]
    found = catalog.get("a")
    assert found is not None
    assert found.status == "retired"
    assert [missing.name for missing in catalog.missing("e")] == ["b"]


def test_changes_carry_rows_and_tombstones(catalog: SqliteCatalog) -> None:
    catalog.put([record("a"), record("b"), record("c")])
    seen = catalog.changes(0)
    assert (seen.seq, [row.name for row in seen.records], seen.deleted) == (1, ["a", "b", "c"], ())
    catalog.delete(["a", "b"])
    catalog.put([record("a", "v9")])
    news = catalog.changes(seen.seq)
    assert (news.seq, [row.version for row in news.records], news.deleted) == (3, ["v9"], ("b",))
    assert catalog.versions("a") == [("v9", "0" * 64)]
    assert catalog.changes(3) == dataclasses.replace(news, records=(), deleted=())


def test_deleting_what_is_not_there_deletes_nothing(catalog: SqliteCatalog) -> None:
    catalog.put([record("abc")])
    with pytest.raises(TaskNotFoundError, match="Did you mean `abc`"):
        catalog.delete(["abc", "abd"])
    assert (catalog.names(), catalog.seq) == (["abc"], 1)


def test_vectors_are_kept_bit_for_bit_by_encoder_and_content(catalog: SqliteCatalog) -> None:
    rng = np.random.default_rng(0)
    catalog.put([record("a", content="x"), record("b", content="y"), record("twin", content="x")])
    one = TaskVectors.of("", unit(rng, 5), unit(rng, 3, 5))
    none = TaskVectors.of("", None, np.empty((0, 5), dtype=np.float32))
    catalog.put_vectors("e1", {"x": one})
    catalog.put_vectors("e2", {"y": none})
    assert [found.name for found in catalog.vectors("e1")] == ["a", "twin"]
    for found in catalog.vectors("e1"):
        assert found.count == 3
        for key in ("total", "description", "examples"):
            assert np.array_equal(getattr(found, key), getattr(one, key))
            assert getattr(found, key).dtype == np.float32
    (found,) = catalog.vectors("e2")
    assert (found.name, found.count, found.description, found.examples.shape) == ("b", 0, None, (0, 5))
    assert [row.name for row in catalog.missing("e1")] == ["b"]
    catalog.put_vectors("e1", {"x": none})
    assert catalog.vectors("e1")[0].count == 3


def test_a_row_more_changes_no_other_vector(catalog: SqliteCatalog) -> None:
    rng = np.random.default_rng(0)
    catalog.put([record("a", content="x")])
    catalog.put_vectors("e", {"x": TaskVectors.of("", unit(rng, 4), unit(rng, 2, 4))})
    before = catalog.vectors("e")[0]
    catalog.put([record("b", content="y")])
    catalog.put_vectors("e", {"y": TaskVectors.of("", unit(rng, 4), unit(rng, 2, 4))})
    assert np.array_equal(catalog.vectors("e")[0].examples, before.examples)


@pytest.mark.parametrize("fault", ["nan", "shape", "count", "description"])
def test_wrong_vectors_are_refused_and_nothing_is_stored(catalog: SqliteCatalog, fault: str) -> None:
    good = TaskVectors.of("", np.ones(3, dtype=np.float32), np.ones((2, 3), dtype=np.float32))
    wrong = {
        "nan": {"total": np.array([1, np.nan, 1], dtype=np.float32)},
        "shape": {"examples": np.ones((2, 4), dtype=np.float32)},
        "count": {"count": 3},
        "description": {"description": np.ones(2, dtype=np.float32)},
    }[fault]
    catalog.put([record("a", content="x"), record("b", content="y")])
    with pytest.raises(InputError):
        catalog.put_vectors("e", {"x": good, "y": dataclasses.replace(good, **wrong)})
    assert catalog.vectors("e") == []


def test_writers_at_once_get_numbers_in_the_order_of_their_commits(catalog: SqliteCatalog) -> None:
    numbers: list[int] = []

    def write(worker: int) -> None:
        numbers.extend(SqliteCatalog(catalog.path).put([record(f"w{worker}/t{task}")]) for task in range(5))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))
    assert len(catalog.names()) == 20


def test_a_damaged_file_is_told_with_its_remedy(catalog: SqliteCatalog) -> None:
    catalog.path.write_bytes(b"no database at all, but long enough to be read as one" * 40)
    with pytest.raises(IntegrityError, match="Delete it"):
        catalog.names()


def test_another_format_is_refused(catalog: SqliteCatalog) -> None:
    assert catalog.seq == 0
    connection = sqlite3.connect(catalog.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IntegrityError, match="format is 99"):
        catalog.names()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="Check the folder"):
        SqliteCatalog(tmp_path / "none" / "catalog.sqlite").names()


def test_a_file_may_be_deleted_between_two_calls(catalog: SqliteCatalog) -> None:
    catalog.put([record("a")])
    catalog.path.unlink()
    assert catalog.names() == []
    assert catalog.put([record("b")]) == 1


def test_the_write_ahead_log_only_where_sqlite_is_safe_with_it() -> None:
    assert journal_mode((3, 40, 1)) == "DELETE"
    assert journal_mode((3, 51, 2)) == "DELETE"
    assert {journal_mode(version) for version in ((3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 60, 0))} == {"WAL"}
