"""One step on parameters that several tasks share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from adapterhub.errors import InputError, did_you_mean
from adapterhub.training.continual._distillation import distillation_loss
from adapterhub.training.continual._ewc import EWC
from adapterhub.training.continual._gem import gem_direction
from adapterhub.training.weighting import flat_gradient

__all__ = ["KEEPS", "SharedStep", "check_keep"]

KEEPS: Mapping[str, str] = MappingProxyType(
    {
        "replay": "Adds the loss on remembered rows, a batch of them beside each batch of new ones.",
        "gem": "Projects the gradient so that no old task's loss rises (Lopez-Paz & Ranzato 2017).",
        "ewc": "Holds each weight by what the old tasks need of it (Kirkpatrick et al. 2017).",
        "distillation": "Keeps the old model's answers on remembered rows, on new ones without any (Li & Hoiem 2016).",
    }
)
"""Name and one line about each way to keep what was learned."""

_Batch = TypeVar("_Batch")


def check_keep(keep: str | Collection[str]) -> tuple[str, ...]:
    """The ways as a tuple.

    Args:
        keep: One of `KEEPS`, or several, or none.

    Raises:
        InputError: If a name is unknown, or both replay and GEM are asked for.
    """
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    faults = [
        f"`keep` should be among {', '.join(KEEPS)}. Found {name!r}.{did_you_mean(name, KEEPS)}"
        for name in names
        if name not in KEEPS
    ]
    if "gem" in names and "replay" in names:
        faults.append("GEM's constraints are the remembered rows that replay would add. Found both. Choose one.")
    if faults:
        raise InputError("\n".join(faults))
    return names


class SharedStep(Generic[_Batch]):
    """Fills the gradients for one batch of a new task, so that the old tasks' answers are kept.

    L_new + λ mean_m L(m) (replay) + λ T² KL(old ‖ new) (distillation) + ½ λ Σ F (θ − θ*)² (EWC, whose λ is its own);
    with GEM that gradient is projected. The terms are differentiated one after another: only one graph is alive.

    Args:
        parameters: The shared parameters; the model as it was is a copy of them, taken here.
        loss_of: The mean loss of a batch, a scalar.
        logits_of: The logits of a batch, (items, classes); for distillation.
        keep: Names of `KEEPS`; none trains on and forgets.
        ewc: The springs, with the old tasks in them; for EWC.
        strength: λ of replay and distillation.
        temperature: T of distillation.

    Raises:
        InputError: If a name is unknown or what it needs was not given.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        loss_of: Callable[[_Batch], Tensor],
        *,
        logits_of: Callable[[_Batch], Tensor] | None = None,
        keep: str | Collection[str] = "replay",
        ewc: EWC | None = None,
        strength: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        self._keep = check_keep(keep)
        if ("ewc" in self._keep) != (ewc is not None) or ("distillation" in self._keep and logits_of is None):
            raise InputError("`ewc` goes with keep='ewc', and distillation needs `logits_of`. Found one without.")
        self._parameters, self._loss_of, self._logits_of = list(parameters), loss_of, logits_of
        self._ewc, self._strength, self._temperature = ewc, strength, temperature
        self._old = [parameter.detach().clone() for parameter in self._parameters]

    def __call__(self, batch: _Batch, memories: Mapping[str, _Batch]) -> Tensor:
        """Put the step's gradient into `.grad` of the parameters.

        Args:
            batch: Rows of the new task.
            memories: Remembered rows; for GEM a batch of each old task, else in any division.

        Returns:
            The loss on the new rows, a detached scalar.
        """
        loss = self._loss_of(batch)
        gradient = self._gradient(loss)
        if self._ewc is not None:
            gradient += self._gradient(self._ewc.penalty(self._parameters))
        if "replay" in self._keep:
            for memory in memories.values():
                gradient += self._strength / len(memories) * self._gradient(self._loss_of(memory))
        if "distillation" in self._keep:
            sources = list(memories.values()) or [batch]
            for source in sources:
                gradient += self._strength / len(sources) * self._gradient(self._distillation(source))
        if "gem" in self._keep and memories:
            rows = torch.stack([self._gradient(self._loss_of(memory)) for memory in memories.values()])
            finite = bool(rows.isfinite().all() and gradient.isfinite().all())
            gradient = gem_direction(gradient, rows) if finite else torch.full_like(gradient, torch.nan)
        self._place(gradient)
        return loss.detach()

    def _distillation(self, batch: _Batch) -> Tensor:
        assert self._logits_of is not None
        with torch.no_grad(), self._as_before():
            old = self._logits_of(batch)
        return distillation_loss(self._logits_of(batch), old, self._temperature)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """The weights as they were when the new task began."""
        now = [parameter.data for parameter in self._parameters]
        try:
            for parameter, old in zip(self._parameters, self._old, strict=True):
                parameter.data = old
            yield
        finally:
            for parameter, data in zip(self._parameters, now, strict=True):
                parameter.data = data

    def _gradient(self, loss: Tensor) -> Tensor:
        return flat_gradient(loss, self._parameters)

    def _place(self, gradient: Tensor) -> None:
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter)
        vector_to_parameters(gradient, [p.grad for p in self._parameters if p.grad is not None])
