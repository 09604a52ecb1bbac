"""Weightings of losses by how fast they fall: DWA over epochs, FAMO over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from adapterhub.training.weighting._weighting import LossWeighting

__all__ = ["DynamicWeightAverage", "Famo"]


class DynamicWeightAverage(LossWeighting):
    """`w = T · softmax(L(t-1) / L(t-2) / temperature)` of mean losses of epochs (Liu et al. 2019, arXiv 1803.10704).

    A task whose loss falls slower counts more. All weights are 1 until two epochs have ended.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`; a factor of a loss takes itself out of the ratio, not of the sum.
        temperature: The higher, the more equal the weights.
    """

    total: Tensor
    count: Tensor
    means: Tensor

    def __init__(
        self, tasks: Sequence[str], static: Mapping[str, float] | None = None, *, temperature: float = 2.0
    ) -> None:
        super().__init__(tasks, static)
        self.temperature = temperature
        self.register_buffer("total", torch.zeros(len(self.tasks)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("means", torch.full((2, len(self.tasks)), torch.nan))  # the older epoch first

    def combine(self, losses: Tensor) -> Tensor:
        self.total = self.total + losses.detach().to(self.total)
        self.count = self.count + 1
        ratios = self.means[1] / self.means[0]
        weights = len(self.tasks) * torch.softmax(ratios / self.temperature, 0)
        return (torch.where(weights.isnan(), 1.0, weights).to(losses) * losses).sum()

    def epoch(self) -> None:
        """Close an epoch's mean losses; without a step since the last one nothing happens."""
        if int(self.count):
            self.means = torch.stack((self.means[1], self.total / self.count))
            self.total, self.count = torch.zeros_like(self.total), torch.zeros_like(self.count)


class Famo(LossWeighting):
    """Losses fall at equal relative rates: FAMO (Liu et al. 2023, arXiv 2306.03792).

    The scalar is `c Σ z_t log L_t` with `z = softmax(w)` and `c = 1 / Σ (z_t / L_t)`, both constants in the backward
    pass. The logits w take a step of Adam along the fall of the log losses over a step of the model. The paper
    measures it on the same batches, which costs their forward passes once more (`observe_after_step`). Where the loop
    does not do so, the next batches' losses stand in, which adds their noise.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`; a factor of a loss takes itself out.
        rate: Learning rate of the logits.
        decay: L2 decay of the logits.
    """

    needs_losses_after_step: ClassVar[bool] = True
    before: Tensor
    logits: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        static: Mapping[str, float] | None = None,
        *,
        rate: float = 0.025,
        decay: float = 1e-3,
    ) -> None:
        super().__init__(tasks, static)
        self.rate, self.decay = rate, decay
        for name in ("logits", "mean", "square"):
            self.register_buffer(name, torch.zeros(len(self.tasks)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("before", torch.full((len(self.tasks),), torch.nan))  # log losses that wait for a step

    def combine(self, losses: Tensor) -> Tensor:
        logs = torch.log(losses + 1e-8)
        self._learn(logs.detach())
        self.before = logs.detach().to(self.before)
        shares = torch.softmax(self.logits, 0).to(losses)
        constant = 1 / (shares / (losses.detach() + 1e-8)).sum()
        return constant * (shares * logs).sum()

    def observe_after_step(self, losses: Tensor) -> None:
        self._check("losses", losses, 1)
        self._learn(torch.log(self.static.to(losses) * losses.detach() + 1e-8))
        self.before = torch.full_like(self.before, torch.nan)

    def _learn(self, after: Tensor) -> None:
        if bool(self.before.isnan().any()):
            return
        fall = self.before - after.to(self.before)
        shares = torch.softmax(self.logits, 0)
        gradient = shares * (fall - shares @ fall) + self.decay * self.logits
        self.steps = self.steps + 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        self.logits = self.logits - self.rate * mean / (square.sqrt() + 1e-8)
