"""Rows, queries, and the score between them: one definition for every index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._records import Ids
from adapterhub.errors import InputError

__all__ = [
    "NO_KEYS",
    "Doubles",
    "Found",
    "Queries",
    "Rows",
    "best",
    "check_groups",
    "check_keys",
    "check_queries",
    "check_there",
    "check_update",
    "exact_scores",
    "length_of",
]

Doubles = NDArray[np.float64]
Found = tuple[Ids, Doubles]

NO_KEYS: Ids = np.empty(0, dtype=np.int64)
_AT_ONCE = 1 << 22  # float32 products held at once
_CHUNK = 4096
_LARGEST = 1e30  # so that no product overflows in float32
_FEW = 256  # so few rows are scored without a first look


@dataclass(frozen=True)
class Rows:
    """Rows of an index.

    Args:
        linear: (n, r) float16; inside an index also float32, of numbers that are float16.
        group: (n,) int32, at least 0: which of the numbers that a query brings for groups is added.
        offset: (n,) float32.
    """

    linear: NDArray[np.floating]
    group: NDArray[np.int32]
    offset: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.linear)

    def take(self, places: NDArray[np.intp] | slice) -> Rows:
        """Some of the rows.

        Args:
            places: Which.
        """
        return Rows(self.linear[places], self.group[places], self.offset[places])

    @classmethod
    def none(cls, width: int) -> Rows:
        """No rows.

        Args:
            width: Numbers r of a row.
        """
        return cls(np.empty((0, width), np.float16), np.empty(0, np.int32), np.empty(0, np.float32))


@dataclass(frozen=True)
class Queries:
    """Queries to an index. The score of a row is <query.linear, row.linear> + query.groups[row.group] + row.offset.

    It is summed in float64, each row by itself, so that a row's score has the same bits whatever other rows there are.

    Args:
        linear: (b, r) float64.
        groups: (b, g) float64, what a query adds to the rows of each group.
    """

    linear: Doubles
    groups: Doubles

    def __len__(self) -> int:
        return len(self.linear)


def best(keys: Ids, rows: Rows, queries: Queries, k: int, longest: float | None = None) -> list[Found]:
    """The rows with the largest scores, found by scoring them all.

    Args:
        keys: (n,), different.
        rows: n rows.
        queries: b queries.
        k: How many for each.
        longest: A bound on the lengths of the linear parts, where it is known.

    Returns:
        For each query min(k, n) keys and scores, best first, ties by key.
    """
    check_groups(int(rows.group.max(initial=-1)), queries)
    k = min(k, len(keys))
    if not k:
        return [(NO_KEYS, np.empty(0)) for _ in range(len(queries))]
    if len(rows) <= max(_FEW, 2 * k):
        return [_first(keys, rows, query, groups, k) for query, groups in _each(queries)]
    linear = rows.linear.astype(np.float32, copy=False)
    bound = length_of(linear) if longest is None else longest
    found: list[Found] = []
    step = max(1, _AT_ONCE // len(rows))
    for start in range(0, len(queries), step):
        products = queries.linear[start : start + step].astype(np.float32) @ linear.T  # (step, n)
        for at, product in enumerate(products, start):
            query, groups = queries.linear[at], queries.groups[at]
            likely = _likely(product, rows, query, groups, bound, k)
            found.append(_first(keys[likely], rows.take(likely), query, groups, k))
    return found


def length_of(linear: NDArray[np.floating]) -> float:
    """The largest Euclidean length of rows; 0 without rows.

    Args:
        linear: (n, r).
    """
    wide = linear.astype(np.float32, copy=False)
    return float(np.sqrt(np.einsum("ij,ij->i", wide, wide).max(initial=0)))


def _likely(
    product: NDArray[np.float32], rows: Rows, query: Doubles, groups: Doubles, longest: float, k: int
) -> NDArray[np.intp]:
    """Places of all rows that may be among the best k, by products rounded to float32."""
    rough = product + (groups[rows.group] + rows.offset)
    # Rounding the query, each product and each partial sum moves a float32 sum of r terms by at most this.
    error = (len(query) + 8) * 2.0**-23 * float(np.linalg.norm(query)) * longest
    cut = np.partition(rough, len(rough) - k)[len(rough) - k] - 2 * error
    return np.flatnonzero(rough >= cut)


def _first(keys: Ids, rows: Rows, query: Doubles, groups: Doubles, k: int) -> Found:
    scores = exact_scores(rows, query, groups)
    order = np.lexsort((keys, -scores))[:k]
    return keys[order], scores[order]


def exact_scores(rows: Rows, query: Doubles, groups: Doubles) -> Doubles:
    """Scores (n,) of rows for one query.

    Args:
        rows: n rows.
        query: (r,) its linear part.
        groups: (g,) what it adds to groups.
    """
    # Not a matrix product: BLAS rounds a row differently when other rows come and go.
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        products = rows.linear[start : start + _CHUNK].astype(np.float64)
        products *= query
        products.sum(axis=1, out=scores[start : start + _CHUNK])
    scores += groups[rows.group]
    scores += rows.offset
    return scores


def _each(queries: Queries) -> zip[tuple[Doubles, Doubles]]:
    return zip(queries.linear, queries.groups, strict=True)


def check_keys(keys: Ids) -> Ids:
    """Keys as an array of int64.

    Args:
        keys: (n,), whole numbers.

    Raises:
        InputError: If they are not whole numbers in one row.
    """
    keys = np.asarray(keys)
    if keys.ndim != 1 or (len(keys) and not np.issubdtype(keys.dtype, np.integer)):
        raise InputError(f"Keys are an array (n,) of int64. Found shape {keys.shape}, {keys.dtype}. Give task numbers.")
    return keys.astype(np.int64, copy=False)


def check_update(keys: Ids, rows: Rows, gone: Ids, width: int) -> tuple[Ids, Rows, Ids]:
    """What an index is told to add and to remove.

    Args:
        keys: Of the rows to add.
        rows: The rows.
        gone: Keys to remove.
        width: Numbers of a row.

    Raises:
        InputError: For all that is wrong with them.
    """
    keys, gone = check_keys(keys), check_keys(gone)
    linear, group, offset = (np.asarray(part) for part in (rows.linear, rows.group, rows.offset))
    faults = []
    if linear.shape != (len(keys), width) or group.shape != keys.shape or offset.shape != keys.shape:
        faults.append(
            f"For {len(keys)} keys rows should be ({len(keys)}, {width}) numbers with a group and an offset each. "
            f"Found {linear.shape}, {group.shape} and {offset.shape}."
        )
    if linear.dtype != np.float16 or group.dtype != np.int32 or offset.dtype != np.float32:
        faults.append(
            f"Rows should be float16 with groups int32 and offsets float32. Found {linear.dtype}, {group.dtype} and "
            f"{offset.dtype}."
        )
    if not (np.isfinite(linear).all() and np.isfinite(offset).all()):
        faults.append("Rows should be finite. Found NaN or infinity.")
    if len(group) and group.min() < 0:
        faults.append(f"Groups should be at least 0. Found {group.min()}.")
    if len(keys) and keys.min() < 0:
        faults.append(f"Keys should be at least 0. Found {keys.min()}.")
    if len(np.unique(np.concatenate([keys, gone]))) < len(keys) + len(gone):
        faults.append("Each key should be added once or removed once. Found one twice.")
    if faults:
        raise InputError("\n".join(faults) + "\nMake the rows again from the catalogue.")
    return keys, Rows(linear, group, offset), gone


def check_queries(queries: Queries, k: int, width: int) -> None:
    """What is asked of an index.

    Args:
        queries: The queries.
        k: How many rows are wanted.
        width: Numbers of a row.

    Raises:
        InputError: If k is below 1, or shapes or numbers are wrong.
    """
    if k < 1:
        raise InputError(f"A search asks for at least 1 row. Found k={k}. Raise k.")
    linear, groups = queries.linear, queries.groups
    if linear.ndim != 2 or linear.shape[1] != width or groups.ndim != 2 or len(groups) != len(linear):
        raise InputError(
            f"Queries should be (b, {width}) numbers with (b, g) for the groups. Found {linear.shape} and "
            f"{groups.shape}. Check the epoch."
        )
    if not (np.abs(linear).max(initial=0) <= _LARGEST and np.abs(groups).max(initial=0) <= _LARGEST):
        raise InputError(
            f"Queries should be finite and at most {_LARGEST:g}. Found NaN, infinity or larger ones. Check the encoder."
        )


def check_there(there: NDArray[np.bool_], keys: Ids, size: int) -> None:
    """That keys are in an index.

    Args:
        there: Whether each is.
        keys: The keys.
        size: Rows of the index.

    Raises:
        InputError: If one is not.
    """
    if not there.all():
        raise InputError(
            f"Keys should be among the {size} of the index. Found {keys[~there][:5].tolist()}. Add them first."
        )


def check_groups(largest: int, queries: Queries) -> None:
    """That queries bring a number for every group of rows.

    Args:
        largest: The largest group.
        queries: The queries.

    Raises:
        InputError: If a group has none.
    """
    if largest >= queries.groups.shape[1]:
        raise InputError(
            f"Queries bring a number for each group of rows. Found {queries.groups.shape[1]} for a row of group "
            f"{largest}. Ask for {largest + 1} groups."
        )
