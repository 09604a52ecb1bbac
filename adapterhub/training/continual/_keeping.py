"""A new task's gradient, together with what keeps the older ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from adapterhub.errors import InputError, did_you_mean
from adapterhub.training.continual._distillation import distillation_loss
from adapterhub.training.continual._ewc import EWC
from adapterhub.training.continual._gem import gem_direction
from adapterhub.training.weighting import GradientWeighting

__all__ = ["KEEPS", "Distilled", "Keeping", "check_keep"]

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


def check_keep(keep: str | Collection[str], strength: float | Mapping[str, float] = 1.0) -> dict[str, float]:
    """The ways, each with how much it counts.

    Args:
        keep: One of `KEEPS`, or several, or none.
        strength: λ of all of them, or of some by name; 1 for the others.

    Raises:
        InputError: If a name is unknown, both replay and GEM are asked for, or a λ is below 0.
    """
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    faults = [
        f"`keep` should be among {', '.join(KEEPS)}. Found {name!r}.{did_you_mean(name, KEEPS)}"
        for name in names
        if name not in KEEPS
    ]
    if "gem" in names and "replay" in names:
        faults.append("GEM's constraints are the remembered rows that replay would add. Found both. Choose one.")
    given = strength if isinstance(strength, Mapping) else dict.fromkeys(names, strength)
    for name, value in given.items():
        if name not in names:
            faults.append(f"`strength` is of what keeps the tasks: {', '.join(names) or 'nothing'}. Found {name!r}.")
        if not value >= 0:
            faults.append(f"`strength` should be a number of at least 0. Found {value!r}.")
    if faults:
        raise InputError("\n".join(faults))
    return {name: float(given.get(name, 1.0)) for name in names}


class Keeping(GradientWeighting):
    """Learns one task and keeps others, on weights that all of them share.

    The direction is ∇L_new + λ mean_m ∇L(m) (replay) + λ mean_m ∇T² KL(old ‖ new)(m) (distillation) + λ F (θ − θ*)
    (EWC, whose λ is its own); with GEM it is projected so that no old task's loss rises to first order.

    Args:
        new: The new task, whose gradient is the first row.
        sources: What the rows after it are gradients of, in their order: names of batches by way, each of `replay`,
            `distillation` and `gem`, whose names are of one old task each.
        parameters: The shared weights, in the order of the rows; for EWC.
        ewc: The springs, with the old tasks in them.
        strengths: λ of replay and of distillation, by name; 1 where it is left out.
    """

    def __init__(
        self,
        new: str,
        sources: Mapping[str, Sequence[str]],
        *,
        parameters: Sequence[Tensor] = (),
        ewc: EWC | None = None,
        strengths: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        named = [(way, name, len(names)) for way, names in sources.items() for name in names]
        super().__init__([new, *(name for _, name, _ in named)])
        self._held, self._ewc = list(parameters), ewc
        self._shares = [1.0, *(0.0 if way == "gem" else strengths.get(way, 1.0) / count for way, _, count in named)]
        self._constraints = [place for place, (way, _, _) in enumerate(named, 1) if way == "gem"]

    def direct(self, gradients: Tensor, losses: Tensor, validation: Tensor | None) -> Tensor:  # noqa: ARG002
        direction = gradients.new_tensor(self._shares) @ gradients
        if self._ewc is not None:
            direction = direction + self._ewc.gradient(self._held)
        if not self._constraints:
            return direction
        if not bool(gradients.isfinite().all() and direction.isfinite().all()):
            return torch.full_like(direction, torch.nan)
        return gem_direction(direction, gradients[self._constraints])


class Distilled(Generic[_Batch]):
    """The loss that keeps an older model's answers, T² KL(old ‖ new) on a batch; see `distillation_loss`.

    Args:
        parameters: The weights; the older model is a copy of them, taken here.
        logits_of: The logits of a batch, (items, classes).
        temperature: T.
    """

    def __init__(
        self, parameters: Sequence[Tensor], logits_of: Callable[[_Batch], Tensor], temperature: float = 2.0
    ) -> None:
        self._parameters, self._logits_of, self._temperature = list(parameters), logits_of, temperature
        self._old = [parameter.detach().clone() for parameter in self._parameters]

    def __call__(self, batch: _Batch) -> Tensor:
        """The loss on a batch, a scalar; 0 where both say the same."""
        with torch.no_grad(), self._as_before():
            old = self._logits_of(batch)
        return distillation_loss(self._logits_of(batch), old, self._temperature)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """The weights as they were."""
        now = [parameter.data for parameter in self._parameters]
        try:
            for parameter, old in zip(self._parameters, self._old, strict=True):
                parameter.data = old
            yield
        finally:
            for parameter, data in zip(self._parameters, now, strict=True):
                parameter.data = data
