"""Gradients of tasks as rows, their inner products, and meta-learned weights from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from adapterhub.training.weighting._weighting import GradientWeighting

__all__ = ["MetaWeighting", "flat_gradient", "gramian", "look_ahead"]

_COLUMNS = 1 << 20  # of a Jacobian that are widened to float64 at a time


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of a loss with respect to parameters, in one row, (P,); zeros where the loss does not touch one.

    Args:
        loss: A scalar with a graph, which is used up.
        parameters: P numbers in all.
    """
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if part is None else part).flatten()
            for part, parameter in zip(found, parameters, strict=True)
        ]
    )


def gramian(gradients: Tensor) -> Tensor:
    """The inner products of rows, (T, P) -> (T, T) float64 on the CPU; exact sums even where scales differ widely."""
    total = torch.zeros(2 * [gradients.shape[0]], dtype=torch.float64, device=gradients.device)
    for start in range(0, gradients.shape[1], _COLUMNS):
        wide = gradients[:, start : start + _COLUMNS].to(torch.float64)
        total.addmm_(wide, wide.T)
    return total.cpu()


def look_ahead(gradients: Tensor, validation: Tensor, step: float) -> Tensor:
    """How the validation loss after one step of gradient descent changes with each task's weight, (T,).

    `d L_val(θ - step Σ w_t g_t) / d w_t = -step ⟨∇L_val, g_t⟩`, up to the change of ∇L_val over the step.

    Args:
        gradients: (T, P), the tasks' gradients g.
        validation: (P,), the gradient of the validation loss.
        step: Length of the step.
    """
    return -step * (gradients @ validation)


class MetaWeighting(GradientWeighting):
    """Weights that lower the validation loss after the next step: one-step look-ahead.

    Each step the weights go against `look_ahead`, measured in its mean size so that neither losses nor steps need a
    scale, are cut off at 0 and scaled to the mean 1; where none is left above 0, they stay. So a weight moves to what
    its task's gradient has lately had in common with the validation gradient: a task of random labels goes to 0.
    The direction is `Σ w_t g_t`.

    Args:
        tasks: As in `GradientWeighting`.
        static: As in `GradientWeighting`.
        rate: Share of a step's look-ahead in the weights, above 0.
    """

    needs_validation_gradient: ClassVar[bool] = True
    current: Tensor

    def __init__(self, tasks: Sequence[str], static: Mapping[str, float] | None = None, *, rate: float = 0.1) -> None:
        super().__init__(tasks, static)
        self.rate = rate
        self.register_buffer("current", torch.ones(len(self.tasks)))

    def direct(self, gradients: Tensor, losses: Tensor, validation: Tensor | None) -> Tensor:  # noqa: ARG002
        assert validation is not None
        slope = self.static.to(gradients) * look_ahead(gradients, validation, 1.0)
        size = slope.abs().mean()
        if bool(torch.isfinite(size)) and float(size) > 0:
            moved = (self.current - self.rate * (slope / size).to(self.current)).clamp(min=0)
            total = moved.sum()
            self.current = moved * (len(self.tasks) / total) if float(total) > 0 else self.current
        self._last = self.static * self.current
        return self._last.to(gradients) @ gradients
