"""Codes of rows: a few bits for each direction that matters, and what they say about a row's score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._halves import to_single
from adapterhub.catalog._scores import Doubles, Rows

__all__ = ["BITS", "DIGITS", "WORDS", "Asked", "Floats", "Signature", "Words"]

BITS = 256
WORDS = BITS // 64
DIGITS = 4  # of a number of a query, in binary
_STEP = 0.335  # between numbers of 4 digits, for the least error with normal numbers (Max 1960)
_ROW_STEP = 0.9957  # between those of 2 digits
_SEED = 0
_LEAST = 1e-6
_AT_ONCE = 1024  # rows whose turned numbers stay in the cache

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Asked:
    """Queries, turned and rounded to numbers of 4 binary digits, each of which counts as +1 or -1.

    Args:
        signs: (b, DIGITS, WORDS) digits, the smallest first; the last one is the sign.
        steps: (b,) what the smallest digit is worth, up and down together.
        means: (b,) mean absolute value of the numbers.
    """

    signs: Words
    steps: Floats
    means: Floats


@dataclass(frozen=True)
class Signature:
    """Turns rows and queries so that all bits of a row's code say equally much about its scores.

    Queries are scaled to the same spread in all directions; of the rows' principal components there the leading ones
    are kept, 256 at most, for what the others add to scores hardly differs between rows. Components that matter
    differently would waste bits, so rows and queries get the same spread in each, and a random rotation shares all of
    them out over the bits. An inner product of turned vectors is that of the rows' and queries' own, but for the
    components left out and for a number that is the same for all rows.

    Of a turned row y a code u is kept: the signs, and with a second binary digit numbers of -3, -1, 1 and 3. With the
    slope |y|^2 / <y, u> an inner product with u estimates one with y without bias (Gao and Long 2024, RaBitQ).

    Args:
        centre: (r,) mean of the rows.
        for_rows: (r, BITS), what turns rows.
        for_queries: (r, BITS), what turns queries.
    """

    centre: Floats
    for_rows: Floats
    for_queries: Floats

    @classmethod
    def of(cls, sample: Rows, spread: Doubles) -> Signature:
        """The signature for rows like these and queries of a known spread.

        Args:
            sample: Some rows.
            spread: (r,) standard deviations of the queries.
        """
        width = len(spread)
        spread = np.maximum(spread, _LEAST)
        rows = sample.linear.astype(np.float32)
        centre = rows.mean(axis=0) if len(rows) else np.zeros(width, dtype=np.float32)
        scaled = (rows - centre) * spread.astype(np.float32)
        variances, axes = np.linalg.eigh((scaled.T @ scaled).astype(np.float64))
        kept = min(width, BITS)
        variances, axes = variances[::-1][:kept], axes[:, ::-1][:, :kept]
        largest = variances.max()
        variances = np.maximum(variances / largest, _LEAST) if largest > 0 else np.ones(kept)
        random = np.random.default_rng(_SEED)
        turns = [np.linalg.qr(random.standard_normal((kept, kept)))[0] for _ in range(-(-BITS // kept))]
        rotation = np.concatenate(turns, axis=1)[:, :BITS]
        for_rows = spread[:, None] * axes * variances**-0.25 @ rotation
        for_queries = axes / spread[:, None] * variances**0.25 @ rotation
        return cls(*(np.ascontiguousarray(part, dtype=np.float32) for part in (centre, for_rows, for_queries)))

    def rows(self, linear: NDArray[np.floating]) -> tuple[Words, Floats]:
        """Codes of rows and their slopes.

        Args:
            linear: (n, r).

        Returns:
            (n, 2 WORDS) the signs, then the second digits; (n, 2) the slope for the signs alone and that for both.
        """
        codes = np.empty((len(linear), 2 * WORDS), dtype=np.uint64)
        slopes = np.empty((len(linear), 2), dtype=np.float32)
        for start in range(0, len(linear), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            codes[part], slopes[part] = self._coded(linear[part])
        return codes, slopes

    def _coded(self, linear: NDArray[np.floating]) -> tuple[Words, Floats]:
        wide = to_single(linear) if linear.dtype == np.float16 else linear.astype(np.float32)
        wide -= self.centre
        turned = wide @ self.for_rows
        positive = turned > 0
        squares = np.einsum("ij,ij->i", turned, turned)
        sizes = np.abs(turned, out=turned)
        far = sizes > _ROW_STEP * np.sqrt(squares / BITS)[:, None]
        sums = sizes.sum(axis=1)
        both = sums + 2 * np.multiply(sizes, far, out=sizes).sum(axis=1)
        squares *= min(linear.shape[1], BITS) / BITS  # fewer directions than bits are counted several times
        slopes = squares[:, None] / np.maximum(np.stack([sums, both], axis=1), _LEAST)
        return np.concatenate([_packed(positive), _packed(far == positive)], axis=1), slopes

    def queries(self, linear: Doubles) -> Asked:
        """What to compare with the codes of rows. Each query by itself, so that it does not depend on the others.

        Args:
            linear: (b, r).
        """
        turned = np.empty((len(linear), BITS), dtype=np.float64)
        for query, row in zip(linear, turned, strict=True):
            np.matmul(query, self._for_queries, out=row)
        steps = _STEP * np.sqrt(np.square(turned).mean(axis=1)) + 1e-300
        levels = np.clip(np.floor(turned / steps[:, None]) + 2 ** (DIGITS - 1), 0, 2**DIGITS - 1).astype(np.uint8)
        signs = [_packed((levels >> digit) & 1 == 1) for digit in range(DIGITS)]
        means = np.abs(turned).mean(axis=1)
        return Asked(np.stack(signs, axis=1), steps.astype(np.float32), means.astype(np.float32))

    @cached_property
    def _for_queries(self) -> Doubles:
        return self.for_queries.astype(np.float64)


def _packed(positive: NDArray[np.bool_]) -> Words:
    return np.packbits(positive, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)
