"""Linear parts of rows on disk: checksums, and reading some of them; with a C compiler or by numpy, with equal results.

Nothing is mapped: a file that shrinks would end the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._counting import Places
from adapterhub.catalog._kernel import kernel
from adapterhub.catalog._signature import Words
from adapterhub.compiled import NoKernelError

__all__ = ["InC", "InNumpy", "Reading", "checksums", "gather", "stride"]

Bytes = NDArray[np.uint8]


def stride(width: int) -> int:
    """float16 numbers of a row on disk: whole words of 64 bits."""
    return -(-width // 4) * 4


def checksums(linear: NDArray[np.float16]) -> Words:
    """(n,) checksums of rows; one changed word always changes it.

    A sum of the words times odd numbers, modulo 2^64.

    Args:
        linear: (n, stride) in whole words.
    """
    return _reading().sums(np.ascontiguousarray(linear).view("<u8"))


def gather(file: int, places: Places, size: int) -> Bytes:
    """Rows of a file, one read for each run of neighbours.

    Args:
        file: Its descriptor.
        places: (m,) ascending.
        size: Bytes of a row.

    Returns:
        (m, size).

    Raises:
        OSError: If it cannot be read.
        EOFError: If it ends too early.
    """
    found = _reading().gather(file, places, size)
    if len(found) != len(places) * size:
        raise EOFError("it ends too early")
    return found.reshape(len(places), size)


class Reading(Protocol):
    """Reads rows and adds them up."""

    def gather(self, file: int, places: Places, size: int) -> Bytes:
        """As many of the bytes of rows as there are; else as `gather`."""
        ...

    def sums(self, words: Words) -> Words:
        """(n,) sums of words (n, w), folded, times odd numbers."""
        ...


class InNumpy:
    """Without a compiler."""

    def gather(self, file: int, places: Places, size: int) -> Bytes:
        first = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        lengths = np.diff(first, append=len(places)) * size
        runs = zip(lengths.tolist(), (places[first] * size).tolist(), strict=True)
        return np.frombuffer(b"".join([os.pread(file, length, at) for length, at in runs]), dtype=np.uint8)

    def sums(self, words: Words) -> Words:
        folded = words ^ (words >> np.uint64(32))  # else two flips of highest bits would cancel
        found: Words = (folded * _odd(words.shape[1])).sum(axis=1, dtype=np.uint64)
        return found


class InC:
    """In the kernel `rows.c`.

    Raises:
        NoKernelError: If there is no compiler, it fails, or words do not lie in memory as on disk.
    """

    def __init__(self) -> None:
        if sys.byteorder != "little":
            raise NoKernelError("numbers have their largest byte first here")
        pointer, size, functions = ctypes.c_void_p, ctypes.c_size_t, kernel()
        self._gather, self._sums = functions.adapterhub_gather, functions.adapterhub_sums
        self._gather.argtypes = [ctypes.c_int, pointer, size, size, pointer]
        self._gather.restype = ctypes.c_int64
        self._sums.argtypes = [pointer, size, size, pointer, pointer]
        self._sums.restype = None

    def gather(self, file: int, places: Places, size: int) -> Bytes:
        rows = np.ascontiguousarray(places, dtype=np.int64)
        found = np.empty(len(rows) * size, dtype=np.uint8)
        got = self._gather(file, rows.ctypes.data, len(rows), size, found.ctypes.data)
        if got < 0:
            raise OSError(-got, os.strerror(-got))
        return found[:got]

    def sums(self, words: Words) -> Words:
        words = np.ascontiguousarray(words)
        found = np.empty(len(words), dtype=np.uint64)
        odd = _odd(words.shape[1])
        self._sums(words.ctypes.data, *words.shape, odd.ctypes.data, found.ctypes.data)
        return found


@functools.cache
def _reading() -> Reading:
    """The faster way that this machine has."""
    try:
        return InC()
    except NoKernelError:  # `counting` logs it
        return InNumpy()


@functools.cache
def _odd(count: int) -> Words:
    """Odd numbers without a pattern (splitmix64, Steele 2014); of our own, for those of numpy may change."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    odd: Words = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
    return odd
