"""Ways to compute one sum over the adapters of a bank: dense, packed (by row, or in blocks), and by segment.

Each gives `act(z downᵀ + bias) · gates · up` for rows that have their own gates, in two steps: `hidden` reads z and
`add` adds to the output in place, so that all banks of a module read before any of them writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from adapterhub.engine._gates import Layout

__all__ = ["ACTIVATIONS", "Blocked", "Dense", "Form", "Packed", "Rows", "Segmented"]

Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation | None] = {
    "identity": None,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


@dataclass(frozen=True)
class Rows:
    """The rows of one bank that a batch uses.

    Args:
        layout: Which rows, and with which gates.
        down: (bank rows, d_z).
        up: (bank rows, d_out).
        bias: (bank rows,), or None where no adapter has one.
        activation: The function, or None for the identity.
        tokens: Whether z are token ids, each the index of a column of `down`.
    """

    layout: Layout
    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    activation: Activation | None
    tokens: bool


class Form(Protocol):
    """One way to compute the sum."""

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        """The activations of z, (rows, n, d_z) or token ids (rows, n)."""

    def add(self, total: torch.Tensor, hidden: list[torch.Tensor]) -> None:
        """Add what the activations give to `total`, (rows, n, d_out), in place."""

    def apply(self, total: torch.Tensor, z: torch.Tensor) -> None:
        """Both steps at once, where nothing else reads or writes between them."""
        self.add(total, self.hidden(z))


class Dense(Form):
    """All rows through all ranks in use, then gated: few ranks in all, whatever the number of adapters a row.

    Args:
        rows: The rows of the bank.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        runs = rows.layout.runs
        self._down, self._up = _joined(rows.down, runs), _joined(rows.up, runs)
        self._bias = None if rows.bias is None else _joined(rows.bias, runs)
        self._alpha = rows.layout.common
        self._gates = rows.layout.spread if self._alpha is None else None
        self._idle = rows.layout.idle if self._alpha is None else None

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        h = functional.embedding(z, self._down.T) if self._rows.tokens else functional.linear(z, self._down, self._bias)
        if self._rows.activation is not None:
            h = self._rows.activation(h)
        return [_gated(h, self._gates, self._idle)]

    def add(self, total: torch.Tensor, hidden: list[torch.Tensor]) -> None:
        alpha = 1.0 if self._alpha is None else self._alpha
        total.view(-1, total.shape[-1]).addmm_(hidden[0].flatten(0, 1), self._up, alpha=alpha)


class Packed(Form):
    """Each row through its own ranks, gathered side by side: many adapters in all, few a row.

    One token a row is computed as `down · zᵀ`, which reads the factors at memory speed. There, on a CPU, half precision
    is computed in float32: batched products of bfloat16 cost several times as much.

    Args:
        rows: The rows of the bank.
        tokens: Tokens a row.
    """

    def __init__(self, rows: Rows, tokens: int) -> None:
        self._layout = layout = rows.layout
        shape = (layout.rows, layout.row_ranks, -1)
        self._activation = rows.activation
        self._single = tokens == 1
        self._down, self._up, bias = _gathered(rows, layout.index, shape, single=self._single)
        if layout.factors is not None:
            self._up.mul_(layout.factors)
        if layout.padding is not None:
            _clear(self._down, bias, layout.padding)
        self._bias = None if bias is None else bias.mT

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        z = self._layout.widened(z, self._down.dtype)
        h = torch.bmm(self._down, z.mT).mT if self._single else torch.bmm(z, self._down.mT)
        if self._bias is not None:
            h = h + self._bias
        return [h if self._activation is None else self._activation(h)]

    def add(self, total: torch.Tensor, hidden: list[torch.Tensor]) -> None:
        if total.dtype == self._up.dtype:
            total.baddbmm_(hidden[0], self._up)
        else:
            total.add_(torch.bmm(hidden[0], self._up))


class Blocked(Form):
    """Each adapter once, with the rows that use it: several adapters a row, one token a row.

    A decoding step is bound by what it reads, so adapters are cut into blocks of equal rank, without padding for mixed
    ranks, and a block is read once for all its rows.

    Args:
        rows: The rows of the bank.
    """

    def __init__(self, rows: Rows) -> None:
        self._layout, self._blocks = rows.layout, rows.layout.blocks
        blocks = self._blocks
        self._activation = rows.activation
        self._down, self._up, bias = _gathered(rows, blocks.index, (*blocks.shape[:2], -1), single=True)
        if blocks.padding is not None:
            _clear(self._down, bias, blocks.padding)
        self._bias = None if bias is None else bias.mT

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        blocks = self._blocks
        z = self._layout.paired(z, self._down.dtype)
        # Measured for few rows a block: this way round is faster up to a width of about 1,024, the other above it.
        h = torch.bmm(z, self._down.mT) if z.shape[-1] > 1024 else torch.bmm(self._down, z.mT).mT
        if self._bias is not None:
            h = h + self._bias
        if self._activation is not None:
            h = self._activation(h)
        return [_gated(h, blocks.gates, blocks.idle)]

    def add(self, total: torch.Tensor, hidden: list[torch.Tensor]) -> None:
        found = torch.bmm(hidden[0], self._up).flatten(0, 1)
        if total.dtype == found.dtype:
            total.flatten(0, 1).index_add_(0, self._blocks.rows, found)
        else:
            total.add_(
                found.new_zeros(total.shape).flatten(0, 1).index_add_(0, self._blocks.rows, found).view_as(total)
            )


class Segmented(Form):
    """Neighbouring rows of one adapter together, on views of the bank: many tokens, few adapters; nothing is copied.

    Args:
        rows: The rows of the bank.
    """

    def __init__(self, rows: Rows) -> None:
        self._activation = rows.activation
        self._parts = []
        for span, part, gate in rows.layout.segments:
            ranks = slice(part.start, part.start + part.rank)
            bias = None if rows.bias is None else rows.bias[ranks]
            self._parts.append((span, rows.down[ranks], rows.up[ranks], bias, gate))

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        found = [functional.linear(z[span].flatten(0, 1), down, bias) for span, down, _, bias, _ in self._parts]
        return found if self._activation is None else [self._activation(h) for h in found]

    def add(self, total: torch.Tensor, hidden: list[torch.Tensor]) -> None:
        for (span, _, up, _, gate), h in zip(self._parts, hidden, strict=True):
            total[span].flatten(0, 1).addmm_(h, up, alpha=gate)


def _gated(h: torch.Tensor, gates: torch.Tensor | None, idle: torch.Tensor | None) -> torch.Tensor:
    """Activations times gates, zero where idle: 0 · inf is NaN, and must not reach rows that do not use an adapter.

    In place, a third of the time at one token a row, where autograd does not need them.
    """
    if torch.is_grad_enabled():
        h = h if gates is None else (h * gates).to(h.dtype)
        return h if idle is None else h.masked_fill(idle, 0)
    if gates is not None:
        h.mul_(gates)
    return h if idle is None else h.masked_fill_(idle, 0)


def _joined(rows: torch.Tensor, runs: list[tuple[int, int]]) -> torch.Tensor:
    """The rows of the runs, end to end: a view for one run, one copy otherwise."""
    views = [rows.narrow(0, start, rank) for start, rank in runs]
    return views[0] if len(views) == 1 else torch.cat(views)


def _gathered(
    rows: Rows, index: torch.Tensor, shape: tuple[int, int, int], *, single: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Factors and bias of the bank's rows at `index`: (groups, rank, d_z), (groups, rank, d_out), (groups, rank, 1)."""
    half = single and rows.down.device.type == "cpu" and rows.down.dtype.itemsize == 2
    dtype = torch.float32 if half else rows.down.dtype
    down, up = (value.index_select(0, index).view(shape).to(dtype) for value in (rows.down, rows.up))
    return down, up, None if rows.bias is None else rows.bias[index].view(shape).to(dtype)


def _clear(down: torch.Tensor, bias: torch.Tensor | None, padding: torch.Tensor) -> None:
    """Zero what stands in the padding, or another adapter's overflow would come in as 0 · inf."""
    down.masked_fill_(padding, 0)
    if bias is not None:
        bias.masked_fill_(padding, 0)
