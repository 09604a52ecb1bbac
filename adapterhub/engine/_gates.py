"""The gates of a batch, and where each row's ranks lie in a bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from adapterhub.engine._jobs import Jobs
from adapterhub.route import Route

__all__ = ["Blocks", "Gates", "Layout", "Slice"]

# Ranks that a block has at least, where an adapter has as many: shorter blocks cost more in calls than they save.
_SHORTEST = 8


@dataclass(frozen=True)
class Slice:
    """One adapter's ranks in one bank.

    Args:
        column: The adapter's column in the batch's gates.
        start: Its first row in the bank.
        rank: Its number of rows there.
    """

    column: int
    start: int
    rank: int


class Gates:
    """The gates of a batch, (rows, adapters).

    Args:
        routes: One a row.
        names: The adapters that the routes name, each once, in the order of the columns.
    """

    def __init__(self, routes: Sequence[Route], names: Sequence[str]) -> None:
        self.columns = {name: column for column, name in enumerate(names)}
        self.weights = torch.zeros(len(routes), len(names), dtype=torch.float64)
        for row, route in enumerate(routes):
            for name, gate in zip(route.adapters, route.gates, strict=True):
                self.weights[row, self.columns[name]] = gate
        self._layouts: dict[tuple[tuple[Slice, ...], torch.device, torch.dtype], Layout] = {}

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.weights)

    def layout(self, slices: tuple[Slice, ...], like: torch.Tensor) -> Layout:
        """The layout of these slices for tensors like `like`; modules with the same slices share it."""
        key = (slices, like.device, like.dtype)
        if key not in self._layouts:
            self._layouts[key] = Layout(self.weights, slices, like.device, like.dtype)
        return self._layouts[key]

    def mixed(self, values: dict[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """The gated sum of one vector an adapter, (rows, 1, d), in float32 at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        weights = self.weights[:, [self.columns[name] for name in values]].to(like.device, dtype)
        return (weights @ torch.stack([value.to(dtype) for value in values.values()])).unsqueeze(1)


@dataclass(frozen=True)
class Blocks:
    """A batch's adapters cut into blocks of equal rank, each with the rows that use it: what one token a row reads.

    Args:
        index: (blocks · rank,), the bank's rows of the blocks end to end; any row stands in the padding.
        padding: (blocks, rank, 1), True behind an adapter's last rank; None without padding.
        rows: (blocks · users,), the batch's row of each pair of block and user.
        gates: (blocks, users, 1); None where all are one.
        idle: (blocks, users, 1), True for pairs that only fill up; None where there are none.
        shape: (blocks, rank, users).
    """

    index: torch.Tensor
    padding: torch.Tensor | None
    rows: torch.Tensor
    gates: torch.Tensor | None
    idle: torch.Tensor | None
    shape: tuple[int, int, int]


