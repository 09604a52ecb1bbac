"""An index in two layers: rows that were put in order once, and what came since."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._held import Held
from adapterhub.catalog._index import VectorIndex
from adapterhub.catalog._records import Ids
from adapterhub.catalog._scores import (
    NO_KEYS,
    Found,
    Queries,
    Rows,
    best,
    check_groups,
    check_keys,
    check_queries,
    check_there,
    check_update,
)

__all__ = ["LayeredIndex", "Places", "Stored"]

LEAST_SHORTLIST = 512  # rows scored exactly, whatever k
_BLOCK = 8192

Places = NDArray[np.intp]


class Stored(Protocol):
    """Rows that do not change, ascending by key, and a cheap guess of the best of them."""

    @property
    def keys(self) -> Ids:
        """(n,) keys."""
        ...

    @property
    def largest_group(self) -> int:
        """The largest group of a row; -1 without rows."""
        ...

    @property
    def most_exact(self) -> int:
        """So many rows of a subset are all scored; of a larger one only the likeliest are."""
        ...

    def __len__(self) -> int: ...

    def find(self, keys: Ids) -> tuple[NDArray[np.bool_], Places]:
        """Whether there is a row under each key, and the places of those that are there."""
        ...

    def groups(self, places: Places) -> NDArray[np.int32]:
        """The groups of the rows at some places."""
        ...

    def rows(self, places: Places) -> Rows:
        """The rows at some places, which ascend."""
        ...

    def shortlist(self, queries: Queries, size: int, hidden: Places) -> list[Places]:
        """For each query the places, ascending, of `size` rows that probably score best, without those hidden."""
        ...


Store = TypeVar("Store", bound=Stored)


@dataclass(frozen=True)
class _State(Generic[Store]):
    """The stored rows, the places of those that were removed or replaced since, and the rows added since."""

    stored: Store
    dead: Places  # ascending
    delta: Held

    def find(self, keys: Ids) -> tuple[NDArray[np.bool_], Places]:
        """Whether a living stored row is under each key, and the places of those."""
        there, places = self.stored.find(keys)
        living = np.append(self.dead, -1)[np.searchsorted(self.dead, places)] != places
        there[there] = living
        return there, places[living]


class LayeredIndex(VectorIndex, Generic[Store]):
    """An index of stored rows and of what came since, in memory.

    A search scores exactly the likeliest of the stored rows, and all rows added since.

    Args:
        stored: The rows.
        width: Numbers r of a row.
    """

    def __init__(self, stored: Store, width: int) -> None:
        self.width = width
        self._lock = threading.Lock()
        self._state = _State(stored, np.empty(0, dtype=np.intp), Held.empty(width))

    def __len__(self) -> int:
        state = self._state
        return len(state.stored) - len(state.dead) + state.delta.size

    @property
    def changed(self) -> int:
        """How many rows were added, replaced or removed since the rows were stored."""
        return self._state.delta.size + len(self._state.dead)

    def has(self, keys: Ids) -> NDArray[np.bool_]:
        """Whether there is a row under each key.

        Args:
            keys: (n,) int64.
        """
        state, keys = self._state, check_keys(keys)
        there: NDArray[np.bool_] = state.find(keys)[0] | state.delta.find(keys)[0]
        return there

    def groups(self, keys: Ids) -> NDArray[np.int32]:
        """The group of the row under each key; -1 where there is none.

        Args:
            keys: (n,) int64.
        """
        state, keys = self._state, check_keys(keys)
        found = state.delta.groups(keys)
        there, places = state.find(keys)
        found[there] = state.stored.groups(places)
        return found

    def update(self, keys: Ids, rows: Rows, gone: Ids) -> None:
        """Add rows and remove others in one step.

        Args:
            keys: Of the rows that are added or replaced.
            rows: The rows.
            gone: Of the rows that are removed; none of them is among `keys`.

        Raises:
            InputError: If keys or rows are wrong, or one of `gone` is not there; then nothing is changed.
        """
        keys, rows, gone = check_update(keys, rows, gone, self.width)
        with self._lock:
            state = self._state
            newer = state.delta.find(gone)[0]
            check_there(newer | state.find(gone)[0], gone, len(self))
            dead = [state.dead, *(state.find(some)[1] for some in (keys, gone))]
            delta = state.delta.changed(keys, rows, gone[newer])
            self._state = replace(state, dead=np.sort(np.concatenate(dead)), delta=delta)

    def search(self, queries: Queries, k: int, keys: Ids | None = None) -> list[Found]:
        """The rows with the largest scores.

        Args:
            queries: b queries.
            k: How many rows for each, at least 1; more than there are gives all.
            keys: Look at these rows only; keys without a row are ignored. None for all.

        Returns:
            For each query keys and scores, best first, ties by key.

        Raises:
            InputError: If k is below 1, or the queries do not fit the rows.
            IntegrityError: If a row on the disk is damaged: the index is to be built again.
        """
        check_queries(queries, k, self.width)
        state = self._state
        check_groups(state.stored.largest_group, queries)
        if not len(queries):
            return []
        if keys is None:
            return _joined(_likeliest(state, queries, k, state.dead), state.delta.search(queries, k), k)
        keys = np.unique(check_keys(keys))
        places = state.find(keys)[1]
        if len(places) <= state.stored.most_exact:
            old = best(state.stored.keys[places], state.stored.rows(places), queries, k)
        else:
            hidden = np.ones(len(state.stored), dtype=np.bool_)
            hidden[places] = False
            old = _likeliest(state, queries, k, np.flatnonzero(hidden))
        return _joined(old, state.delta.search(queries, k, keys), k)

    def keys(self) -> Ids:
        """All keys, ascending."""
        state = self._state
        old = np.delete(state.stored.keys, state.dead)
        return np.sort(np.concatenate([old, state.delta.sorted_keys])) if state.delta.size else old

    def snapshot(self) -> Self:
        """The index as it is now, for searches; later changes do not reach it."""
        return copy.copy(self)

    def sample(self, size: int) -> tuple[Ids, Rows]:
        """Some of the stored rows that live, with their keys, spread over all of them.

        Args:
            size: How many at most.
        """
        state = self._state
        places = np.arange(0, len(state.stored), max(1, -(-len(state.stored) // size)))
        places = places[~np.isin(places, state.dead)]
        return state.stored.keys[places], state.stored.rows(places)

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[Ids, Rows]]:
        """All rows, ascending by key.

        Args:
            size: Rows of a block, about.
        """
        state = self._state
        delta, waiting = state.delta, 0
        for places, rows in _in_blocks(state.stored, size):
            living = ~np.isin(places, state.dead, assume_unique=True)
            keys = state.stored.keys[places]
            until = int(np.searchsorted(delta.sorted_keys, keys[-1], side="right"))
            newer = delta.places[waiting:until]
            waiting = until
            yield _merged((keys[living], rows.take(np.flatnonzero(living))), (delta.keys[newer], delta.rows(newer)))
        newer = delta.places[waiting:]
        yield _merged((NO_KEYS, Rows.none(self.width)), (delta.keys[newer], delta.rows(newer)))


def _in_blocks(stored: Stored, size: int) -> Iterator[tuple[Places, Rows]]:
    for start in range(0, len(stored), size):
        places = np.arange(start, min(start + size, len(stored)))
        yield places, stored.rows(places)


def _likeliest(state: _State[Store], queries: Queries, k: int, hidden: Places) -> list[Found]:
    found = []
    for row, places in enumerate(state.stored.shortlist(queries, max(k, LEAST_SHORTLIST), hidden)):
        query = Queries(queries.linear[row : row + 1], queries.groups[row : row + 1])
        found += best(state.stored.keys[places], state.stored.rows(places), query, k)
    return found


def _joined(some: list[Found], others: list[Found], k: int) -> list[Found]:
    return [_best_of_both(one, other, k) if len(other[0]) else one for one, other in zip(some, others, strict=True)]


def _best_of_both(one: Found, other: Found, k: int) -> Found:
    keys, scores = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.lexsort((keys, -scores))[:k]
    return keys[order], scores[order]


def _merged(some: tuple[Ids, Rows], others: tuple[Ids, Rows]) -> tuple[Ids, Rows]:
    keys = np.concatenate([some[0], others[0]])
    order = np.argsort(keys)
    parts = [np.concatenate([one, other.astype(one.dtype)]) for one, other in (
        (some[1].linear, others[1].linear), (some[1].group, others[1].group), (some[1].offset, others[1].offset)
    )]  # fmt: skip
    return keys[order], Rows(*parts).take(order)
