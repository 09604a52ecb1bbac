"""A batch's plan: what each adapted module adds to its output, worked out when the module is first reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from adapterhub.engine._forms import Form, Rows
from adapterhub.engine._gates import Gates
from adapterhub.engine._library import Native
from adapterhub.engine._planner import Kind, choose, make
from adapterhub.errors import InputError
from adapterhub.route import Route

__all__ = ["Part", "Plan", "Term"]


@dataclass(frozen=True)
class Term:
    """The adapters of one bank.

    Args:
        reads: What they read of the module: its input, its own output, or its tokens.
        rows: Their rows.
    """

    reads: Literal["input", "output", "tokens"]
    rows: Rows


@dataclass
class Plan:
    """What one batch adds to the base.

    A plan is made in microseconds, from the routes alone. Its parts, one a module, are made at the first pass and kept.

    Args:
        routes: One a row, before `generate` expands the rows.
        names: The adapters in them, by ascending start of their ranks.
        kind: The plan to take everywhere, or None to take the cheapest for each shape.
        uses: Passes that are expected, over which the cost of gathering is spread.
        native: The compiled kernel, where it may be used.
    """

    routes: Sequence[Route]
    names: Sequence[str]
    kind: Kind | None = None
    uses: int = 1
    native: Native | None = None
    parts: dict[str, Part | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gates = Gates(self.routes, self.names)
        self._kinds: dict[object, Kind] = {}

    def form(self, rows: Rows, tokens: int, native: Native | None) -> Form:
        """The cheapest form for rows of a bank; modules that are alike share the choice."""
        widths = (rows.down.shape[1], rows.up.shape[1])
        alike = (rows.layout, widths, rows.tokens, rows.activation, rows.bias is None, tokens, native)
        if alike not in self._kinds:
            self._kinds[alike] = choose(rows, tokens, self.uses, self.kind, native)
        return make(self._kinds[alike], rows, tokens, native)


class Part:
    """What a plan adds at one module.

    Args:
        module: The module's name, for messages.
        plan: The plan that it is a part of.
        terms: Low-rank terms, a bank each.
        gain_in: (rows, 1, d_in), added to one before it multiplies the input; or None.
        gain_out: The same for the module's own output.
        gain_norm: (rows, 1, d), what is added to a normalisation's weight; or None.
        shift: (rows, 1, d_out), added to the output; or None.
        normalise: Gives a normalisation's input without weight and bias.
    """

    def __init__(
        self,
        module: str,
        plan: Plan,
        terms: Sequence[Term],
        *,
        gain_in: torch.Tensor | None = None,
        gain_out: torch.Tensor | None = None,
        gain_norm: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        normalise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.terms = terms
        self._module = module
        self._plan = plan
        self._rows = plan.gates.rows
        self.gain_in, self.gain_out, self.gain_norm, self.shift = gain_in, gain_out, gain_norm, shift
        self.normalise = normalise
        self._needs_own = gain_out is not None or any(term.reads == "output" for term in terms)
        # The common case, one LoRA bank, takes a short way: at one token a row every call counts.
        others = (gain_in, gain_out, gain_norm, shift)
        self._simple = len(terms) == 1 and terms[0].reads == "input" and all(value is None for value in others)
        self._forms: dict[tuple[int, bool], list[tuple[Term, Form]]] = {}
        self._usual: tuple[torch.Size, Form] | None = None  # the last shape that took it

    def __call__(
        self, x: torch.Tensor, forward: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The adapted output of a module.

        Beams and returned sequences of a row lie beside one another, so that the first axis is rows · expansion and
        every row is a block of it; so are tokens that a module sees flattened.

        Args:
            x: (rows · expansion, ..., d_in), the module's input.
            forward: The module's own forward.
            *args: Passed to it.
            **kwargs: Passed to it.

        Raises:
            InputError: If the first axis is not a multiple of the batch's rows.
        """
        if self.gain_in is not None:
            return self._added(x, *self._rescaled(x, forward, *args, **kwargs))
        y = forward(x, *args, **kwargs)
        if not self._simple or torch.is_grad_enabled():
            return self._added(x, y, y)
        shape, usual = y.shape, self._usual
        if usual is None or usual[0] != shape:
            if len(shape) != 3 or shape[0] != self._rows:
                return self._added(x, y, y)
            self._usual = usual = (shape, self.forms(shape[1])[0][1])
        usual[1].apply(y, x)
        return y

    def forms(self, tokens: int) -> list[tuple[Term, Form]]:
        """Each term with its form for a pass of so many tokens a row."""
        traced = torch.is_grad_enabled()  # autograd does not see into the kernel
        if (tokens, traced) not in self._forms:
            plan = self._plan
            native = None if traced else plan.native
            self._forms[tokens, traced] = [(term, plan.form(term.rows, tokens, native)) for term in self.terms]
        return self._forms[tokens, traced]

    def _added(self, x: torch.Tensor, own: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rows, shape = self._rows, y.shape
        blocks = total = y
        if len(shape) != 3 or shape[0] != rows:
            x, blocks, total = (self._blocks(value) for value in (x, own, y))
        elif own is not y:
            blocks = own
        # Every part reads before any part writes. The sums go into y itself, unless autograd still needs it.
        forms = self.forms(total.shape[1])
        hidden = [form.hidden(blocks if term.reads == "output" else x) for term, form in forms]
        scaled = None if self.gain_out is None else blocks * self.gain_out
        if torch.is_grad_enabled():
            total = total.clone()
        for (_, form), h in zip(forms, hidden, strict=True):
            form.add(total, h)
        if scaled is not None:
            total.add_(scaled)
        if self.gain_norm is not None:
            assert self.normalise is not None
            total.add_(self.normalise(x) * self.gain_norm)
        if self.shift is not None:
            total.add_(self.shift)
        return total if total.shape == shape else total.view(shape)

    def _rescaled(
        self, x: torch.Tensor, forward: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The module's own output, where a part reads it, and its output on the rescaled input."""
        scaled = (self._blocks(x) * (1 + self.gain_in)).to(x.dtype).view(x.shape)  # type: ignore[operator]
        y = forward(scaled, *args, **kwargs)
        return (forward(x, *args, **kwargs) if self._needs_own else y), y

    def _blocks(self, value: torch.Tensor) -> torch.Tensor:
        """A module's input or output as (rows, n, d), and token ids as (rows, n)."""
        if value.shape[0] % self._rows:
            raise InputError(
                f"A module should see all rows of the batch, {self._rows} or a multiple. Found {value.shape[0]} at "
                f"{self._module}. Adapt only modules that every row passes through."
            )
        return value.reshape(self._rows, -1, *(() if value.dtype == torch.int64 else value.shape[-1:]))