class Layout:
    """Which ranks of a bank the rows of a batch use, in the form that each plan needs.

    Args:
        weights: (rows, adapters), float64.
        slices: The ranks of the batch's adapters in the bank, by ascending start.
        device: Where to compute.
        dtype: The bank's dtype; gates are held in it, and in float32 at least.
    """

    def __init__(
        self, weights: torch.Tensor, slices: tuple[Slice, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows = len(weights)
        self.slices = slices
        self._device = device
        self._dtype = torch.promote_types(dtype, torch.float32)
        self._weights = weights[:, [part.column for part in slices]]  # (rows, slices)
        used = (self._weights != 0) * torch.tensor([part.rank for part in slices])
        self._jobs: dict[int, Jobs] = {}
        self._seen: tuple[torch.Tensor, int, str, torch.Tensor] | None = None
        self.ranks = sum(part.rank for part in slices)
        self.row_ranks = int(used.sum(dim=1).max())
        self.all_ranks = int(used.sum())  # of all rows together

    def jobs(self, tokens: int) -> Jobs:
        """What the kernel reads for so many tokens a row."""
        if tokens not in self._jobs:
            self._jobs[tokens] = Jobs(self._weights, [(part.start, part.rank) for part in self.slices], tokens)
        return self._jobs[tokens]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(start, rank) of all slices, those that touch joined into one."""
        runs: list[tuple[int, int]] = []
        for part in self.slices:
            if runs and sum(runs[-1]) == part.start:
                runs[-1] = (runs[-1][0], runs[-1][1] + part.rank)
            else:
                runs.append((part.start, part.rank))
        return runs

    @cached_property
    def common(self) -> float | None:
        """The gate that all rows give to all ranks, or None where gates differ."""
        first = self._weights.flatten()[0]
        return float(first) if bool((self._weights == first).all()) and float(first) != 0 else None

    @cached_property
    def spread(self) -> torch.Tensor:
        """Gates by rank, (rows, 1, ranks)."""
        counts = torch.tensor([part.rank for part in self.slices])
        return self._weights.repeat_interleave(counts, dim=1).unsqueeze(1).to(self._device, self._dtype)

    @cached_property
    def idle(self) -> torch.Tensor | None:
        """(rows, 1, ranks), True where a row does not use a rank; None where all rows use all."""
        idle = self.spread == 0
        return idle if bool(idle.any()) else None

    def widened(self, z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`z` in another dtype."""
        return z if z.dtype == dtype else self._shared("widened", z, lambda: z.to(dtype))

    def paired(self, z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows of `z`, (rows, 1, d), by block and user: (blocks, users, d)."""
        count, _, users = self.blocks.shape

        def gather() -> torch.Tensor:
            return z.flatten(0, 1).to(dtype).index_select(0, self.blocks.rows).view(count, users, -1)

        return self._shared("paired", z, gather)

    def _shared(self, kind: str, z: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What is made of z; modules that read one tensor one after another, as q, k and v do, share it."""
        if z.is_inference():
            return make()
        seen = self._seen
        if seen is None or seen[0] is not z or seen[1:3] != (z._version, kind):
            self._seen = seen = (z, z._version, kind, make())
        return seen[3]

    @cached_property
    def index(self) -> torch.Tensor:
        """(rows · row_ranks,), the bank's rows of each row's ranks end to end; any row stands in the padding."""
        return self._packed[0].flatten()

    @cached_property
    def padding(self) -> torch.Tensor | None:
        """(rows, row_ranks, 1), True behind a row's last rank; None where all rows have as many."""
        padding = self._packed[1] == 0
        return padding.unsqueeze(2) if bool(padding.any()) else None

    @cached_property
    def factors(self) -> torch.Tensor | None:
        """(rows, row_ranks, 1), gates of each row's ranks; None where all are one."""
        factors = self._packed[1]
        return None if bool((factors == 1).all()) else factors.unsqueeze(2)

    @cached_property
    def segments(self) -> list[tuple[slice, Slice, float]]:
        """Rows that lie beside one another and give one adapter the same gate: (rows, its ranks, the gate)."""
        found: list[tuple[slice, Slice, float]] = []
        for column, part in zip(self._weights.T.tolist(), self.slices, strict=True):
            begin = 0
            for row in range(1, self.rows + 1):
                if row == self.rows or column[row] != column[begin]:
                    if column[begin] != 0:
                        found.append((slice(begin, row), part, column[begin]))
                    begin = row
        return found

    @cached_property
    def blocks(self) -> Blocks:
        """The adapters in blocks, every adapter read once for up to `users` rows."""
        count, rank, users = self.block_shape
        index, gates = torch.zeros(count, rank, dtype=torch.int64), torch.zeros(count, users, dtype=torch.float64)
        padding, rows = torch.ones(count, rank, dtype=torch.bool), torch.zeros(count, users, dtype=torch.int64)
        block = 0
        for column, part in zip(self._weights.T.tolist(), self.slices, strict=True):
            used = [row for row, gate in enumerate(column) if gate]
            for first in range(0, len(used), users):
                here = used[first : first + users]
                for low in range(0, part.rank, rank):
                    held = min(rank, part.rank - low)
                    index[block, :held] = torch.arange(part.start + low, part.start + low + held)
                    padding[block, :held] = False
                    rows[block, : len(here)] = torch.tensor(here)
                    gates[block, : len(here)] = torch.tensor([column[row] for row in here], dtype=torch.float64)
                    block += 1
        idle = gates == 0
        put = self._device
        return Blocks(
            index.flatten().to(put),
            padding.unsqueeze(2).to(put) if bool(padding.any()) else None,
            rows.flatten().to(put),
            None if bool((gates == 1).all()) else gates.unsqueeze(2).to(put, self._dtype),
            idle.unsqueeze(2).to(put) if bool(idle.any()) else None,
            (count, rank, users),
        )

    @cached_property
    def block_shape(self) -> tuple[int, int, int]:
        """(blocks, rank, users) with the least to read: ranks, and a vector in and out for every pair."""
        ranks = [part.rank for part in self.slices]
        rank = max(math.gcd(*ranks), min(_SHORTEST, max(ranks)))
        used = [(count, -(-part.rank // rank)) for count, part in zip(self._users, self.slices, strict=True)]
        shapes = [
            (sum(-(-count // users) * cuts for count, cuts in used), rank, users)
            for users in sorted({1, 2, 4, 8, *self._users} - {0})
            if users <= max(self._users)
        ]
        return min(shapes, key=lambda shape: shape[0] * (shape[1] + shape[2] * (2 + 0.2 * shape[1])))

    @cached_property
    def _users(self) -> list[int]:
        """Rows that use each slice."""
        return [int(count) for count in (self._weights != 0).sum(dim=0)]

    @cached_property
    def _packed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and gates, (rows, row_ranks)."""
        index = torch.zeros(self.rows, self.row_ranks, dtype=torch.int64)
        gates = torch.zeros(self.rows, self.row_ranks, dtype=torch.float64)
        ends = [0] * self.rows
        for row, weights in enumerate(self._weights.tolist()):
            for part, weight in zip(self.slices, weights, strict=True):
                if weight:
                    span = slice(ends[row], ends[row] + part.rank)
                    index[row, span] = torch.arange(part.start, part.start + part.rank)
                    gates[row, span] = weight
                    ends[row] = span.stop
        return index.to(self._device), gates.to(self._device, self._dtype)
