"""The arena's rows beside one module of the base: `A`, `B` and the bias, all of one activation and one side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from adapterhub.adapter import LowRank
from adapterhub.engine._plan import Gates, Term

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "identity": None,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


@dataclass(frozen=True)
class _Member:
    rank: int
    up_bias: torch.Tensor | None


class Bank:
    """Rows of the arena at one module, of the adapters that read the same side with the same activation.

    `down` is (rows, d_z), `up` is (rows, d_out), `bias` is (rows,). Rows are allocated when an adapter needs them, in
    doubling steps up to `capacity`. An adapter's rows begin where its range does; the range may be longer than its rank
    at this module.

    Args:
        like: The first member's factors; they set the widths and the formula.
        weight: The module's weight; it sets dtype and device.
        capacity: The arena's ranks.
    """

    def __init__(self, like: LowRank, weight: torch.Tensor, capacity: int) -> None:
        self._reads = like.reads
        self._activation = ACTIVATIONS[like.activation]
        self._capacity = capacity
        self._members: dict[str, _Member] = {}
        self.down = weight.new_empty(0, like.down.shape[1])
        self.up = weight.new_empty(0, like.up.shape[1])
        self.bias = weight.new_empty(0)

    @property
    def empty(self) -> bool:
        """Whether no adapter has rows here."""
        return not self._members

    def write(self, name: str, start: int, factors: LowRank) -> None:
        """Copy an adapter's factors into the rows from `start`."""
        stop = start + factors.rank
        self._grow(stop)
        self.down[start:stop] = factors.down.to(self.down)
        self.up[start:stop] = factors.up.to(self.up)
        self.bias[start:stop] = 0 if factors.bias is None else factors.bias.to(self.bias)
        up_bias = None if factors.up_bias is None else factors.up_bias.to(self.up, copy=True)
        self._members[name] = _Member(factors.rank, up_bias)

    def move(self, name: str, old: int, new: int) -> None:
        """Copy an adapter's rows from `old` to `new`; the two may overlap."""
        if name not in self._members:
            return
        rank = self._members[name].rank
        for rows in (self.down, self.up, self.bias):
            rows[new : new + rank] = rows[old : old + rank].clone()

    def drop(self, name: str) -> None:
        """Forget an adapter's rows."""
        self._members.pop(name, None)

    def dense(self, active: Sequence[tuple[str, int]], gates: Gates) -> Term | None:
        """The term over the ranks that `active` adapters have here, packed end to end.

        Args:
            active: Names and starts of the batch's adapters, by ascending start.
            gates: The batch's gates, for the same adapters in the same order.

        Returns:
            The term, or None where no active adapter has rows here.
        """
        members = [self._members.get(name) for name, _ in active]
        ranks = tuple(0 if member is None else member.rank for member in members)
        if not any(ranks):
            return None
        runs = _runs([(start, rank) for (_, start), rank in zip(active, ranks, strict=True) if rank])
        spread, idle = gates.spread(ranks, self.up)
        shift: torch.Tensor | None = None
        for column, member in enumerate(members):
            if member is not None and member.up_bias is not None:
                part = gates.column(column, self.up) * member.up_bias  # (rows, 1, d_out)
                shift = part if shift is None else shift + part
        return Term(
            self._reads,
            self._activation,
            _pack(self.down, runs),
            _pack(self.bias, runs),
            _pack(self.up, runs),
            spread,
            idle,
            shift,
        )

    def _grow(self, rows: int) -> None:
        have = self.bias.shape[0]
        if rows <= have:
            return
        rows = min(self._capacity, max(rows, 2 * have))
        self.down, self.up, self.bias = (_longer(old, rows) for old in (self.down, self.up, self.bias))


def _longer(old: torch.Tensor, rows: int) -> torch.Tensor:
    new = old.new_empty(rows, *old.shape[1:])
    new[: old.shape[0]] = old
    return new


def _runs(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join (start, rank) parts that touch, so that neighbours are one view."""
    runs: list[tuple[int, int]] = []
    for start, rank in parts:
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + rank)
        else:
            runs.append((start, rank))
    return runs


def _pack(rows: torch.Tensor, runs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The rows of the runs, end to end: a view for one run, one copy otherwise."""
    views = [rows.narrow(0, start, rank) for start, rank in runs]
    return views[0] if len(views) == 1 else torch.cat(views)
