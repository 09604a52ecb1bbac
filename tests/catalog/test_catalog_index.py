"""One contract for every index: sorting by hand, with scores of the same bits."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_contract import FACTORIES, WIDTH, ByHand, agrees, some_queries, some_rows

from adapterhub.catalog import ExactIndex, Queries, Rows
from adapterhub.errors import InputError

NONE = np.empty(0, dtype=np.int64)


@pytest.fixture(params=sorted(FACTORIES))
def make(request, tmp_path):
    def made(keys, rows, name="index"):
        return FACTORIES[request.param](tmp_path / name, keys, rows)

    return made


@pytest.mark.parametrize("kind", sorted(FACTORIES))
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(1, 70), st.booleans())
def test_every_step_agrees_with_sorting_by_hand(kind, seed, count, k, whole):
    random = np.random.default_rng(seed)
    keys = random.permutation(200)[:count].astype(np.int64)
    rows, queries = some_rows(random, count, whole=whole), some_queries(random, 3, whole=whole)
    hand = ByHand()
    hand.add(keys, rows)
    with tempfile.TemporaryDirectory() as folder:
        index = FACTORIES[kind](Path(folder) / "index", keys, rows)
        for _ in range(4):
            agrees(index, hand, queries, k)
            agrees(index, hand, queries, k, random.permutation(250)[:50].astype(np.int64))
            fresh = random.permutation(200)[: random.integers(0, 20)].astype(np.int64)
            more = some_rows(random, len(fresh), whole=whole)
            left = np.setdiff1d(np.array(sorted(hand.rows), dtype=np.int64), fresh)
            gone = random.permutation(left)[: random.integers(0, 10)]
            index.update(fresh, more, gone)
            hand.add(fresh, more)
            hand.remove(gone)
            assert index.has(np.arange(250)).tolist() == [key in hand.rows for key in range(250)]
            groups = [hand.rows[key][1] if key in hand.rows else -1 for key in range(250)]
            assert index.groups(np.arange(250)).tolist() == groups
        agrees(index, hand, queries, 200)


def test_a_row_scores_the_same_whatever_other_rows_there_are(make):
    random = np.random.default_rng(1)
    rows, queries = some_rows(random, 900, 256), some_queries(random, 5, 256)
    keys = np.arange(900)
    whole = make(keys, rows).search(queries, 900)
    alone = make(keys[7:8], rows.take(slice(7, 8)), "alone").search(queries, 1)
    for (found, scores), (_, score) in zip(whole, alone, strict=True):
        assert scores[found == 7] == score


def test_equal_rows_are_put_in_the_order_of_keys_wherever_they_lie(make):
    random = np.random.default_rng(0)
    one = some_rows(random, 1)
    keys = random.permutation(900).astype(np.int64)
    index = make(keys[:450], one.take(np.zeros(450, dtype=np.intp)))
    index.add(keys[450:], one.take(np.zeros(450, dtype=np.intp)))
    for found, scores in index.search(some_queries(random, 2), 7):
        assert found.tolist() == list(range(7))
        assert len(set(scores.tolist())) == 1


def test_large_numbers_are_scored_exactly(make):
    """Where float32 rounds by more than the scores differ, and near its end."""
    random = np.random.default_rng(2)
    rows = some_rows(random, 700)
    rows = Rows((60000 * np.sign(rows.linear)).astype(np.float16), rows.group, rows.offset)
    queries = some_queries(random, 3)
    queries = Queries(1e29 * queries.linear, queries.groups)
    hand = ByHand()
    hand.add(np.arange(700), rows)
    agrees(make(np.arange(700), rows), hand, queries, 5)


def test_what_is_wrong_is_refused_and_changes_nothing(make):
    random = np.random.default_rng(3)
    rows, queries, keys = some_rows(random, 4), some_queries(random, 2), np.array([1, 3, 5, 7])
    index = make(keys, rows)
    before = index.search(queries, 4)
    with pytest.raises(InputError, match=r"among the 4 of the index. Found \[2\]"):
        index.remove(np.array([1, 2]))
    with pytest.raises(InputError, match="Found one twice"):
        index.add(np.array([9, 9, 10, 11]), rows)
    with pytest.raises(InputError, match="Found one twice"):
        index.update(keys, rows, np.array([1]))
    with pytest.raises(InputError, match=r"at least 0\. Found -1"):
        index.add(np.array([-1, 8, 9, 10]), rows)
    with pytest.raises(InputError, match="int64"):
        index.add(np.array([0.5, 8, 9, 10]), rows)
    with pytest.raises(InputError, match=rf"\(3, {WIDTH}\) numbers"):
        index.add(np.array([8, 9, 10]), rows)
    with pytest.raises(InputError, match="Found float32, int64"):
        index.add(keys, Rows(rows.linear.astype(np.float32), rows.group.astype(np.int64), rows.offset))
    for place in ("linear", "offset"):
        bad = Rows(rows.linear.copy(), rows.group, rows.offset.copy())
        getattr(bad, place)[0] = np.nan
        with pytest.raises(InputError, match="finite"):
            index.add(keys, bad)
    with pytest.raises(InputError, match="Groups should be at least 0"):
        index.add(keys, Rows(rows.linear, rows.group - 9, rows.offset))
    with pytest.raises(InputError, match="k=0"):
        index.search(queries, 0)
    with pytest.raises(InputError, match=rf"\(b, {WIDTH}\)"):
        index.search(some_queries(random, 2, WIDTH + 1), 1)
    with pytest.raises(InputError, match="finite"):
        index.search(Queries(queries.linear * np.nan, queries.groups), 1)
    with pytest.raises(InputError, match="finite"):
        index.search(Queries(queries.linear, queries.groups * 1e31), 1)
    index.add(np.array([11]), Rows(rows.linear[:1], np.array([3], dtype=np.int32), rows.offset[:1]))
    with pytest.raises(InputError, match="group 3"):
        index.search(Queries(queries.linear, queries.groups[:, :3]), 1)
    index.remove(np.array([11]))
    assert str(index.search(queries, 4)) == str(before)


def test_no_queries_and_no_rows(make):
    random = np.random.default_rng(4)
    index = make(NONE, Rows.none(WIDTH))
    assert [len(found) for found, _ in index.search(some_queries(random, 3), 5)] == [0, 0, 0]
    assert index.search(some_queries(random, 0), 5) == []
    index.add(np.array([4]), some_rows(random, 1))
    assert index.search(some_queries(random, 1), 5, NONE)[0][0].tolist() == []
    index.remove(np.array([4]))
    assert len(index) == 0


def test_a_width_has_a_number():
    with pytest.raises(InputError, match="width 0"):
        ExactIndex(0)


def test_searches_of_other_threads_see_updates_whole(make):
    """Two rows are always replaced together; no search finds one of them new and the other old."""
    random = np.random.default_rng(5)
    rows = some_rows(random, 600)
    index = make(np.arange(600), rows)
    query = Queries(np.zeros((1, WIDTH)), np.zeros((1, 4)))
    stop = threading.Event()
    torn: list[object] = []

    def look():
        while not stop.is_set():
            found, scores = index.search(query, 2, np.array([10, 700]))[0]
            if len(found) > 1 and scores[0] != scores[1]:
                torn.append((found, scores))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(300):
        pair = some_rows(random, 2)
        pair = Rows(pair.linear, pair.group, np.full(2, turn, dtype=np.float32))
        index.update(np.array([10, 700]), pair, NONE)
        if turn % 50 == 49:
            index.update(NONE, Rows.none(WIDTH), np.array([10, 700]))
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn
