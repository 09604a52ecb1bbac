"""A batch's plan: what each adapted module adds to its output, with the gates of every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from adapterhub.errors import InputError
from adapterhub.route import Route


@dataclass(frozen=True)
class Term:
    """`act(z downᵀ + bias) · gates · up + shift`, for adapters of one activation that read one side of one module.

    Args:
        reads: Whether z is the module's input or its output.
        activation: The function, or None for the identity.
        down: (R, d_z), the R ranks of the batch's adapters end to end.
        bias: (R,).
        up: (R, d_out).
        gates: (rows, 1, R), zero where a row does not use a rank.
        idle: (rows, 1, R), True where it does not; None where all rows use all ranks.
        shift: (rows, 1, d_out) or None, the up-biases times their gates.
    """

    reads: Literal["input", "output"]
    activation: Callable[[torch.Tensor], torch.Tensor] | None
    down: torch.Tensor
    bias: torch.Tensor
    up: torch.Tensor
    gates: torch.Tensor
    idle: torch.Tensor | None
    shift: torch.Tensor | None

    def hidden(self, z: torch.Tensor) -> torch.Tensor:
        """The gated activations, (rows, n, R), of z (rows, n, d_z)."""
        h = functional.linear(z, self.down, self.bias)
        if self.activation is not None:
            h = self.activation(h)
        h = (h * self.gates).to(h.dtype)
        # 0 · inf is NaN: an adapter that overflows must not reach rows that do not use it.
        return h if self.idle is None else h.masked_fill(self.idle, 0)


@dataclass(frozen=True)
class Plan:
    """What one batch adds to the base.

    Args:
        rows: Rows of the batch, before `generate` expands them.
        terms: By module name; a module that is not named is left alone.
    """

    rows: int
    terms: Mapping[str, tuple[Term, ...]]

    def apply(self, module: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The adapted output of a module.

        Beams and returned sequences of a row lie beside one another, so that the first axis is rows · expansion and
        every row is a block of it; so are tokens that a module sees flattened.

        Args:
            module: The module's name.
            x: (rows · expansion, ..., d_in), its input.
            y: (rows · expansion, ..., d_out), its own output.

        Raises:
            InputError: If the first axis is not a multiple of the batch's rows.
        """
        terms = self.terms.get(module)
        if terms is None:
            return y
        if y.shape[0] % self.rows:
            raise InputError(
                f"A module should see all rows of the batch, {self.rows} or a multiple. Found {y.shape[0]} at "
                f"{module}. Adapt only modules that every row passes through."
            )
        sides = {"input": x, "output": y}
        # All terms read the module's own output, never one another's.
        hidden = [term.hidden(sides[term.reads].reshape(self.rows, -1, term.down.shape[1])) for term in terms]
        total = y.reshape(-1, y.shape[-1])
        for term, h in zip(terms, hidden, strict=True):
            total = torch.addmm(total, h.reshape(-1, h.shape[-1]), term.up)
            if term.shift is not None:
                total = (total.view(self.rows, -1, y.shape[-1]) + term.shift).to(y.dtype).view(total.shape)
        return total.view(y.shape)


class Gates:
    """The gates of a batch, (rows, adapters), spread over the ranks that a module holds.

    Args:
        routes: One a row.
        names: The adapters that the routes name, each once, in the order of the columns.
    """

    def __init__(self, routes: Sequence[Route], names: Sequence[str]) -> None:
        columns = {name: column for column, name in enumerate(names)}
        self._weights = torch.zeros(len(routes), len(names), dtype=torch.float64)
        for row, route in enumerate(routes):
            for name, gate in zip(route.adapters, route.gates, strict=True):
                self._weights[row, columns[name]] = gate
        self._spread: dict[object, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def spread(self, ranks: tuple[int, ...], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gates by rank for one module.

        Args:
            ranks: The number of ranks that each adapter has at the module.
            like: A tensor of the device and dtype to compute in.

        Returns:
            The gates, (rows, 1, R), in float32 at least, and where they are zero; None where they are zero nowhere.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (ranks, like.device, dtype)
        if key not in self._spread:
            gates = self._weights.repeat_interleave(torch.tensor(ranks), dim=1).unsqueeze(1)
            idle = gates == 0
            self._spread[key] = gates.to(like.device, dtype), idle.to(like.device) if bool(idle.any()) else None
        return self._spread[key]

    def column(self, column: int, like: torch.Tensor) -> torch.Tensor:
        """One adapter's gates, (rows, 1, 1), in float32 at least."""
        weights = self._weights[:, column, None, None]
        return weights.to(like.device, torch.promote_types(like.dtype, torch.float32))
