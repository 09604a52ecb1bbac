"""Differing bits of codes, counted: by numpy, or where the machine has a C compiler by a kernel, with equal results."""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._kernel import kernel
from adapterhub.catalog._signature import DIGITS, WORDS, Floats, Words
from adapterhub.compiled import NoKernelError

__all__ = ["WORTH", "Counting", "Counts", "InC", "InNumpy", "Places", "counting"]

logger = logging.getLogger(__name__)

Places = NDArray[np.intp]
Counts = NDArray[np.uint8]

# What a differing bit is worth, in the order of digits of a query and of a row; whole numbers, so float32 adds exactly.
WORTH = np.multiply.outer(2.0 ** np.arange(DIGITS), np.repeat([2.0, 1.0], WORDS)).astype(np.float32).reshape(-1)
_CODES = 2048  # codes whose digits stay in the cache
_ROOM = 64  # chunks of one query, or queries of a chunk, whose rows there is room for


class Counting(Protocol):
    """Counts bits in which codes differ."""

    def scan(self, planes: Words, signs: Words, thresholds: Counts) -> Iterator[tuple[int, Places, Counts]]:
        """Rows with no more differing signs than the threshold of their block.

        Args:
            planes: (chunks, WORDS, rows of a chunk) signs of the rows.
            signs: (b, WORDS) of the queries.
            thresholds: (chunks, b, blocks of a chunk).

        Yields:
            A query's number, positions of rows, ascending, and how many signs differ; 256 count as 0, so a row that
            differs in all of them is looked at in vain.
        """
        ...

    def differing(self, codes: Words, asked: Iterable[tuple[Places, Words]]) -> Iterator[Floats]:
        """How much all digits of rows and of a query differ.

        Args:
            codes: (n, 2 WORDS) of the rows.
            asked: Positions (m,) of rows, and the digits (DIGITS, WORDS) of a query.

        Yields:
            (m,) sums of the differing bits, times what each is worth.
        """
        ...


class InNumpy(Counting):
    """In numpy, with as little memory between two steps as the cache holds."""

    def scan(self, planes: Words, signs: Words, thresholds: Counts) -> Iterator[tuple[int, Places, Counts]]:
        size, (count, _) = planes.shape[2], signs.shape
        together = max(1, 4 // count)  # chunks: for few queries the calls cost more than the cache gains
        words = np.empty((together, WORDS, size), dtype=np.uint64)
        each = np.empty((together, WORDS, size), dtype=np.uint8)
        counts = np.empty((count, together, size), dtype=np.uint8)
        blocks = (count, together, thresholds.shape[2], -1)
        for start in range(0, len(planes), together):
            part, limits = planes[start : start + together], thresholds[start : start + together].transpose(1, 0, 2)
            here = len(part)
            for column, query in zip(signs[:, :, None], counts, strict=True):
                np.bitwise_xor(part, column, out=words[:here])
                np.bitwise_count(words[:here], out=each[:here])
                np.add.reduce(each[:here], axis=1, dtype=np.uint8, out=query[:here])
            found = _where(counts.reshape(blocks)[:, :here] <= limits[:, :, :, None])
            cuts = np.searchsorted(found, here * size * np.arange(count + 1)).tolist()
            for number, (first, last) in enumerate(itertools.pairwise(cuts)):
                at = found[first:last] - number * here * size
                yield number, at + start * size, counts[number].reshape(-1).take(at)

    def differing(self, codes: Words, asked: Iterable[tuple[Places, Words]]) -> Iterator[Floats]:
        words = np.empty((DIGITS, 2 * WORDS, _CODES), dtype=np.uint64)
        counts = np.empty(words.shape, dtype=np.uint8)
        floats = np.empty((len(WORTH), _CODES), dtype=np.float32)
        for at, signs in asked:
            both = np.tile(signs, 2)[:, :, None]
            found = np.empty(len(at), dtype=np.float32)
            for start in range(0, len(at), _CODES):
                part = np.ascontiguousarray(codes.take(at[start : start + _CODES], axis=0).T)
                here = part.shape[1]
                np.bitwise_xor(part, both, out=words[:, :, :here])
                np.bitwise_count(words[:, :, :here], out=counts[:, :, :here])
                np.copyto(floats, counts.reshape(floats.shape))
                found[start : start + here] = (WORTH @ floats)[:here]
            yield found


class InC(Counting):
    """In the kernel `codes.c`.

    Raises:
        NoKernelError: If there is no compiler, or it fails.
    """

    def __init__(self) -> None:
        pointer, size, functions = ctypes.c_void_p, ctypes.c_size_t, kernel()
        self._scan, self._differ = functions.adapterhub_scan, functions.adapterhub_differ
        self._scan.argtypes = [pointer, size, size, pointer, size, pointer, size, pointer, pointer, pointer]
        self._differ.argtypes = [pointer, pointer, size, pointer, pointer]
        self._scan.restype = self._differ.restype = None

    def scan(self, planes: Words, signs: Words, thresholds: Counts) -> Iterator[tuple[int, Places, Counts]]:
        planes, signs, thresholds = map(np.ascontiguousarray, (planes, signs, thresholds))
        size, count = planes.shape[2], len(signs)
        together = max(1, _ROOM // count)
        found = np.empty(together * count * size, dtype=np.int64)  # pages that are not written take no memory
        differing = np.empty(len(found), dtype=np.uint8)
        ends = np.zeros(together * count + 1, dtype=np.int64)
        for start in range(0, len(planes), together):
            part, limits = planes[start : start + together], thresholds[start : start + together]
            made = (found.ctypes.data, differing.ctypes.data, ends[1:].ctypes.data)
            rows = (part.ctypes.data, len(part), size, signs.ctypes.data, count)
            self._scan(*rows, limits.ctypes.data, size // limits.shape[2], *made)
            cuts = ends[: len(part) * count + 1].tolist()
            at, counts = found[: cuts[-1]] + start * size, differing[: cuts[-1]].copy()
            for number, (first, last) in enumerate(itertools.pairwise(cuts)):
                yield number % count, at[first:last], counts[first:last]

    def differing(self, codes: Words, asked: Iterable[tuple[Places, Words]]) -> Iterator[Floats]:
        codes = np.ascontiguousarray(codes)
        for at, signs in asked:
            rows, digits = np.ascontiguousarray(at, dtype=np.int64), np.ascontiguousarray(signs)
            found = np.empty(len(rows), dtype=np.float32)
            self._differ(codes.ctypes.data, rows.ctypes.data, len(rows), digits.ctypes.data, found.ctypes.data)
            yield found


@functools.cache
def counting() -> Counting:
    """The faster way that this machine has."""
    try:
        return InC()
    except NoKernelError as error:
        logger.info("Routes among many tasks take twice as long without a C compiler: %s.", error)
        return InNumpy()


def _where(flags: NDArray[np.bool_]) -> Places:
    """Where flags are set, ascending; for few of them, which are first looked for in words of eight."""
    flags = np.ascontiguousarray(flags).reshape(-1)
    words = (flags.view(np.uint64) != 0).nonzero()[0]
    inside = flags.reshape(-1, 8).take(words, axis=0).reshape(-1).nonzero()[0]
    found: Places = 8 * words.take(inside >> 3) + (inside & 7)
    return found
