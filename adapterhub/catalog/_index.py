"""Search over vectors: the Protocol and the exact scan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError, did_you_mean

__all__ = ["ExactIndex", "VectorIndex"]

_CHUNK = 8192


class VectorIndex(Protocol):
    """Finds the rows with the largest inner products."""

    def add(self, ids: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Add rows (n, d); a row whose id is there replaces it."""
        ...

    def remove(self, ids: Collection[str]) -> None:
        """Remove rows; an unknown id is an InputError."""
        ...

    def search(
        self, queries: NDArray[np.float32], k: int, ids: Collection[str] | None = None
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The best k rows of each query (B, d): scores (B, min(k, rows)), best first, and their ids."""
        ...


class ExactIndex:
    """A `VectorIndex` that scores every row.

    Scores are float32 of sums made in float64: equal rows get equal scores wherever they lie, and equal scores are
    put in the order of the ids, so an answer does not depend on the order of adding.

    Args:
        dimension: Width d of a row.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise InputError(f"A vector has at least one number. Found dimension {dimension}. Take the encoder's.")
        self.dimension = dimension
        self._ids: list[str] = []
        self._place: dict[str, int] = {}
        self._rows = np.empty((0, dimension), dtype=np.float32)
        self._ranks: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def add(self, ids: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Add rows; a row whose id is there replaces it.

        Args:
            ids: n different ids.
            rows: (n, d) float32, finite.

        Raises:
            InputError: If shapes do not agree, an id occurs twice, or a number is not finite; then nothing is added.
        """
        rows = self._checked(rows, "Rows of an index")
        if len(ids) != len(rows) or len(set(ids)) != len(ids):
            text = f"Found {len(ids)} ids ({len(set(ids))} different) for {len(rows)} rows. Give one id for each row."
            raise InputError(f"Each row of an index has an id of its own. {text}")
        new = [name for name in ids if name not in self._place]
        self._reserve(len(self._ids) + len(new))
        for name in new:
            self._place[name] = len(self._ids)
            self._ids.append(name)
        self._rows[[self._place[name] for name in ids]] = rows
        self._ranks = None

    def remove(self, ids: Collection[str]) -> None:
        """Remove rows.

        Args:
            ids: Ids that are there.

        Raises:
            InputError: If one is not; then nothing is removed.
        """
        self._places(ids)
        for name in set(ids):
            place, last = self._place.pop(name), self._ids.pop()
            if last != name:  # the last row moves into the gap
                self._ids[place], self._place[last] = last, place
                self._rows[place] = self._rows[len(self._ids)]
        self._ranks = None

    def search(
        self, queries: NDArray[np.float32], k: int, ids: Collection[str] | None = None
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The rows with the largest inner products.

        Args:
            queries: (B, d) float32, finite.
            k: How many rows for each query, at least 1; more than there are gives all.
            ids: Score these rows only; None for all.

        Returns:
            Scores (B, min(k, rows)) float32, best first, and for each query the ids.

        Raises:
            InputError: If k is below 1, a shape or number is wrong, or an id is not there.
        """
        if k < 1:
            raise InputError(f"A search asks for at least 1 row. Found k={k}. Raise k.")
        queries = self._checked(queries, "Queries").astype(np.float64)
        places = np.arange(len(self._ids)) if ids is None else np.sort(self._places(set(ids)))
        scores = np.empty((len(queries), len(places)), dtype=np.float32)
        for start in range(0, len(places), _CHUNK):
            part = places[start : start + _CHUNK]
            scores[:, start : start + _CHUNK] = queries @ self._rows[part].astype(np.float64).T  # (B, chunk)
        k = min(k, len(places))
        best = [self._best(row, places, k) for row in scores]
        found = [[self._ids[places[at]] for at in order] for order in best]
        order = np.array(best, dtype=np.int64).reshape(len(queries), k)
        return np.take_along_axis(scores, order, axis=1), found

    def _best(self, scores: NDArray[np.float32], places: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        if k == 0:
            return np.empty(0, dtype=np.int64)
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        tied = np.flatnonzero(scores >= cut)
        return tied[np.lexsort((self._rank()[places[tied]], -scores[tied]))][:k]

    def _rank(self) -> NDArray[np.int64]:
        if self._ranks is None:
            self._ranks = np.empty(len(self._ids), dtype=np.int64)
            self._ranks[sorted(range(len(self._ids)), key=self._ids.__getitem__)] = np.arange(len(self._ids))
        return self._ranks

    def _places(self, ids: Collection[str]) -> NDArray[np.int64]:
        unknown = sorted(name for name in ids if name not in self._place)
        if unknown:
            near = did_you_mean(unknown[0], self._place)
            raise InputError(
                f"Ids should be among the {len(self)} of the index. Found {unknown[:5]}.{near} Add them first."
            )
        return np.array([self._place[name] for name in ids], dtype=np.int64)

    def _checked(self, rows: NDArray[np.float32], what: str) -> NDArray[np.float32]:
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise InputError(f"{what} should have shape (n, {self.dimension}). Found {rows.shape}. Check the encoder.")
        if not np.isfinite(rows).all():
            raise InputError(f"{what} should be finite. Found NaN or infinity. Check the encoder.")
        return rows

    def _reserve(self, size: int) -> None:
        if size > len(self._rows):
            grown = np.empty((max(size, 2 * len(self._rows)), self.dimension), dtype=np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
