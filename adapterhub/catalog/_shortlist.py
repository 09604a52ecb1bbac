"""The likeliest rows of a generation, by their signs.

All rows are compared with the signs of a query, chunk by chunk, a batch of queries sharing each chunk; then the
likeliest of them with all digits of the query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._scores import Doubles, Queries
from adapterhub.catalog._signature import BITS, WORDS, Signature

__all__ = ["CHUNK", "Scanned", "shortlist"]

Places = NDArray[np.intp]
Floats = NDArray[np.float32]
Words = NDArray[np.uint64]

CHUNK = 32768  # rows whose signs lie together: they stay in the cache while a batch of queries looks at them
# What gave the best recall: a little more than what has no bias, 1.57 and 1, for it is the largest scores that count.
_ROUGH, _FINE = np.float32(1.78), np.float32(1.09)
_HALF = np.float32(BITS / 2)
_LEAST_FIRST, _FIRST = 4096, 4  # places that are looked at a second time: so many, or times as many as asked for
_ROOM = 4  # times as many candidates are collected before the worst are dropped


@dataclass(frozen=True)
class Scanned:
    """What is kept in memory of n rows.

    Args:
        signature: What made the signs.
        planes: (chunks, WORDS, CHUNK) signs; the last chunk is filled up.
        slopes: (n,) see `Signature.rows`.
        bases: (n,) of the rows: their offsets, and what a typical query adds to their groups.
        groups: (n,) of the rows, as np.take wants them.
        shares: (g,) what a typical query adds to the rows of each group.
    """

    signature: Signature
    planes: Words
    slopes: Floats
    bases: Floats
    groups: Places
    shares: Doubles

    def __len__(self) -> int:
        return len(self.slopes)


def shortlist(scanned: Scanned, queries: Queries, size: int, hidden: Places) -> list[Places]:
    """Places of the rows with the largest estimated scores.

    Args:
        scanned: The n rows.
        queries: b queries.
        size: How many places for each.
        hidden: Places that are not looked at, ascending.

    Returns:
        For each query min(size, n - hidden) places, ascending.
    """
    asked = scanned.signature.queries(queries.linear)
    scales = 2 * _ROUGH * asked.means
    unusual = (queries.groups[:, : len(scanned.shares)] - scanned.shares).astype(np.float32)
    candidates = [_Candidates(max(_LEAST_FIRST, _FIRST * size), scanned.groups, row) for row in unusual]
    starts = np.arange(0, len(scanned), CHUNK)
    cuts = np.searchsorted(hidden, np.append(starts, len(scanned))).tolist()
    chunk = _Chunk(scanned)
    for number, start in enumerate(starts.tolist()):
        chunk.turn(number, hidden[cuts[number] : cuts[number + 1]] - start)
        for row, found in enumerate(candidates):
            found.add(chunk.estimates(asked.signs[row, -1], scales[row]), start)
    return [
        _refined(scanned, found.places(), signs, weights, theirs, size)
        for found, signs, weights, theirs in zip(candidates, asked.signs, asked.weights, unusual, strict=True)
    ]


def _refined(scanned: Scanned, places: Places, signs: Words, weights: Floats, unusual: Floats, size: int) -> Places:
    """Of some places those of the largest scores, estimated with all digits of a query."""
    if len(places) <= size:
        return places
    first = places + places // CHUNK * (WORDS - 1) * CHUNK  # of a row's words, among all words of all planes
    planes = scanned.planes.reshape(-1).take(first + CHUNK * np.arange(WORDS)[:, None])  # (WORDS, m)
    products = np.zeros(len(places), dtype=np.float32)
    for sign, weight in zip(signs, weights, strict=True):
        differing = np.bitwise_count(planes ^ sign[:, None]).sum(axis=0, dtype=np.uint16)
        products += weight * (BITS - 2 * differing.astype(np.float32))
    estimates = _FINE * scanned.slopes[places] * products
    estimates += scanned.bases[places] + unusual[scanned.groups[places]]
    return np.sort(places[_largest(estimates, size)])


class _Chunk:
    """Rows whose signs lie together, and room to compute in."""

    def __init__(self, scanned: Scanned) -> None:
        self._scanned = scanned
        self._differing = np.empty(CHUNK, dtype=np.uint64)
        self._counts = np.empty((WORDS, CHUNK), dtype=np.uint8)
        self._count = np.empty(CHUNK, dtype=np.uint8)
        self._estimates = np.empty(CHUNK, dtype=np.float32)

    def turn(self, number: int, hidden: Places) -> None:
        scanned, start = self._scanned, number * CHUNK
        part = slice(start, min(start + CHUNK, len(scanned)))
        self._size = part.stop - start
        self._planes = scanned.planes[number]
        self._slopes, self._bases = scanned.slopes[part], scanned.bases[part]
        self._hidden = hidden

    def estimates(self, signs: NDArray[np.uint64], scale: np.float32) -> Floats:
        """Estimated scores of the chunk's rows, but for what is unusual about the query; valid until the next call."""
        for plane, sign, counts in zip(self._planes, signs, self._counts, strict=True):
            np.bitwise_xor(plane, sign, out=self._differing)
            np.bitwise_count(self._differing, out=counts)
        # A row that differs in all 256 bits is counted as 0: it takes a place in vain.
        differing = np.add.reduce(self._counts, axis=0, dtype=np.uint8, out=self._count)
        estimates = np.subtract(_HALF, differing[: self._size], out=self._estimates[: self._size])
        estimates *= self._slopes
        estimates *= scale
        estimates += self._bases
        if len(self._hidden):
            estimates[self._hidden] = -np.inf
        return estimates


class _Candidates:
    """The `size` largest estimates seen; no more are looked at closely than can still be among them.

    Args:
        size: How many.
        groups: (n,) of all rows.
        unusual: (g,) what the query adds to rows of each group beyond what a typical one adds.
    """

    def __init__(self, size: int, groups: Places, unusual: Floats) -> None:
        self._size = size
        self._groups, self._unusual = groups, unusual
        self._most = unusual.max(initial=0)
        self._values = np.empty(_ROOM * size, dtype=np.float32)
        self._places = np.empty(_ROOM * size, dtype=np.intp)
        self._count = 0
        self._cut = np.float32(-np.inf)

    def add(self, estimates: Floats, start: int) -> None:
        at = np.flatnonzero(estimates > self._cut - self._most)
        values = estimates[at] + self._unusual[self._groups[at + start]]
        kept = np.flatnonzero(values > self._cut)
        if len(kept) > self._size:
            kept = kept[_largest(values[kept], self._size)]
        if self._count + len(kept) > len(self._values):
            self._drop()
        end = self._count + len(kept)
        self._values[self._count : end] = values[kept]
        self._places[self._count : end] = at[kept] + start
        self._count = end
        if self._cut == -np.inf and end >= self._size:
            self._drop()

    def places(self) -> Places:
        self._drop()
        return np.sort(self._places[: self._count])

    def _drop(self) -> None:
        if self._count < self._size:
            return
        kept = _largest(self._values[: self._count], self._size)
        self._values[: self._size] = self._values[kept]
        self._places[: self._size] = self._places[kept]
        self._count = self._size
        self._cut = self._values[: self._size].min()


def _largest(values: Floats, size: int) -> Places:
    """Where the `size` largest are, in no order."""
    return np.argpartition(values, len(values) - size)[len(values) - size :]
