"""The index of graphs: what it finds beside the exact scan, and its file."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from index_contract import clustered, recall, some_queries, some_rows

from adapterhub.catalog import ExactIndex, FaissIndex
from adapterhub.catalog import _faiss as module
from adapterhub.errors import IntegrityError, MissingExtraError


@pytest.fixture(scope="module")
def many():
    module._FEW, few = 500, module._FEW
    keys, rows, queries = clustered(0, 8000)
    exact = ExactIndex(64)
    exact.add(keys, rows)
    yield FaissIndex(keys, rows), exact, keys, rows, queries
    module._FEW = few


def test_nearly_all_of_the_best_are_found_with_their_exact_scores(many):
    index, exact, _, _, queries = many
    found, expected = index.search(queries, 10), exact.search(queries, 10)
    assert recall(found, expected) >= 0.98
    for (keys, scores), (others, theirs) in zip(found, expected, strict=True):
        _, mine, other = np.intersect1d(keys, others, return_indices=True)
        np.testing.assert_array_equal(scores[mine], theirs[other])


def test_a_subset_is_searched_exactly(many):
    index, exact, keys, _, queries = many
    for subset in (keys[::100], keys[2000:2500], keys[keys % 2 == 0]):
        for found, expected in zip(index.search(queries, 10, subset), exact.search(queries, 10, subset), strict=True):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_what_went_is_not_found_and_what_came_is(many):
    _, _, keys, rows, queries = many
    index, exact = FaissIndex(keys, rows), ExactIndex(64)
    exact.add(keys, rows)
    gone = np.unique([found[:3] for found, _ in exact.search(queries, 3)])
    new, fresh = 3 * np.arange(500) + 1, clustered(3, 500)[1]
    for one in (index, exact):
        one.update(new, fresh, gone)
    found, expected = index.search(queries, 10), exact.search(queries, 10)
    assert not np.isin(np.concatenate([some for some, _ in found]), gone).any()
    assert recall(found, expected) >= 0.98


def test_rows_of_rare_groups_are_all_scored_and_displace_no_others(monkeypatch):
    monkeypatch.setattr(module, "_FEW", 1000)
    keys, rows, queries = clustered(1, 6000)
    kept = np.flatnonzero((rows.group == 40) | (rows.group == 10) | (np.arange(6000) % 2 == 0))
    keys, rows = keys[kept], rows.take(kept)
    assert len({group for group in np.unique(rows.group) if (rows.group == group).sum() < 1000}) == 3
    index, exact = FaissIndex(keys, rows), ExactIndex(64)
    exact.add(keys, rows)
    assert recall(index.search(queries, 10), exact.search(queries, 10)) >= 0.98


def test_a_damaged_file_is_an_error_before_the_library_sees_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FEW", 10)
    random = np.random.default_rng(0)
    rows, queries = some_rows(random, 300), some_queries(random, 3)
    index, path = FaissIndex(np.arange(300), rows), tmp_path / "graphs"
    index.save(path)
    assert str(FaissIndex.open(path).search(queries, 5)) == str(index.search(queries, 5))
    raw = path.read_bytes()
    monkeypatch.setattr(module, "_faiss", lambda: pytest.fail("the library was asked"))
    places = [*range(0, 30), *random.integers(30, len(raw), 60).tolist()]
    flipped = [raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :] for at in places]
    for damaged in (*flipped, b"", raw[:10], raw[:-1], raw + b"\0", bytes(len(raw)), raw[: len(raw) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="Build the index again"):
            FaissIndex.open(path)
    path.unlink()
    with pytest.raises(IntegrityError, match="Build the index again"):
        FaissIndex.open(path)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"adapterhub\[faiss\]"):
        FaissIndex(np.arange(3), some_rows(np.random.default_rng(0), 3))
