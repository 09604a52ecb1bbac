"""Rows held in memory: one immutable state after the other, so that searches go on while rows are added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._records import Ids
from adapterhub.catalog._scores import Found, Queries, Rows, best, check_there, length_of

__all__ = ["Held"]

_LEAST_ROOM = 64


@dataclass(frozen=True)
class Held:
    """Rows at one moment.

    A change appends behind `count`, where no earlier state looks, and marks what it replaces as dead; so it costs no
    copy of the rows. Only the newest state may be changed, and only by one thread at a time.

    Args:
        keys: (room,) int64.
        linear: (room, r) float32, of numbers that are float16.
        group: (room,) int32.
        offset: (room,) float32.
        alive: (count,) bool.
        size: Number of living rows.
        longest: No row's linear part is longer.
    """

    keys: Ids
    linear: NDArray[np.float32]
    group: NDArray[np.int32]
    offset: NDArray[np.float32]
    alive: NDArray[np.bool_]
    size: int
    longest: float

    @classmethod
    def empty(cls, width: int, room: int = 0) -> Held:
        """No rows.

        Args:
            width: Numbers r of a row.
            room: For how many rows there is room.
        """
        return cls(
            np.empty(room, dtype=np.int64),
            np.empty((room, width), dtype=np.float32),
            np.empty(room, dtype=np.int32),
            np.empty(room, dtype=np.float32),
            np.empty(0, dtype=np.bool_),
            0,
            0.0,
        )

    @property
    def count(self) -> int:
        """Number of places in use, by the living and the dead."""
        return len(self.alive)

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Places of the living rows, ascending by key."""
        living = np.flatnonzero(self.alive)
        return living[np.argsort(self.keys[living], kind="stable")]

    @cached_property
    def sorted_keys(self) -> Ids:
        """Keys of the living rows, ascending."""
        return self.keys[self.places]

    def find(self, keys: Ids) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Whether each key is there, and the places of those that are.

        Args:
            keys: (n,) int64.
        """
        if not self.size:
            return np.zeros(len(keys), dtype=np.bool_), np.empty(0, dtype=np.intp)
        at = np.minimum(np.searchsorted(self.sorted_keys, keys), self.size - 1)
        there = self.sorted_keys[at] == keys
        return there, self.places[at[there]]

    def groups(self, keys: Ids) -> NDArray[np.int32]:
        """The group of the row under each key; -1 where there is none.

        Args:
            keys: (n,) int64.
        """
        found = np.full(len(keys), -1, dtype=np.int32)
        there, places = self.find(keys)
        found[there] = self.group[places]
        return found

    def rows(self, places: NDArray[np.intp] | slice) -> Rows:
        """Rows at some places.

        Args:
            places: Which.
        """
        return Rows(self.linear[places], self.group[places], self.offset[places])

    def changed(self, keys: Ids, rows: Rows, gone: Ids) -> Held:
        """The state after adding or replacing some rows and removing others.

        Args:
            keys: Of the rows that are added.
            rows: The rows.
            gone: Of the rows that are removed.

        Raises:
            InputError: If one of those is not there.
        """
        there, removed = self.find(gone)
        check_there(there, gone, self.size)
        if self.count + len(keys) > len(self.keys):
            return self._grown(len(keys)).changed(keys, rows, gone)
        replaced = self.find(keys)[1]
        start, end = self.count, self.count + len(keys)
        self.keys[start:end], self.linear[start:end] = keys, rows.linear
        self.group[start:end], self.offset[start:end] = rows.group, rows.offset
        alive = np.ones(end, dtype=np.bool_)
        alive[:start] = self.alive
        alive[removed] = False
        alive[replaced] = False
        size = self.size + len(keys) - len(removed) - len(replaced)
        longest = max(self.longest, length_of(rows.linear))
        return Held(self.keys, self.linear, self.group, self.offset, alive, size, longest)

    def search(self, queries: Queries, k: int, keys: Ids | None = None) -> list[Found]:
        """The best k rows of each query, among all or among those of `keys`, which are different.

        Args:
            queries: b queries.
            k: How many.
            keys: Look at these only.
        """
        if keys is None and self.size == self.count:
            everything = slice(self.count)
            return best(self.keys[everything], self.rows(everything), queries, k, self.longest)
        places = self.places if keys is None else self.find(keys)[1]
        return best(self.keys[places], self.rows(places), queries, k, self.longest)

    def _grown(self, more: int) -> Held:
        """The living rows, by key, with room for more behind them."""
        room = Held.empty(self.linear.shape[1], self.size + max(more, self.size, _LEAST_ROOM))
        room.keys[: self.size] = self.sorted_keys
        room.linear[: self.size] = self.linear[self.places]
        room.group[: self.size] = self.group[self.places]
        room.offset[: self.size] = self.offset[self.places]
        alive = np.ones(self.size, dtype=np.bool_)
        return Held(room.keys, room.linear, room.group, room.offset, alive, self.size, self.longest)
