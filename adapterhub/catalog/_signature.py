"""Sign bits of rows, and what they say about a row's score: the cheap first look at a million rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._scores import Doubles, Rows

__all__ = ["BITS", "DIGITS", "WORDS", "Asked", "Signature"]

BITS = 256
WORDS = BITS // 64
DIGITS = 4  # of a number of a query, in binary
_STEP = 0.335  # between numbers of 4 digits, for the least error with normal numbers (Max 1960)
_SEED = 0
_LEAST = 1e-6

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """Queries, turned like rows and rounded to numbers of 4 binary digits, each of which counts as +1 or -1.

    Args:
        signs: (b, DIGITS, WORDS) digits, the smallest first; the last one is the sign.
        weights: (b, DIGITS) what a digit is worth.
        means: (b,) mean absolute value of the numbers.
    """

    signs: NDArray[np.uint64]
    weights: Floats
    means: Floats


@dataclass(frozen=True)
class Signature:
    """A random rotation behind a scaling of the dimensions.

    An inner product <x, q> is that of (x - centre) * scale and q / scale, up to a number that is the same for all rows.
    The scaling gives rows and queries the same spread, for bits are wasted on dimensions that only one side uses; the
    rotation shares it out over all bits. Of a turned row y the signs are kept and |y|^2 / |y|_1, by which an inner
    product with the signs estimates one with y without bias (Gao and Long 2024, RaBitQ).

    Args:
        centre: (r,) mean of the rows.
        scale: (r,) what rows are multiplied by.
        rotation: (r, BITS), orthonormal columns in each group of r.
    """

    centre: Floats
    scale: Floats
    rotation: Floats

    @classmethod
    def of(cls, sample: Rows, spread: Doubles) -> Signature:
        """The signature for rows like these and queries of a known spread.

        Args:
            sample: Some rows.
            spread: (r,) standard deviations of the queries.
        """
        width = len(spread)
        rows = sample.linear.astype(np.float32)
        centre = rows.mean(axis=0) if len(rows) else np.zeros(width, dtype=np.float32)
        own = np.maximum(rows.std(axis=0), _LEAST) if len(rows) else np.ones(width, dtype=np.float32)
        scale = np.sqrt(np.maximum(spread, _LEAST) / own)
        random = np.random.default_rng(_SEED)
        turns = [np.linalg.qr(random.standard_normal((width, width)))[0] for _ in range(-(-BITS // width))]
        rotation = np.concatenate(turns, axis=1)[:, :BITS]
        return cls(*(np.ascontiguousarray(part, dtype=np.float32) for part in (centre, scale, rotation)))

    def rows(self, linear: NDArray[np.floating]) -> tuple[NDArray[np.uint64], Floats]:
        """Signs (n, WORDS) of rows, and their slopes (n,): by what an inner product with the signs is multiplied.

        Args:
            linear: (n, r).
        """
        turned = (linear.astype(np.float32) - self.centre) @ (self.scale[:, None] * self.rotation)
        lengths = np.einsum("ij,ij->i", turned, turned)
        slopes = lengths / np.maximum(np.abs(turned).sum(axis=1), _LEAST)
        return _packed(turned > 0), slopes * np.float32(linear.shape[1] / BITS)

    def queries(self, linear: Doubles) -> Asked:
        """What to compare with the signs of rows.

        Args:
            linear: (b, r).
        """
        turned = (linear / self.scale).astype(np.float32) @ self.rotation
        step = _STEP * np.sqrt(np.square(turned, dtype=np.float64).mean(axis=1, keepdims=True)) + 1e-300
        levels = np.clip(np.floor(turned / step) + 2 ** (DIGITS - 1), 0, 2**DIGITS - 1).astype(np.uint8)
        signs = np.stack([_packed((levels >> digit) & 1 == 1) for digit in range(DIGITS)], axis=1)
        weights = step * 2.0 ** (np.arange(DIGITS) - 1)
        return Asked(signs, weights.astype(np.float32), np.abs(turned).mean(axis=1))


def _packed(positive: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(positive, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)
