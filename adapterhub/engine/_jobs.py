"""What the kernel reads beside the factors: who uses what, laid out once a batch; and where a module's factors lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["BankOf", "Jobs"]

Whole = npt.NDArray[np.int64]
_UNIT = 8  # as in tiles.c
_BLOCK = 64  # tokens whose outputs are computed together, where a row has several


class _Jobs(ctypes.Structure):
    """`jobs_t` of kernel.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("units", "groups", "blocks", "hidden", "most", "alike")),
        *((name, ctypes.c_void_p) for name in ("unit", "group", "span", "block", "user", "gate", "token")),
    )


class _Bank(ctypes.Structure):
    """`bank_t` of tiles.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("down", "up")),
        *((name, ctypes.c_int64) for name in ("d_in", "d_out", "half")),
    )


class Jobs:
    """Which tokens use which ranks of a bank: all modules with the same slices share it.

    Args:
        weights: (rows, slices), the gates; rows do not use what they give a zero.
        slices: (first rank in the bank, number of ranks) of each.
        tokens: Tokens a row.
    """

    def __init__(self, weights: torch.Tensor, slices: Sequence[tuple[int, int]], tokens: int) -> None:
        gates = weights.numpy()
        column, row = np.nonzero(gates.T)  # by slice, then by row
        touched, place = np.unique(row, return_inverse=True)
        used, counts = np.unique(column, return_counts=True)
        starts, ranks = (np.array([part[i] for part in slices], dtype=np.int64)[used] for i in range(2))
        users = counts * tokens
        group = np.stack([starts, ranks, _before(users), users, _before(ranks * users)], axis=1)
        cuts = -(-ranks // _UNIT)
        of = np.repeat(np.arange(len(group)), cuts)
        first = _UNIT * _within(cuts)
        owner = np.repeat(np.arange(len(group)), counts)  # of each pair of slice and row
        span, block = _blocks(owner, place, tokens)
        each = np.arange(tokens)
        self._arrays = [
            np.ascontiguousarray(array)
            for array in (
                np.stack([of, first, group[of, 4] + first * users[of]], axis=1),
                group,
                span,
                block,
                (place[:, None] * tokens + each).ravel(),
                np.repeat(gates[row, column], tokens).astype(np.float32),
                (touched[:, None] * tokens + each).ravel(),
            )
        ]
        self.hidden = int((ranks * users).sum())
        most = int(np.diff(block[:, 1]).max(initial=0))
        alike = tokens > 1 or bool((counts == len(touched)).all())
        sizes = (len(of), len(group), len(block) - 1, self.hidden, most, alike)
        self._held = _Jobs(*sizes, *(array.ctypes.data for array in self._arrays))
        self.address = ctypes.addressof(self._held)


class BankOf:
    """One module's factors, where the kernel finds them; they stay there as long as this is held.

    Args:
        down: (ranks, d_in), contiguous, float32 or bfloat16.
        up: (ranks, d_out), the same.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        self._factors = (down, up)
        half = int(down.dtype == torch.bfloat16)
        self._held = _Bank(down.data_ptr(), up.data_ptr(), down.shape[1], up.shape[1], half)
        self.address = ctypes.addressof(self._held)


def _blocks(owner: Whole, place: Whole, tokens: int) -> tuple[Whole, Whole]:
    """Spans, (spans, 3), and blocks, (blocks + 1, 2), as in kernel.c.

    Args:
        owner: The group of each pair of slice and row, ascending.
        place: The row's place among those that use anybody.
        tokens: Tokens a row.
    """
    if tokens == 1:  # all rows together, so that an adapter is read once for all that use it
        found, first, count = np.unique(owner, return_index=True, return_counts=True)
        ends = [(0, 0), (len(found), place.max() + 1)] if len(found) else [(0, 0)]
        return np.stack([found, first, count], axis=1), np.array(ends, dtype=np.int64)
    pairs = np.split(np.lexsort((owner, place)), np.cumsum(np.bincount(place)))[:-1]  # of each row, by group
    spans, ends = [np.zeros((0, 3), dtype=np.int64)], [(0, 0)]
    for row, mine in enumerate(pairs):
        for low in range(0, tokens, _BLOCK):
            held = min(tokens - low, _BLOCK)
            spans.append(np.stack([owner[mine], mine * tokens + low, np.full(len(mine), held)], axis=1))
            ends.append((ends[-1][0] + len(mine), row * tokens + low + held))
    return np.concatenate(spans), np.array(ends, dtype=np.int64)


def _before(counts: Whole) -> Whole:
    """The sum of the counts before each."""
    found: Whole = np.cumsum(counts) - counts
    return found


def _within(counts: Whole) -> Whole:
    """0, 1, ... for each count."""
    found: Whole = np.arange(counts.sum()) - np.repeat(_before(counts), counts)
    return found
