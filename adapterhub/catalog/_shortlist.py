"""The likeliest rows of a generation: a look at the signs of all, and a second one at the codes of the best of them.

One row in 64 tells from which estimated score on a row is worth the second look, so that no list has to be kept in
order. A query's shortlist does not depend on the other queries: all sums are of whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._counting import WORTH, Counts, Places
from adapterhub.catalog._scanned import STRIDE, Scanned
from adapterhub.catalog._scores import Queries
from adapterhub.catalog._signature import BITS, WORDS, Asked, Floats, Words

__all__ = ["shortlist"]

# What gave the best recall: more than what has no bias, 1.57 and 1, for it is the largest scores that count, and in
# those the directions that codes leave out have a share, too.
_ROUGH, _FINE = np.float32(2.04), np.float32(1.2)
_LEAST_SECOND, _SECOND = 24576, 8  # rows that are looked at again: so many, or times as many as asked for
_MOST = 2  # times as many at the most, and so few rows are all looked at with all digits
_ROOM = 1 << 23  # rows that may exceed the cuts of a batch's queries
_LARGEST = np.float32(BITS / WORDS / 2 * WORTH.sum())  # product of a code with the same digits


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
    left = len(scanned) - len(hidden)
    again = max(_LEAST_SECOND, _SECOND * size)
    living = np.ones(len(scanned), dtype=np.bool_) if len(hidden) or left <= _MOST * again else None
    if living is not None:
        living[hidden] = False
        if left <= size:
            return [np.flatnonzero(living)] * len(queries)
    asked = scanned.signature.queries(queries.linear)
    unusual = (queries.groups[:, : len(scanned.shares)] - scanned.shares).astype(np.float32)
    if living is not None and left <= _MOST * again:
        at = np.flatnonzero(living.take(scanned.order))
        all_of_them = scanned.some(at)
        known = (all_of_them.bases + more.take(all_of_them.groups) for more in unusual)
        return _second(scanned, asked, [(at, parts) for parts in known], size)
    together = _ROOM // (_MOST * again * len(scanned) // left)  # queries
    found = []
    for start in range(0, len(queries), max(1, together)):
        part = slice(start, start + max(1, together))
        here = Asked(asked.signs[part], asked.steps[part], asked.means[part])
        found += _second(scanned, here, _first(scanned, here, unusual[part], living, again), size)
    return found


def _first(
    scanned: Scanned, asked: Asked, unusual: Floats, living: NDArray[np.bool_] | None, again: int
) -> Iterator[tuple[Places, Floats]]:
    """For each query positions of the rows to look at again, and what of their scores no code estimates."""
    looks = [
        _Look(scanned, signs, 2 * _ROUGH * mean, more, living, again)
        for signs, mean, more in zip(asked.signs[:, -1], asked.means, unusual, strict=True)
    ]
    cuts, scales = (np.array([getattr(look, name) for look in looks]) for name in ("cut", "scale"))
    thresholds = scanned.thresholds(cuts, scales, unusual)
    for query, at, differing in scanned.counting.scan(scanned.planes, asked.signs[:, -1], thresholds):
        looks[query].found.append((at, differing))
    return (look.likeliest() for look in looks)


def _second(scanned: Scanned, asked: Asked, likely: Iterable[tuple[Places, Floats]], size: int) -> list[Places]:
    """Places of the best of some rows, ascending, estimated with all digits of codes and queries."""
    rows = list(likely)
    pairs = ((at, signs) for (at, _), signs in zip(rows, asked.signs, strict=True))
    differing = scanned.counting.differing(scanned.codes, pairs)
    found = []
    for (at, known), different, step in zip(rows, differing, asked.steps, strict=True):
        best = at
        if len(at) > size:
            best = at[_largest(known + _FINE * step * scanned.slopes[1].take(at) * (_LARGEST - different), size)]
        found.append(np.sort(scanned.order.take(best)).astype(np.intp))
    return found


class _Look:
    """The first look of one query at all rows.

    Args:
        scanned: The rows.
        signs: (WORDS,) of the query.
        scale: What a sign is worth, for rows of slope 1.
        unusual: (g,) what it adds to rows of each group beyond what a typical query adds.
        living: (n,) whether the row of a place may be found; None for all.
        again: About so many rows are to be looked at again.
    """

    def __init__(
        self,
        scanned: Scanned,
        signs: Words,
        scale: np.float32,
        unusual: Floats,
        living: NDArray[np.bool_] | None,
        again: int,
    ) -> None:
        self._scanned, self._unusual, self._living, self._most = scanned, unusual, living, _MOST * again
        self.scale = scale
        self.found: list[tuple[Places, Counts]] = []  # positions of rows that may exceed the cut
        rough, _ = scanned.sample.estimates(scanned.sample_differing(signs), scale, unusual)
        if living is not None:
            rough = rough[living.take(scanned.order.take(scanned.sampled))]
        wanted = again // STRIDE
        self.cut = np.partition(rough, -wanted)[-wanted] if len(rough) > wanted else np.float32(-np.inf)

    def likeliest(self) -> tuple[Places, Floats]:
        """Positions of the rows found whose estimates exceed the cut, and what of these is no estimate."""
        scanned = self._scanned
        at, differing = (np.concatenate(parts) for parts in zip(*self.found, strict=True))
        end = int(np.searchsorted(at, len(scanned)))
        at, differing = at[:end], differing[:end]
        rough, known = scanned.some(at).estimates(differing, self.scale, self._unusual)
        kept = np.flatnonzero(rough >= self.cut)
        if self._living is not None:
            kept = kept[self._living.take(scanned.order.take(at.take(kept)))]
        if len(kept) > self._most:
            kept = kept[_largest(rough.take(kept), self._most)]
        return at.take(kept), known.take(kept)


def _largest(values: Floats, size: int) -> Places:
    """Where the `size` largest are, in no order."""
    return np.argpartition(values, len(values) - size)[len(values) - size :]
