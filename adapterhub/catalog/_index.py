"""Search over rows of numbers under integer keys: the Protocol and the exact scan."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._held import Held
from adapterhub.catalog._records import Ids
from adapterhub.catalog._scores import NO_KEYS, Found, Queries, Rows, check_keys, check_queries, check_update
from adapterhub.errors import InputError

__all__ = ["ExactIndex", "Found", "Queries", "Rows", "VectorIndex"]


class VectorIndex(Protocol):
    """Finds the rows with the largest scores; see `Queries` for what a score is.

    Safe for several threads: a search sees the rows as they were before an update or after it, never half of it.
    """

    width: int  # numbers r of a row

    def __len__(self) -> int: ...

    def has(self, keys: Ids) -> NDArray[np.bool_]:
        """Whether there is a row under each key."""
        ...

    def groups(self, keys: Ids) -> NDArray[np.int32]:
        """The group of the row under each key; -1 where there is none."""
        ...

    def add(self, keys: Ids, rows: Rows) -> None:
        """Add rows; a row whose key is there replaces it.

        Args:
            keys: (n,) int64, different, at least 0.
            rows: n rows, finite.

        Raises:
            InputError: If keys or rows are wrong; then nothing is added.
        """
        self.update(keys, rows, NO_KEYS)

    def remove(self, keys: Ids) -> None:
        """Remove rows.

        Args:
            keys: (n,) int64, different.

        Raises:
            InputError: If there is no row under one of them; then nothing is removed.
        """
        self.update(NO_KEYS, Rows.none(self.width), keys)

    def update(self, keys: Ids, rows: Rows, gone: Ids) -> None:
        """Add rows and remove others in one step."""
        ...

    def search(self, queries: Queries, k: int, keys: Ids | None = None) -> list[Found]:
        """The best k rows of each query, best first and ties by key, among all rows or among those of `keys`."""
        ...


class ExactIndex(VectorIndex):
    """An index in memory that scores every row.

    Args:
        width: Numbers r of a row.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise InputError(f"A row has at least one number. Found width {width}. Take the epoch's.")
        self.width = width
        self._lock = threading.Lock()
        self._held = Held.empty(width)

    def __len__(self) -> int:
        return self._held.size

    def has(self, keys: Ids) -> NDArray[np.bool_]:
        """Whether there is a row under each key.

        Args:
            keys: (n,) int64.
        """
        return self._held.find(check_keys(keys))[0]

    def groups(self, keys: Ids) -> NDArray[np.int32]:
        """The group of the row under each key; -1 where there is none.

        Args:
            keys: (n,) int64.
        """
        return self._held.groups(check_keys(keys))

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
            self._held = self._held.changed(keys, rows, gone)

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
        """
        check_queries(queries, k, self.width)
        return self._held.search(queries, k, None if keys is None else np.unique(check_keys(keys)))

    def keys(self) -> Ids:
        """All keys, ascending."""
        return self._held.sorted_keys.copy()

    def snapshot(self) -> ExactIndex:
        """The index as it is now, for searches; later changes do not reach it."""
        return copy.copy(self)

    def sample(self, size: int) -> tuple[Ids, Rows]:
        """Some of the rows with their keys, spread over all of them.

        Args:
            size: How many at most.
        """
        held = self._held
        places = held.places[:: max(1, -(-held.size // size))]
        return held.keys[places], held.rows(places)

    def blocks(self, size: int = 8192) -> Iterator[tuple[Ids, Rows]]:
        """All rows, ascending by key.

        Args:
            size: Rows of a block.
        """
        held = self._held
        for start in range(0, held.size, size):
            places = held.places[start : start + size]
            yield held.keys[places], held.rows(places)
