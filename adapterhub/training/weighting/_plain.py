"""Weightings of losses that need neither history nor validation: sums, and what a loss itself says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from adapterhub.errors import InputError
from adapterhub.training.weighting._weighting import LossWeighting, by_task

__all__ = ["InitialLoss", "InverseLoss", "Sum", "Threshold", "Uncertainty"]


class Sum(LossWeighting):
    """`L = Σ w_t L_t` with the static weights; the plain sum where there are none.

    A well-regularised plain sum matches or beats most special weightings (Kurin et al. 2022, arXiv 2201.04122).
    """

    def combine(self, losses: Tensor) -> Tensor:
        return losses.sum()


class InitialLoss(LossWeighting):
    """`L = Σ w_t L_t / L_t(0)`: each loss as a share of its first value; the static weights stay in force.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`.
        floor: The least first value; a task that begins below it is divided by it.
    """

    first: Tensor

    def __init__(self, tasks: Sequence[str], static: Mapping[str, float] | None = None, *, floor: float = 1e-2) -> None:
        super().__init__(tasks, static)
        self.floor = floor
        self.register_buffer("first", torch.full((len(self.tasks),), torch.nan))

    def combine(self, losses: Tensor) -> Tensor:
        plain = losses.detach() / self.static.to(losses).clamp(min=torch.finfo(losses.dtype).tiny)
        self.first = torch.where(self.first.isnan(), plain.clamp(min=self.floor).to(self.first), self.first)
        return (losses / self.first.to(losses)).sum()


class InverseLoss(LossWeighting):
    """`w_t = 1 / (L_t + ε)`, a constant in the backward pass: **a high loss gets a low weight**.

    Losses of 4.0 and 0.1 get 0.25 and 10: the hard task counts less. It is the gradient of `Σ log L_t` and the point
    at which `Uncertainty` comes to rest, but for a factor 2. To favour tasks that lag behind, take `Threshold`.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`; a factor of a loss takes itself out.
        epsilon: Keeps the weight of a loss near 0 finite.
    """

    def __init__(
        self, tasks: Sequence[str], static: Mapping[str, float] | None = None, *, epsilon: float = 1e-6
    ) -> None:
        super().__init__(tasks, static)
        self.epsilon = epsilon

    def combine(self, losses: Tensor) -> Tensor:
        return (losses / (losses.detach() + self.epsilon)).sum()


class Uncertainty(LossWeighting):
    """`L = Σ ½ e^{-s_t} L_t + ½ s_t` with learned s (Kendall, Gal and Cipolla 2018, arXiv 1705.07115).

    On a constant loss s comes to rest at `log L`, where the weight is `1 / 2L`: **a high loss gets a low weight**.
    The log-variances `s`, (T,), are a parameter: give them to the optimiser, with a learning rate of their own.
    """

    def __init__(self, tasks: Sequence[str], static: Mapping[str, float] | None = None) -> None:
        super().__init__(tasks, static)
        self.s = nn.Parameter(torch.zeros(len(self.tasks)))

    def combine(self, losses: Tensor) -> Tensor:
        s = self.s.to(losses)
        return (0.5 * torch.exp(-s) * losses + 0.5 * s).sum()


class Threshold(LossWeighting):
    """A task under its target counts more, and the more the longer it stays there.

    Each task stands on a rung, at first 0. An evaluation that finds its metric under its target takes it one rung up,
    any other one rung down, never below 0 nor above `rungs`. The weights are `step ** rung`, scaled so that their mean
    is 1: a task that has always reached its target and one that never has differ by `step ** rungs`, 9.3 by default.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`.
        targets: What the main metric of each task should reach: one number for all, or a number by task; a task
            without a target stays on rung 0.
        less_is_better: Tasks whose metric is an error: they are under their target when the metric is above it.
        step: Factor of one rung, above 1.
        rungs: The highest rung, at least 1.

    Raises:
        InputError: If there is no target, or `step` or `rungs` are out of range.
    """

    rung: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        static: Mapping[str, float] | None = None,
        *,
        targets: float | Mapping[str, float] | None,
        less_is_better: Collection[str] = (),
        step: float = 1.25,
        rungs: int = 10,
    ) -> None:
        super().__init__(tasks, static)
        if not targets and not isinstance(targets, int | float):
            raise InputError("Weighting 'threshold' needs targets. Found none. Give `targets`, a metric for each task.")
        if not step > 1 or rungs < 1:
            raise InputError(f"`step` is above 1 and `rungs` at least 1. Found step={step}, rungs={rungs}.")
        given = targets if isinstance(targets, Mapping) else dict.fromkeys(self.tasks, targets)
        by_task("targets", given, self.tasks, 0.0)
        by_task("less_is_better", dict.fromkeys(less_is_better, 0.0), self.tasks, 0.0)
        self.targets, self.less_is_better = dict(given), frozenset(less_is_better)
        self.step, self.rungs = step, rungs
        self.register_buffer("rung", torch.zeros(len(self.tasks), dtype=torch.int64))

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Move each task that has a metric and a target one rung; a metric that is no number counts as under it."""
        for place, task in enumerate(self.tasks):
            if task in metrics and task in self.targets:
                value, target = metrics[task], self.targets[task]
                reached = value <= target if task in self.less_is_better else value >= target
                self.rung[place] = min(max(int(self.rung[place]) + (-1 if reached else 1), 0), self.rungs)

    def combine(self, losses: Tensor) -> Tensor:
        weights = self.step ** self.rung.to(losses)
        return (weights / weights.mean() * losses).sum()
