"""Rows of tasks beside the plain formula, and in step with a catalogue."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_world import DIMENSION, MemoryCatalog, World, vectors

from adapterhub.catalog import BitIndex, ExactIndex, Manifest, SqliteCatalog, TaskRecord
from adapterhub.errors import InputError
from adapterhub.router import Epoch, Sums
from adapterhub.router import _rows as rows_module
from adapterhub.router._generations import Generations
from adapterhub.router._rows import TaskRows
from adapterhub.router._source import RowSource

ENCODER = "fake"


def epoch_of(world, tasks=60):
    return Epoch.fit(Sums.of([world.texts(world.mean(), 10) for _ in range(tasks)], DIMENSION))


def record(name, adapter=True):
    return TaskRecord(name, "v1" if adapter else None, None, "{}", name)


def fill(catalog, world, count, prefix="t", first=0):
    """Tasks with 0 to 6 examples, most with a description; returns their vectors."""
    random = np.random.default_rng(first)
    tasks = []
    for number in range(first, first + count):
        mean = world.mean()
        examples = world.texts(mean, int(random.integers(0, 7)))
        description = world.texts(mean, 1)[0] if number % 3 else None
        tasks.append(vectors(f"{prefix}/{number:05}", examples, description))
    catalog.put([record(task.name) for task in tasks], encoder=ENCODER, vectors=tasks)
    return {task.name: task for task in tasks}


def by_formula(epoch, catalog, tasks, queries):
    """(queries, tasks) scores of the slow reference, tasks in the order of their numbers."""
    known = sorted(tasks.values(), key=lambda task: catalog.get(task.name).id)
    rows = [epoch.row(task.count, task.total.astype(float), task.description) for task in known]
    return np.array([catalog.get(task.name).id for task in known]), epoch.lift(queries) @ np.array(rows).T


def same(one, other):
    assert len(one) == len(other)
    for (ids, scores), (others, theirs) in zip(one, other, strict=True):
        np.testing.assert_array_equal(ids, others)
        np.testing.assert_array_equal(scores, theirs)


def settle(rows):
    """Wait for what happens in the background."""
    if rows._builder is not None:
        rows._builder.join()


@pytest.fixture
def world():
    return World()


@pytest.fixture
def few(monkeypatch):
    """An index on disk from 50 rows on, written anew after 20 changes."""
    monkeypatch.setattr(rows_module, "FEW_ROWS", 50)
    monkeypatch.setattr(rows_module, "LEAST_CHANGES", 20)


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_scores_are_those_of_the_formula(world, few, tmp_path, kept):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    tasks = fill(catalog, world, 80)
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path if kept == "on disk" else None)
    rows.synchronise()
    assert isinstance(rows._index, BitIndex if kept == "on disk" else ExactIndex)
    assert len(rows) == 80
    queries = world.texts(world.mean(), 6)
    ids, expected = by_formula(epoch, catalog, tasks, queries)
    for (found, scores), row in zip(rows.score(queries), expected, strict=True):
        order = np.argsort(found)
        np.testing.assert_array_equal(found[order], ids)
        np.testing.assert_allclose(scores[order], row, atol=0.02, rtol=0.01)  # a row is float16
        assert (np.diff(scores) <= 0).all()
    numbers = {catalog.get(name).id: task.count for name, task in tasks.items()}
    assert dict(zip(numbers, rows.examples(np.array(list(numbers))).tolist(), strict=True)) == numbers
    assert rows.examples(np.array([10**6])).tolist() == [0]


def test_adding_replacing_and_removing_tasks_moves_no_other_score(world):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    tasks = fill(catalog, world, 40)
    rows = TaskRows(epoch, catalog, ENCODER)
    rows.synchronise()
    queries = world.texts(world.mean(), 5)
    before = [dict(zip(ids.tolist(), scores.tolist(), strict=True)) for ids, scores in rows.score(queries)]
    numbers = {name: catalog.get(name).id for name in tasks}
    fill(catalog, world, 30, first=40)
    catalog.put([record("t/00003")], encoder=ENCODER, vectors=[vectors("t/00003", world.texts(world.mean(), 90))])
    catalog.delete(["t/00004"])
    rows.synchronise()
    assert len(rows) == 69
    for old, (ids, scores) in zip(before, rows.score(queries), strict=True):
        new = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        assert numbers["t/00004"] not in new
        assert new[numbers["t/00003"]] != old[numbers["t/00003"]]
        for number in set(old) - {numbers["t/00003"], numbers["t/00004"]}:
            assert new[number] == old[number]


def test_the_order_and_the_steps_of_adding_do_not_matter(world, few, tmp_path):
    """One by one, all at once, from memory or from disk: the bits are the same."""
    epoch, catalog = epoch_of(world), MemoryCatalog()
    slow = TaskRows(epoch, catalog, ENCODER)
    for step in range(12):
        fill(catalog, world, 7, first=7 * step)
        slow.synchronise()
    queries = world.texts(world.mean(), 8)
    fresh, stored = TaskRows(epoch, catalog, ENCODER), TaskRows(epoch, catalog, ENCODER, tmp_path)
    for rows in (fresh, stored):
        rows.synchronise()
        same(rows.score(queries), slow.score(queries))
    same(stored.score(queries, 5), slow.score(queries, 5))


def test_a_scope_is_scored_alone_and_the_same(world, few, tmp_path):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    queries = world.texts(world.mean(), 4)
    for folder in (None, tmp_path):
        rows = TaskRows(epoch, catalog, ENCODER, folder)
        rows.synchronise()
        ids = np.array([3, 5, 40, 77, 900])  # there is no task 900
        for (found, scores), (every, theirs) in zip(rows.score(queries, ids=ids), rows.score(queries), strict=True):
            kept = np.isin(every, ids)
            np.testing.assert_array_equal(found, every[kept])
            np.testing.assert_array_equal(scores, theirs[kept])
        assert rows.score(queries[:1], ids=np.empty(0, dtype=np.int64))[0][0].tolist() == []


def test_only_routable_tasks_have_rows(world):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    task = vectors("a", world.texts(world.mean(), 3))
    catalog.put([record("a", adapter=False)], encoder=ENCODER, vectors=[task])
    rows = TaskRows(epoch, catalog, ENCODER)
    rows.synchronise()
    assert len(rows) == 0
    assert rows.score(world.texts(world.mean(), 2)) == [] or all(not len(ids) for ids, _ in rows.score(task.examples))
    catalog.put([record("a")], encoder=ENCODER, vectors=[task])
    rows.synchronise()
    assert len(rows) == 1
    catalog.put([record("a", adapter=False)], encoder=ENCODER, vectors=[task])
    rows.synchronise()
    assert len(rows) == 0


def test_nothing_is_read_when_nothing_has_changed(world):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 10)
    rows = TaskRows(epoch, catalog, ENCODER)
    rows.synchronise()
    catalog.asked.clear()
    rows.synchronise()
    assert catalog.asked == []


def test_an_index_on_disk_is_found_again_and_brought_up_to_date(world, few, tmp_path, caplog):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    first = TaskRows(epoch, catalog, ENCODER, tmp_path)
    first.synchronise()
    name = first._index.manifest.name
    fill(catalog, world, 6, first=80)
    catalog.delete(["t/00011"])
    second = TaskRows(epoch, catalog, ENCODER, tmp_path)
    for rows in (first, second):
        rows.synchronise()
        assert len(rows) == 85
        assert rows._index.manifest.name == name
    queries = world.texts(world.mean(), 5)
    same(first.score(queries), second.score(queries))
    assert caplog.records == []


def test_many_changes_are_written_in_the_background_and_taken_over_by_others(world, few, tmp_path):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    writer, other = (TaskRows(epoch, catalog, ENCODER, tmp_path) for _ in range(2))
    for rows in (writer, other):
        rows.synchronise()
    old = writer._index.manifest.name
    fill(catalog, world, 30, first=80)
    writer.synchronise()
    settle(writer)
    assert writer._index.manifest.name != old
    assert writer._index.changed == 0
    other.synchronise()
    settle(other)
    assert other._index.manifest.name == writer._index.manifest.name
    plain = TaskRows(epoch, catalog, ENCODER)
    plain.synchronise()
    queries = world.texts(world.mean(), 5)
    for rows in (writer, other):
        assert len(rows) == 110
        same(rows.score(queries), plain.score(queries))


def test_rows_in_memory_move_to_the_disk_when_they_are_many(world, few, tmp_path):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 40)
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path / "index")
    rows.synchronise()
    assert isinstance(rows._index, ExactIndex)
    assert not (tmp_path / "index").exists()
    queries = world.texts(world.mean(), 5)
    fill(catalog, world, 40, first=40)
    rows.synchronise()
    before = rows.score(queries)
    settle(rows)
    assert isinstance(rows._index, BitIndex)
    same(rows.score(queries), before)


@pytest.mark.parametrize("name", ["codes", "keys", "offsets", "manifest.json"])
def test_a_damaged_index_is_built_again_and_that_is_said(world, few, tmp_path, name, caplog):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path)
    rows.synchronise()
    queries = world.texts(world.mean(), 5)
    before = rows.score(queries)
    [path] = tmp_path.glob(f"*/{name}") if name == "manifest.json" else tmp_path.glob(f"*/g*/{name}")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(bytes(raw))
    again = TaskRows(epoch, catalog, ENCODER, tmp_path)
    again.synchronise()
    same(again.score(queries), before)
    assert "built again" in caplog.text
    assert again._index.manifest.name != rows._index.manifest.name


def test_a_row_that_is_damaged_under_a_reader_is_noticed_and_repaired(world, few, tmp_path, caplog):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path)
    rows.synchronise()
    queries = world.texts(world.mean(), 5)
    before = rows.score(queries)
    [path] = tmp_path.glob("*/g*/linear")
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xff\xff")
    same(rows.score(queries), before)
    assert "a row's checksum" in caplog.text
    assert len(list(tmp_path.glob("*/g*"))) == 2


def test_a_folder_that_cannot_be_written_leaves_the_rows_in_memory(world, few, tmp_path, caplog, monkeypatch):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    (tmp_path / "file").write_text("no folder")
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path / "file")
    rows.synchronise()
    plain = TaskRows(epoch, catalog, ENCODER)
    plain.synchronise()
    queries = world.texts(world.mean(), 5)
    same(rows.score(queries), plain.score(queries))
    assert "could not be written" in caplog.text
    rows.synchronise()
    assert rows._builder is None  # it is not tried again at once


def test_a_rebuild_that_fails_leaves_what_was_there(world, few, tmp_path, caplog, monkeypatch):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path)
    rows.synchronise()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BitIndex, "build", full)
    fill(catalog, world, 30, first=80)
    rows.synchronise()
    settle(rows)
    assert "No space left" in caplog.text
    plain = TaskRows(epoch, catalog, ENCODER)
    plain.synchronise()
    queries = world.texts(world.mean(), 5)
    same(rows.score(queries), plain.score(queries))


def test_an_index_of_another_catalogue_is_not_believed(world, few, tmp_path, caplog):
    epoch, catalogs = epoch_of(world), [MemoryCatalog(), MemoryCatalog()]
    queries = world.texts(world.mean(), 5)
    for number, catalog in enumerate(catalogs):
        fill(catalog, world, 80, first=1000 * number)
        rows = TaskRows(epoch, catalog, ENCODER, tmp_path)
        rows.synchronise()
        plain = TaskRows(epoch, catalog, ENCODER)
        plain.synchronise()
        same(rows.score(queries), plain.score(queries))
    assert "has the rows of its catalogue" in caplog.text


def test_each_epoch_has_a_folder_of_its_own(world, few, tmp_path):
    catalog = MemoryCatalog()
    fill(catalog, world, 80)
    for epoch in (epoch_of(world), epoch_of(world, 70)):
        TaskRows(epoch, catalog, ENCODER, tmp_path).synchronise()
    assert len(list(tmp_path.glob("*/manifest.json"))) == 2


def test_the_index_finds_what_all_rows_hold(world, tmp_path):
    """Above 5,000 tasks only the likeliest are scored: the best ones are the same."""
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 6000)
    many, plain = TaskRows(epoch, catalog, ENCODER, tmp_path), TaskRows(epoch, catalog, ENCODER)
    for rows in (many, plain):
        rows.synchronise()
    assert isinstance(many._index, BitIndex)
    assert isinstance(plain._index, ExactIndex)
    queries = np.concatenate([world.texts(world.mean(), 1) for _ in range(40)])
    pairs = list(zip(many.score(queries), plain.score(queries), strict=True))
    hits = [np.isin(some[:10], others[:10]).mean() for (some, _), (others, _) in pairs]
    assert np.mean(hits) >= 0.99
    assert [int(some[0]) for (some, _), _ in pairs] == [int(others[0]) for _, (others, _) in pairs]


def heaps(world, each):
    """A task whose examples fall into two heaps far apart."""
    return np.concatenate([world.texts(world.mean(), each), world.texts(world.mean(), each)])


def test_a_task_of_several_heaps_is_a_mixture(world, few, tmp_path):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 60)
    examples = heaps(world, 40)
    catalog.put([record("two")], encoder=ENCODER, vectors=[vectors("two", examples)])
    number = catalog.get("two").id
    queries = world.texts(world.mean(), 6)
    results = []
    for folder in (None, tmp_path):
        rows = TaskRows(epoch, catalog, ENCODER, folder)
        rows.synchronise()
        assert len(rows) == 61
        assert len(rows._index) > 61
        assert rows.examples(np.array([number])).tolist() == [80]
        results.append(rows.score(queries))
    same(*results)
    halves = [epoch.row(40, half.astype(np.float16).astype(float).sum(axis=0), None) for half in np.split(examples, 2)]
    expected = np.logaddexp(*(epoch.lift(queries) @ row for row in halves)) + np.log(0.5)
    found = [scores[ids == number][0] for ids, scores in results[0]]
    np.testing.assert_allclose(found, expected, atol=0.05, rtol=0.01)
    alone = [scores[0] for _, scores in rows.score(queries, ids=np.array([number]))]
    np.testing.assert_array_equal(alone, found)
    catalog.put([record("two")], encoder=ENCODER, vectors=[vectors("two", examples[:4])])
    rows.synchronise()
    assert len(rows) == len(rows._index) == 61


def test_threads_score_while_tasks_come_and_go(world, few, tmp_path):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 80)
    rows = TaskRows(epoch, catalog, ENCODER, tmp_path)
    rows.synchronise()
    queries = world.texts(world.mean(), 3)
    steady = {int(ids[0]): scores[0] for ids, scores in rows.score(queries, ids=np.array([1]))}
    stop, faults = threading.Event(), []

    def look():
        while not stop.is_set():
            try:
                [(ids, scores), *_] = rows.score(queries)
                assert scores[ids == 1] == rows.score(queries[:1], ids=np.array([1]))[0][1]
            except Exception as error:
                faults.append(error)
                raise

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(10):
        fill(catalog, world, 15, first=100 + 15 * step)
        rows.synchronise()
    stop.set()
    for reader in readers:
        reader.join()
    settle(rows)
    assert not faults
    assert len(rows) == 230
    assert {int(ids[0]): scores[0] for ids, scores in rows.score(queries, ids=np.array([1]))} == steady
    assert (
        Manifest.read(
            Generations(tmp_path, RowSource(epoch, catalog, ENCODER), catalog.vector_changes(ENCODER, 0).token).folder
        ).rows
        > 80
    )


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_happens_in_a_database_the_rows_are_those_of_a_fresh_start(seed):
    """Tasks are put, replaced, retired, restored, deleted; two readers with files and without look in between."""
    random, world = np.random.default_rng(seed), World(seed)
    epoch = epoch_of(world)
    queries = world.texts(world.mean(), 3)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "FEW_ROWS", 15)
        patch.setattr(rows_module, "LEAST_CHANGES", 8)
        catalog = SqliteCatalog(Path(folder) / "catalog.sqlite")
        readers = [TaskRows(epoch, catalog, ENCODER, Path(folder) / part) for part in ("index", "index")]
        readers.append(TaskRows(epoch, catalog, ENCODER))
        known: list[str] = []
        for _ in range(12):
            _happen(random, world, catalog, known)
            fresh = TaskRows(epoch, catalog, ENCODER)
            fresh.synchronise()
            for reader in readers:
                if random.random() < 0.7:
                    reader.synchronise()
                    assert len(reader) == len(fresh)
                    same(reader.score(queries), fresh.score(queries))
        for reader in readers:
            settle(reader)
        catalog.close()


def _happen(random, world, catalog, known):
    active = [name for name in known if catalog.get(name).status == "active"]
    retired = sorted(set(known) - set(active))
    what = random.integers(0, 6)
    some = [name for name in active if random.random() < 0.2]
    if what == 0 and some:
        catalog.delete(some)
        known[:] = [name for name in known if name not in some]
    elif what == 1 and some:
        catalog.retire(some)
    elif what == 2 and retired:
        catalog.restore(retired)
    else:
        names = [*some, *(f"t-{random.integers(10**6)}" for _ in range(random.integers(0, 12)))]
        tasks = [replace(task, content_hash=name) for name in names if (task := _drawn(random, world, name))]
        records = [record(name, adapter=random.random() < 0.9) for name in names]
        catalog.put(records, encoder=ENCODER, vectors=tasks)
        known += sorted(set(names) - set(known))


def _drawn(random, world, name):
    """Few examples, seldom two heaps of many, seldom none at all."""
    count = int(random.choice([0, 1, 3, 12, 30], p=[0.1, 0.3, 0.3, 0.2, 0.1]))
    examples = heaps(world, 30) if count == 30 else world.texts(world.mean(), count)
    return vectors(name, examples, world.texts(world.mean(), 1)[0] if random.random() < 0.5 else None)


def test_vectors_that_are_not_finite_are_named_and_change_nothing(world):
    catalog, epoch = MemoryCatalog(), epoch_of(world)
    fill(catalog, world, 5)
    rows = TaskRows(epoch, catalog, ENCODER)
    rows.synchronise()
    task = vectors("bad", world.texts(world.mean(), 3))
    catalog.put([record("bad")], encoder=ENCODER, vectors=[replace(task, total=task.total * np.nan)])
    with pytest.raises(InputError, match="examples of the tasks numbered"):
        rows.synchronise()
    assert len(rows) == 5
    catalog.put([record("bad")], encoder=ENCODER, vectors=[task])
    rows.synchronise()
    assert len(rows) == 6


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_a_catalogue_that_was_made_anew_is_noticed_however_new_it_is(world, few, tmp_path, kept):
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", derived=True)
    folder = tmp_path / "index" if kept == "on disk" else None
    fill(catalog, world, 80)
    epoch, queries = epoch_of(world), world.texts(world.mean(), 5)
    rows = TaskRows(epoch, catalog, ENCODER, folder)
    rows.synchronise()
    settle(rows)
    catalog.discard()
    fill(catalog, world, 70, prefix="other", first=500)
    fill(catalog, world, 1, prefix="other", first=900)  # the same number of commits as before, and one more
    rows.synchronise()
    settle(rows)
    fresh = TaskRows(epoch, catalog, ENCODER)
    fresh.synchronise()
    assert len(rows) == 71
    same(rows.score(queries), fresh.score(queries))
    again = TaskRows(epoch, catalog, ENCODER, folder)
    again.synchronise()
    same(again.score(queries), fresh.score(queries))
