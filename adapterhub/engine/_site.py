"""One module of the base that some adapter changes: its patched forward, and what the arena holds beside it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from adapterhub.engine._bank import Bank
from adapterhub.engine._delta import Delta
from adapterhub.engine._plan import Part, Plan

__all__ = ["Current", "Site"]


class Current(threading.local):
    """The running batch's plan, seen only by the thread that runs it."""

    plan: Plan | None = None


class Site:
    """A module whose forward follows the running plan.

    The module's `forward` is replaced on the instance, so that names, parameters and `state_dict` of the base stay as
    they are, and the input can be changed as well as the output; without a plan it is the module's own.

    Args:
        name: The module's backbone-relative name.
        module: The module.
        current: Where the running plan is found.
        part: Makes what a plan adds here.
        capacity: The arena's ranks.
        dtype: The dtype to hold rows in where the module's own weight is quantised.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        current: Current,
        part: Callable[[Site, Plan], Part | None],
        capacity: int,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self._module = module
        self._capacity = capacity
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        self._like = torch.empty(0, dtype=weight.dtype if weight.is_floating_point() else dtype, device=weight.device)
        self._banks: dict[tuple[str, str], Bank] = {}
        self._gains: dict[str, dict[str, torch.Tensor]] = {"input": {}, "output": {}, "normalised": {}}
        self._shifts: dict[str, torch.Tensor] = {}
        self._normalise: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._forward = forward = module.forward
        self._was_patched = "forward" in vars(module)

        def adapted(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            plan = current.plan
            if plan is None:
                return forward(x, *args, **kwargs)  # type: ignore[no-any-return]
            here = plan.parts[name] if name in plan.parts else part(self, plan)
            return forward(x, *args, **kwargs) if here is None else here(x, forward, *args, **kwargs)

        module.forward = adapted

    @property
    def nbytes(self) -> int:
        """Bytes allocated beside this module."""
        vectors = [*self._shifts.values(), *(value for group in self._gains.values() for value in group.values())]
        return sum(bank.nbytes for bank in self._banks.values()) + sum(vector.nbytes for vector in vectors)

    def write(self, name: str, start: int, delta: Delta) -> None:
        """Hold what an adapter changes here, its ranks from `start`."""
        low = delta.low
        if low is not None:
            kind = (low.reads, low.activation)
            if kind not in self._banks:
                self._banks[kind] = Bank(low, self._like, self._capacity)
            self._banks[kind].write(name, start, low)
        if delta.gain is not None:
            if delta.gain.reads == "normalised" and self._normalise is None:
                self._normalise = _normalisation(self._module)
            self._gains[delta.gain.reads][name] = delta.gain.values.to(self._like.device, copy=True)
        if delta.shift is not None:
            self._shifts[name] = delta.shift.to(self._like.device, copy=True)

    def compact(self, moves: Mapping[str, tuple[int, int]]) -> None:
        """Move adapters' ranks: old and new start by name."""
        for bank in self._banks.values():
            bank.compact(moves)

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        for bank in self._banks.values():
            bank.drop(name)
        for group in (self._shifts, *self._gains.values()):
            group.pop(name, None)

    def part(self, plan: Plan, active: Sequence[tuple[str, int]]) -> Part | None:
        """What a plan adds here, or None.

        Args:
            plan: The plan.
            active: Its adapters and their starts, by ascending start.
        """
        found = [bank.term(active, plan.gates) for bank in self._banks.values()]
        terms = [term for term in found if term is not None]

        def mixed(group: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
            used = {name: group[name] for name, _ in active if name in group}
            return plan.gates.mixed(used, self._like) if used else None

        sums = {
            "gain_in": mixed(self._gains["input"]),
            "gain_out": mixed(self._gains["output"]),
            "gain_norm": mixed(self._gains["normalised"]),
            "shift": mixed(self._shifts),
        }
        if not terms and all(value is None for value in sums.values()):
            return None
        return Part(self.name, plan, terms, **sums, normalise=self._normalise)

    def close(self) -> None:
        """Give the module its own forward back."""
        if self._was_patched:
            self._module.forward = self._forward
        else:
            del self._module.forward


def _normalisation(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A normalisation without its parameters: x to the x̂ that its weight multiplies.

    Most modules compute `x̂ · weight`, some (Gemma's) `x̂ · (1 + weight)`; a probe with a weight of zeros tells which.
    """
    bare = copy.copy(module)
    vars(bare).pop("forward", None)
    weight = module.get_parameter("weight").detach()
    bare._parameters = dict.fromkeys(module._parameters)
    bare._parameters["weight"] = nn.Parameter(torch.zeros_like(weight), requires_grad=False)
    if module._parameters.get("bias") is not None:
        bare._parameters["bias"] = nn.Parameter(torch.zeros_like(weight), requires_grad=False)
    probe = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        if not bare(probe[None]).any():
            bare._parameters["weight"] = nn.Parameter(torch.ones_like(weight), requires_grad=False)
    return bare
