"""The exact scan against sorting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.catalog import ExactIndex, VectorIndex
from adapterhub.errors import InputError


def by_hand(rows: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[tuple[float, str]]:
    scores = [
        (-float(np.float32(row.astype(np.float64) @ query.astype(np.float64))), name) for name, row in rows.items()
    ]
    return [(-score, name) for score, name in sorted(scores)[:k]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 45), st.booleans())
def test_search_equals_sorting_by_hand(seed: int, count: int, k: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers make many ties.
    rows = rng.integers(-1, 2, (count, 3)).astype(np.float32) if whole else rng.standard_normal((count, 3), np.float32)
    queries = rng.integers(-1, 2, (4, 3)).astype(np.float32) if whole else rng.standard_normal((4, 3), np.float32)
    names = [f"t{n}" for n in rng.permutation(count)]
    index: VectorIndex = ExactIndex(3)
    half = count // 2
    index.add(names[:half], rows[:half])
    index.add(names[half:], rows[half:])
    known = dict(zip(names, rows, strict=True))
    gone = names[::5]
    index.remove(gone)
    for name in gone:
        del known[name]
    for ids in (None, sorted(known)[::2]):
        among = known if ids is None else {name: known[name] for name in ids}
        scores, found = index.search(queries, k, ids)
        assert scores.shape == (4, min(k, len(among)))
        assert scores.dtype == np.float32
        for row in range(4):
            assert list(zip(scores[row].tolist(), found[row], strict=True)) == by_hand(among, queries[row], k)


def test_equal_rows_are_put_in_the_order_of_ids_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    row = rng.standard_normal(384).astype(np.float32)
    names = [f"t{n:05}" for n in range(9000)]
    index = ExactIndex(384)
    order = rng.permutation(9000)
    index.add([names[n] for n in order], np.tile(row, (9000, 1)))
    scores, found = index.search(rng.standard_normal((2, 384)).astype(np.float32), 7)
    assert found == [names[:7]] * 2
    assert (scores == scores[:, :1]).all()


def test_adding_replaces_and_moves_no_other_row() -> None:
    index = ExactIndex(2)
    index.add(["a", "b"], np.array([[1, 0], [0, 1]], dtype=np.float32))
    index.add(["c", "a"], np.array([[2, 2], [0, 5]], dtype=np.float32))
    scores, found = index.search(np.eye(2, dtype=np.float32), 3)
    assert found == [["c", "a", "b"], ["a", "c", "b"]]
    assert scores.tolist() == [[2, 0, 0], [5, 2, 1]]
    assert len(index) == 3
    assert "a" in index
    assert "d" not in index


def test_removing_all_leaves_an_empty_index() -> None:
    index = ExactIndex(2)
    index.add(["a", "b"], np.eye(2, dtype=np.float32))
    index.remove(["a", "b"])
    scores, found = index.search(np.eye(2, dtype=np.float32), 3)
    assert scores.shape == (2, 0)
    assert found == [[], []]
    assert index.search(np.eye(2, dtype=np.float32)[:0], 3)[0].shape == (0, 0)


def test_what_is_wrong_is_refused_and_changes_nothing() -> None:
    index = ExactIndex(2)
    eye = np.eye(2, dtype=np.float32)
    index.add(["alpha", "b"], eye)
    with pytest.raises(InputError, match="Did you mean `alpha`"):
        index.remove(["b", "alpho"])
    with pytest.raises(InputError, match="Did you mean `alpha`"):
        index.search(eye, 1, ["alpho"])
    with pytest.raises(InputError, match="k=0"):
        index.search(eye, 0)
    with pytest.raises(InputError, match=r"shape \(n, 2\)"):
        index.search(np.ones((1, 3), dtype=np.float32), 1)
    with pytest.raises(InputError, match="finite"):
        index.search(np.array([[np.nan, 0]], dtype=np.float32), 1)
    with pytest.raises(InputError, match="finite"):
        index.add(["c"], np.array([[np.inf, 0]], dtype=np.float32))
    with pytest.raises(InputError, match="1 different"):
        index.add(["c", "c"], eye)
    with pytest.raises(InputError, match="for 2 rows"):
        index.add(["c"], eye)
    with pytest.raises(InputError, match="dimension 0"):
        ExactIndex(0)
    assert len(index) == 2
    assert index.search(eye, 2)[1] == [["alpha", "b"], ["b", "alpha"]]
