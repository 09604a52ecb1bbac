"""One contract for every catalogue: what it is asked, what it answers, several threads and processes at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from catalog_contract import (
    KINDS,
    WIDTH,
    Model,
    apply,
    assert_agrees,
    assert_hears,
    heard,
    joined,
    narrow,
    opener,
    place,
    row,
    same,
)

from adapterhub.catalog import Catalog, Scope, TaskVectors, TaskVersion, open_catalog
from adapterhub.errors import InputError, TaskNotFoundError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["adapterhub.catalog"])


@pytest.fixture(params=KINDS)
def again(request: pytest.FixtureRequest) -> Iterator[Callable[[], Catalog]]:
    with opener(request.param) as opened:
        yield opened


@pytest.fixture
def catalog(again: Callable[[], Catalog]) -> Catalog:
    return again()


def test_a_catalogue_is_told_from_one_that_takes_its_place(again: Callable[[], Catalog]) -> None:
    catalog = again()
    token = catalog.vector_changes("e", 0).token
    assert token
    catalog.put([row("a")], encoder="e", vectors=[heard("a")])
    assert catalog.vector_changes("e", 0).token == again().vector_changes("e", 5).token == token


def test_an_empty_one_answers_everything(catalog: Catalog) -> None:
    assert_agrees(catalog, Model())
    assert catalog.get("a") is None
    assert catalog.names_of(np.empty(0, dtype=np.int64)) == []
    assert catalog.versions("a") == []
    assert_hears(catalog, Model(), "e")
    changes = catalog.vector_changes("e", 0)
    assert (changes.seq, changes.present.tolist(), changes.gone.tolist()) == (0, [], [])
    assert catalog.verify() == []


def test_rows_come_back_as_they_were_put(catalog: Catalog, again: Callable[[], Catalog]) -> None:
    odd = row(
        "a/b-2", "hf://org/repo@0f/x", "f" * 64, sha256="0aB", source="a:1|b:2", base_model="org/ü", tags=("y", "x'")
    )
    assert catalog.put([row("b", None), odd]) == 1
    assert catalog.put([row("b", "v2", status="retired")]) == 2
    one, two = catalog.get("b"), catalog.get("a/b-2")
    assert one is not None
    assert two is not None
    assert sorted([one.id, two.id]) == [1, 2]
    assert dataclasses.replace(two, id=0) == dataclasses.replace(odd, seq=1)
    assert dataclasses.replace(one, id=0) == dataclasses.replace(row("b", "v2", status="retired"), seq=2)
    assert again().get("b") == one
    assert catalog.versions("b") == [TaskVersion("v2", f"{'v2':0>64}", 2)]
    assert two == catalog.records()[0]


def test_a_branch_is_the_name_and_what_is_below_it(catalog: Catalog) -> None:
    names = ["a", "a-b", "a-b/c", "a/b", "a/b-c", "a/b/c", "a/b/c/d", "a/c", "a0", "ab", "b", "c/d/e"]
    catalog.put([row(name) for name in names])
    catalog.put([row(name, status="retired") for name in ("a/r", "a/b/r", "r/r")])
    for branch in ("", "a", "a/b", "a/b/c/d", "a/", "z", "c"):
        expected = sorted(name for name in names if not branch or name == branch or name.startswith(branch + "/"))
        assert catalog.names(branch) == expected
        for after in ("", "a", "a/", "a/b", "a/b/c", "b", "zz"):
            for limit in (None, 0, 1, 3):
                part = [name for name in expected if name > after][:limit]
                assert catalog.names(branch, after=after, limit=limit) == part
                assert [record.name for record in catalog.records(branch, after=after, limit=limit)] == part
    assert catalog.children() == [("a", 6), ("a-b", 2), ("a0", 1), ("ab", 1), ("b", 1), ("c", 1)]
    assert catalog.children("a") == [("a/b", 3), ("a/b-c", 1), ("a/c", 1)]
    assert catalog.children("c") == [("c/d", 1)]
    assert catalog.children("b") == catalog.children("r") == catalog.children("none") == []


def test_retired_and_restored(catalog: Catalog) -> None:
    catalog.put([row("a", tags=("x",)), row("b")], encoder="e", vectors=[heard("a"), heard("b", 3)])
    before = catalog.get("a")
    assert catalog.retire(["a"]) == 2
    assert catalog.names() == ["b"]
    assert catalog.ids(Scope(tags=("x",))).tolist() == []
    assert [item.name for item in catalog.vectors("e")] == ["b"]
    assert catalog.get("a") == dataclasses.replace(before, status="retired", seq=2)
    assert catalog.records(retired=True) == [catalog.get("a")] == catalog.records("a", limit=1, retired=True)
    assert catalog.records(retired=True, after="a") == catalog.records("b", retired=True) == []
    assert catalog.restore(["a"]) == 3
    assert catalog.records(retired=True) == []
    assert catalog.get("a") == dataclasses.replace(before, seq=3)
    assert [item.name for item in catalog.vectors("e")] == ["a", "b"]


@pytest.mark.parametrize("action", ["retire", "restore", "delete"])
def test_an_unknown_name_changes_nothing(catalog: Catalog, action: str) -> None:
    catalog.put([row("group/abc")])
    with pytest.raises(TaskNotFoundError, match="Did you mean `group/abc`"):
        getattr(catalog, action)(["group/abc", "group/abd"])
    assert (catalog.names(), catalog.seq) == (["group/abc"], 1)


def test_a_number_is_kept_and_never_given_again(catalog: Catalog) -> None:
    catalog.put([row("a"), row("b")])
    numbers = {record.name: record.id for record in catalog.records()}
    catalog.retire(["a"])
    catalog.put([row("a", "v2"), row("b", None, "other")])
    assert {record.name: record.id for record in catalog.records()} == numbers
    catalog.delete(["b"])
    catalog.put([row("b"), row("c")])
    fresh = {record.name: record.id for record in catalog.records()}
    assert fresh["a"] == numbers["a"]
    assert len({*fresh.values(), *numbers.values()}) == 4
    with pytest.raises(InputError, match=str(numbers["b"])):
        catalog.names_of(np.array([numbers["a"], numbers["b"]]))
    assert catalog.names_of(np.array([fresh["c"], fresh["a"], fresh["c"]])) == ["c", "a", "c"]


def test_changes_carry_rows_and_tombstones(catalog: Catalog) -> None:
    catalog.put([row("b"), row("a"), row("c")])
    seen = catalog.changes(0)
    assert (seen.seq, [record.name for record in seen.records], seen.deleted) == (1, ["a", "b", "c"], ())
    catalog.delete(["a", "b"])
    catalog.put([row("a", "v9")])
    news = catalog.changes(seen.seq)
    assert (news.seq, [record.version for record in news.records], news.deleted) == (3, ["v9"], ("b",))
    assert [item.version for item in catalog.versions("a")] == ["v9"]
    assert catalog.changes(3) == dataclasses.replace(news, records=(), deleted=())


def test_the_history_keeps_the_first_commit_of_each_version(catalog: Catalog) -> None:
    for version in ("v2", "v1", "v2", None):
        catalog.put([row("a", version)])
    assert [(item.version, item.seq) for item in catalog.versions("a")] == [("v2", 1), ("v1", 2)]


def test_vectors_are_kept_bit_for_bit(catalog: Catalog) -> None:
    rng = np.random.default_rng(0)
    items = [
        heard("a", 1),
        heard("b", 0),
        heard("c", 0, False),
        heard("d", 1, False),
        heard("e", 20),
        heard("f", 2, False),
    ]
    raw = rng.standard_normal((3, WIDTH)).astype(np.float32)  # given as they are, stored and given back rounded
    unrounded = TaskVectors("g", 3, raw.sum(axis=0), raw[0], raw)
    items.append(TaskVectors.of("g", raw[0], raw))
    rows = [row(item.name) for item in items]
    catalog.put(rows, encoder="e", vectors=[*items[:-1], unrounded])
    expected = [dataclasses.replace(item, content_hash="c") for item in items]
    found = catalog.vectors("e")
    assert all(same(one, two) for one, two in zip(found, expected, strict=True))
    by_id = {item.id: narrow(item) for item in found}
    for size in (1, 3, 7, 100):
        blocks = list(catalog.blocks("e", size=size))
        assert max(map(len, blocks)) <= size
        assert list(joined(blocks).items()) == sorted(by_id.items())
    some = np.array([found[4].id, found[1].id, found[4].id, 999])
    assert list(joined(catalog.blocks("e", ids=some))) == sorted({found[4].id, found[1].id})
    assert [item.name for item in catalog.vectors("e", ids=some)] == ["b", "e"]
    assert list(catalog.blocks("e", ids=np.empty(0, dtype=np.int64))) == []
    block = next(catalog.blocks("e"))
    assert block.totals.dtype == block.descriptions.dtype == np.float32
    assert (block.ids.dtype, block.counts.dtype, block.described.dtype) == (np.int64, np.int64, np.bool_)


def test_a_row_more_changes_no_other_vector(catalog: Catalog) -> None:
    catalog.put([row("a")], encoder="e", vectors=[heard("a", 3)])
    before = catalog.vectors("e")[0]
    catalog.put([row("b")], encoder="e", vectors=[heard("b", 2)])
    assert same(catalog.vectors("e")[0], before)


def test_vectors_of_another_content_are_dropped_or_not_taken(catalog: Catalog) -> None:
    catalog.put([row("a"), row("b"), row("c")])
    assert [record.name for record in catalog.missing("e")] == ["a", "b", "c"]
    catalog.put_vectors(
        "e",
        [heard("a", content="c"), heard("b", content="old"), heard("gone", content="c"), heard("c", 4, content="c")],
    )
    assert [record.name for record in catalog.missing("e")] == ["b"]
    catalog.put([row("a", "v2"), row("c", content="new")])
    assert [record.name for record in catalog.missing("e")] == ["b", "c"]
    assert [item.name for item in catalog.vectors("e")] == ["a"]
    assert [record.name for record in catalog.missing("e", limit=1)] == ["b"]
    assert catalog.verify() == []


def test_which_rows_of_an_index_are_out_of_date(catalog: Catalog) -> None:
    def since(seq: int) -> tuple[list[str], list[int]]:
        changes = catalog.vector_changes("e", seq)
        assert changes.seq == catalog.seq
        return catalog.names_of(changes.present), changes.gone.tolist()

    catalog.put(
        [row("a"), row("b", None), row("c"), row("d")], encoder="e", vectors=[heard("a"), heard("b"), heard("c")]
    )
    number = {record.name: record.id for record in catalog.records()}
    assert since(0) == (["a", "c"], sorted([number["b"], number["d"]]))
    assert since(catalog.seq) == ([], [])
    seq = catalog.put_vectors("e", [heard("d", 2, content="c"), heard("b", 2, content="c")])
    assert since(seq - 1) == (["d"], [number["b"]])
    seq = catalog.put([row("b", "v1")])
    assert since(seq - 1) == (["b"], [])
    seq = catalog.retire(["a"])
    assert since(seq - 1) == ([], [number["a"]])
    seq = catalog.put([row("c", content="new")])
    assert since(seq - 1) == ([], [number["c"]])
    seq = catalog.delete(["d"])
    assert since(seq - 1) == ([], [number["d"]])
    assert since(0) == (["b"], sorted(number[name] for name in "acd"))


def test_a_catalogue_holds_one_encoder(catalog: Catalog) -> None:
    assert catalog.encoder is None
    catalog.put([row("a"), row("b")], encoder="e", vectors=[heard("a")])
    assert catalog.encoder == "e"
    calls = [
        lambda: catalog.put([row("c")], encoder="f", vectors=[heard("c")]),
        lambda: catalog.put_vectors("f", [heard("a", content="c")]),
        lambda: catalog.missing("f"),
        lambda: catalog.vectors("f"),
        lambda: list(catalog.blocks("f")),
        lambda: catalog.vector_changes("f", 0),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"holds vectors of e. Found f.*reindex"):
            call()
    assert (catalog.seq, catalog.names()) == (1, ["a", "b"])
    before = catalog.vector_changes("e", 0)
    seq = catalog.bind("f")
    assert (seq, catalog.encoder) == (2, "f")
    assert [record.name for record in catalog.missing("f")] == ["a", "b"]
    assert catalog.vectors("f") == []
    gone = catalog.vector_changes("f", before.seq).gone
    assert set(before.present.tolist()) <= set(gone.tolist())
    wider = np.ones((1, WIDTH + 1), dtype=np.float32)
    catalog.put_vectors("f", [TaskVectors.of("a", wider[0], wider, "c")])  # another encoder may have another width
    catalog.bind("e")
    assert [record.name for record in catalog.missing("e")] == ["a", "b"]
    assert catalog.verify() == []


def test_vectors_of_one_encoder_have_one_width(catalog: Catalog) -> None:
    catalog.put([row("a"), row("b")], encoder="e", vectors=[heard("a")])
    wider = np.ones((1, WIDTH + 1), dtype=np.float32)
    with pytest.raises(InputError, match=str(WIDTH + 1)):
        catalog.put_vectors("e", [TaskVectors.of("b", None, wider, "c")])
    assert [record.name for record in catalog.missing("e")] == ["b"]


WRONG = {
    "nan": {"examples": np.full((2, WIDTH), np.nan, dtype=np.float32)},
    "large": {"description": np.full(WIDTH, 1e6, dtype=np.float32)},
    "sum": {"total": np.full(WIDTH, np.inf, dtype=np.float32)},
    "shape": {"examples": np.ones((2, WIDTH + 1), dtype=np.float32)},
    "count": {"count": 3},
    "description": {"description": np.ones(WIDTH - 1, dtype=np.float32)},
    "flat": {"total": np.float32(1)},
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_vectors_are_refused_and_nothing_is_stored(catalog: Catalog, fault: str) -> None:
    wrong = dataclasses.replace(heard("b/wrong", 2, content="c"), **WRONG[fault])
    with pytest.raises(InputError, match=r"^b/wrong: .*Found"):
        catalog.put([row("a"), row("b/wrong")], encoder="e", vectors=[heard("a"), wrong])
    assert (catalog.seq, catalog.names(), catalog.encoder) == (0, [], None)
    catalog.put([row("a"), row("b/wrong")])
    with pytest.raises(InputError, match=r"^b/wrong: .*Found"):
        catalog.put_vectors("e", [heard("a", content="c"), wrong])
    assert (catalog.seq, catalog.vectors("e")) == (1, [])


def test_all_faults_are_told_at_once(catalog: Catalog) -> None:
    rows = [row("../up"), row("Ab"), row("twice"), row("twice"), row("nul", source="\0"), row("lone", card="\ud800")]
    with pytest.raises(InputError) as told:
        catalog.put([*rows, row("good")], encoder="e", vectors=[heard("none"), heard("good", content="stale")])
    for part in ("../up", "Ab", "twice", "nul", "lone", "none", "stale"):
        assert part in str(told.value)
    assert (catalog.seq, catalog.names()) == (0, [])
    with pytest.raises(InputError, match="content_hash"):
        catalog.put_vectors("e", [heard("good")])
    with pytest.raises(InputError, match="encoder"):
        catalog.put([row("good")], vectors=[heard("good")])


def test_a_large_commit_with_old_and_new_rows(catalog: Catalog) -> None:
    model = Model()
    for start in (0, 1000):
        rows = [
            row(f"g{n % 7}/t{n}", "v1" if n % 5 else None, tags=("x",) * (n % 2)) for n in range(start, start + 2000)
        ]
        vectors = [heard(one.name, n % 3) for n, one in enumerate(rows) if n % 4]
        catalog.put(rows, encoder="e", vectors=vectors)
        model.put(rows, "e", vectors)
    assert catalog.count() == 3000
    numbers = [record.id for record in catalog.records()]
    assert len(set(numbers)) == 3000
    assert len(catalog.ids(Scope(tags=("x",)))) == len(
        [one for one in model.tasks.values() if one.record.tags and one.routable]
    )
    assert len(joined(catalog.blocks("e", size=500))) == len(model.present())
    assert catalog.verify() == []


def test_writers_at_once_get_numbers_in_the_order_of_their_commits(again: Callable[[], Catalog]) -> None:
    shared, numbers = again(), []

    def write(worker: int) -> None:
        catalog = shared if worker % 2 else again()
        numbers.extend(catalog.put([row(f"w{worker}/t{task}")]) for task in range(5))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))
    assert shared.count() == 20
    assert sorted(record.id for record in shared.records()) == list(range(1, 21))


def write_many(url: str, worker: int, count: int) -> None:
    catalog = open_catalog(url)
    for task in range(count):
        name = f"w{worker}/t{task}"
        catalog.put([row(name), row(f"w{worker}/last")], encoder="e", vectors=[heard(name)])
        if task % 3 == 2:
            catalog.delete([name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_follows_several_processes_misses_nothing(kind: str) -> None:
    with place(kind) as url:
        catalog, seen, index, at, number = open_catalog(url), {}, {}, 0, 0
        catalog.put([row("first")], encoder="e", vectors=[heard("first")])
        workers = [CONTEXT.Process(target=write_many, args=(url, worker, 15)) for worker in range(3)]
        for worker in workers:
            worker.start()
        running = True
        while running:
            running = any(worker.is_alive() for worker in workers)
            changes = catalog.changes(at)
            assert changes.seq >= at
            at = changes.seq
            seen |= {record.name: record for record in changes.records}
            for name in changes.deleted:
                seen.pop(name, None)
            news = catalog.vector_changes("e", number)
            for key in news.gone.tolist():
                index.pop(key, None)
            index.update(joined(catalog.blocks("e", ids=news.present)))
            number = news.seq
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert sorted(seen) == catalog.names()
        assert [seen[record.name] for record in catalog.records()] == catalog.records()
        apply(index, catalog, catalog.vector_changes("e", number), "e")
        assert index == joined(catalog.blocks("e"))
        assert catalog.verify() == []
        catalog.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_object_may_be_used_after_a_fork(catalog: Catalog) -> None:
    catalog.put([row("parent")])
    child = os.fork()
    if child == 0:
        try:
            fine = catalog.names() == ["parent"] and catalog.put([row("child")]) == 2
        except BaseException:
            fine = False
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert catalog.put([row("parent-again")]) == 3
    assert catalog.names() == ["child", "parent", "parent-again"]
    assert catalog.verify() == []


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "sqlite://", "sqlite:///", "folder", "postgres:/x", "http://user:secret@host/db"]
)
def test_an_unknown_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(InputError, match=r"sqlite:///relative\.db") as told:
        open_catalog(url)
    assert "secret" not in str(told.value)


def test_paths_in_urls() -> None:
    assert str(open_catalog("sqlite:///a/b.db").path) == "a/b.db"
    assert str(open_catalog("sqlite:////a/b.db").path) == "/a/b.db"
    assert open_catalog("sqlite:////a/b.db").url == "sqlite:////a/b.db"
