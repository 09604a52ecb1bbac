"""The arena's rows beside one module of the base: `A`, `B` and the bias, all of one activation and one side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from adapterhub.adapter import LowRank
from adapterhub.engine._forms import ACTIVATIONS, Rows
from adapterhub.engine._gates import Gates, Slice
from adapterhub.engine._plan import Term

__all__ = ["Bank"]


class Bank:
    """Rows of the arena at one module, of the adapters that read the same side with the same activation.

    `down` is (rows, d_z), `up` is (rows, d_out), `bias` is (rows,) once an adapter has one. Rows are allocated when an
    adapter needs them, in doubling steps up to `capacity`. An adapter's rows begin where its range does; the range may
    be longer than its rank at this module. Growing and compacting go to fresh tensors: a plan keeps those it was made
    with, and its adapters' rows in them do not change while it holds them.

    Args:
        factors: The first member's factors; they set the widths and the formula.
        like: An empty tensor of the module's dtype and device.
        capacity: The arena's ranks.
    """

    def __init__(self, factors: LowRank, like: torch.Tensor, capacity: int) -> None:
        self._reads = factors.reads
        self._activation = ACTIVATIONS[factors.activation]
        self._capacity = capacity
        self._ranks: dict[str, int] = {}
        self.down = like.new_empty(0, factors.down.shape[1])
        self.up = like.new_empty(0, factors.up.shape[1])
        self.bias: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows, used or not."""
        return self.down.nbytes + self.up.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def write(self, name: str, start: int, factors: LowRank) -> None:
        """Copy an adapter's factors into the rows from `start`."""
        stop = start + factors.rank
        have = len(self.down)
        if stop > have:
            self._lengthen(min(self._capacity, max(stop, 2 * have)))
        self.down[start:stop].copy_(factors.down)
        self.up[start:stop].copy_(factors.up)
        if factors.bias is not None and self.bias is None:
            self.bias = self.down.new_zeros(len(self.down))
        if self.bias is not None:
            self.bias[start:stop] = 0 if factors.bias is None else factors.bias.to(self.bias)
        self._ranks[name] = factors.rank

    def compact(self, moves: Mapping[str, tuple[int, int]]) -> None:
        """Copy adapters' rows to their new places, in fresh tensors.

        Args:
            moves: Old and new start by name.
        """
        old = (self.down, self.up, self.bias)
        self.down, self.up = self.down.clone(), self.up.clone()
        self.bias = None if self.bias is None else self.bias.clone()
        for rows, before in zip((self.down, self.up, self.bias), old, strict=True):
            for name, (source, target) in moves.items():
                if rows is not None and before is not None and name in self._ranks:
                    rank = self._ranks[name]
                    rows[target : target + rank] = before[source : source + rank]

    def drop(self, name: str) -> None:
        """Forget an adapter's rows."""
        self._ranks.pop(name, None)

    def term(self, active: Sequence[tuple[str, int]], gates: Gates) -> Term | None:
        """The term of the ranks that `active` adapters have here, or None where they have none.

        Args:
            active: Names and starts of the batch's adapters, by ascending start.
            gates: The batch's gates.
        """
        slices = tuple(
            Slice(gates.columns[name], start, self._ranks[name]) for name, start in active if name in self._ranks
        )
        if not slices:
            return None
        layout = gates.layout(slices, self.down)
        if not layout.row_ranks:
            return None  # every gate is zero
        return Term(self._reads, Rows(layout, self.down, self.up, self.bias, self._activation, self._reads == "tokens"))

    def _lengthen(self, rows: int) -> None:
        self.down, self.up = _longer(self.down, rows), _longer(self.up, rows)
        self.bias = None if self.bias is None else _longer(self.bias, rows)


def _longer(old: torch.Tensor, rows: int) -> torch.Tensor:
    new = old.new_zeros(rows, *old.shape[1:])
    new[: len(old)] = old
    return new
