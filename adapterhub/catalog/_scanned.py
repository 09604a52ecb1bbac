"""What is kept in memory of all rows of a generation, laid out for a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._counting import Counts, Places, counting
from adapterhub.catalog._scores import Doubles
from adapterhub.catalog._signature import BITS, WORDS, Floats, Signature, Words

__all__ = ["CHUNK", "STRIDE", "Scanned", "Some", "scanning_order"]

CHUNK = 8192  # rows whose signs stay in the cache while a batch of queries looks at them
STRIDE = 64  # one row in so many tells how scores are spread
_BLOCK = 512  # rows that have one threshold
_HALF = np.float32(BITS / 2)
_LEAST = np.float32(1e-30)


def scanning_order(groups: NDArray[np.int32], bases: Floats, slopes: Floats) -> NDArray[np.int32]:
    """An order in which rows follow each other whose scores differ little but for their codes.

    Args:
        groups: (n,) of the rows.
        bases: (n,) see `Scanned`.
        slopes: (n,) for the signs alone.

    Returns:
        (n,) places: by group, then roughly by base, then by slope.
    """
    order = np.lexsort((bases, groups)).astype(np.int32)
    for start in range(0, len(order), CHUNK):
        strip = order[start : start + CHUNK]
        strip[:] = strip[np.argsort(slopes[strip], kind="stable")]
    return order


@dataclass(frozen=True)
class Some:
    """What is known of m rows beside their codes.

    Args:
        bases: (m,) see `Scanned`.
        groups: (m,) of the rows.
        slopes: (m,) for the signs alone.
    """

    bases: Floats
    groups: NDArray[np.int32]
    slopes: Floats

    def estimates(self, differing: Counts, scale: np.float32, unusual: Floats) -> tuple[Floats, Floats]:
        """Estimated scores by the signs alone, and what of them is no estimate.

        Args:
            differing: (m,) how many signs differ from the query's.
            scale: Of the query.
            unusual: (g,) what the query adds to rows of each group beyond what a typical one adds.
        """
        known = self.bases + unusual.take(self.groups)
        return known + scale * self.slopes * (_HALF - differing), known


class Scanned:
    """The n rows in scanning order.

    Args:
        signature: What made the codes.
        order: (n,) the rows' places.
        codes: (n, 2 WORDS) see `Signature.rows`.
        slopes: (2, n) see `Signature.rows`.
        bases: (n,) offsets, and what a typical query adds to their groups.
        groups: (n,) of the rows.
        shares: (g,) what a typical query adds to the rows of each group.
    """

    def __init__(
        self,
        signature: Signature,
        order: NDArray[np.int32],
        codes: Words,
        slopes: Floats,
        bases: Floats,
        groups: NDArray[np.int32],
        shares: Doubles,
    ) -> None:
        self.signature, self.order, self.codes, self.slopes = signature, order, codes, slopes
        self.bases, self.groups, self.shares = bases, groups, shares
        self.counting = counting()  # here, so that no search waits for a compiler
        self.sampled: Places = np.arange(STRIDE // 2, len(order), STRIDE)
        self.sample = self.some(self.sampled)
        self._sample_signs = np.ascontiguousarray(codes[self.sampled, :WORDS].T)
        self.planes = np.zeros((-(-len(order) // CHUNK), WORDS, CHUNK), dtype=np.uint64)  # the last one is filled up
        for plane, start in zip(self.planes, range(0, len(order), CHUNK), strict=True):
            part = codes[start : start + CHUNK, :WORDS]
            plane[:, : len(part)] = part.T
        starts = np.arange(0, len(order), _BLOCK)
        self._highest = np.maximum.reduceat(bases, starts)
        self._steepest, self._flattest = (pick.reduceat(slopes[0], starts) for pick in (np.maximum, np.minimum))
        ends = np.minimum.reduceat(groups, starts), np.maximum.reduceat(groups, starts) + 1
        self._between = np.stack(ends, axis=1).reshape(-1)  # where each block's groups begin and end

    def __len__(self) -> int:
        return len(self.order)

    def some(self, at: Places) -> Some:
        """Some of the rows.

        Args:
            at: (m,) positions.
        """
        return Some(self.bases.take(at), self.groups.take(at), self.slopes[0].take(at))

    def thresholds(self, cuts: Floats, scales: Floats, unusual: Floats) -> NDArray[np.uint8]:
        """So many signs may differ in a row of a block whose rough estimate is above a cut.

        Args:
            cuts: (b,) of the queries.
            scales: (b,) of the queries.
            unusual: (b, g) of the queries.

        Returns:
            (chunks, b, blocks of a chunk), too large rather than too small.
        """
        padded = np.pad(unusual, ((0, 0), (0, 1)), constant_values=-np.inf)
        highest = self._highest + np.maximum.reduceat(padded, self._between, axis=1)[:, ::2]
        missing = cuts[:, None] - highest
        slopes = np.where(missing > 0, self._steepest, self._flattest)
        with np.errstate(over="ignore"):  # to infinity
            most = _HALF - missing / np.maximum(scales[:, None] * slopes, _LEAST)
        found = np.zeros((len(cuts), len(self.planes) * (CHUNK // _BLOCK)), dtype=np.uint8)
        found[:, : most.shape[1]] = np.clip(most, 0, 255)
        return np.ascontiguousarray(found.reshape(len(cuts), len(self.planes), -1).transpose(1, 0, 2))

    def sample_differing(self, signs: Words) -> Counts:
        """In how many signs the rows of the sample differ from a query.

        Args:
            signs: (WORDS,) of the query.
        """
        found: Counts = np.bitwise_count(self._sample_signs ^ signs[:, None]).sum(axis=0, dtype=np.uint8)
        return found
