"""CoBa: weights from the slopes of validation losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from adapterhub.errors import InputError
from adapterhub.training.weighting._weighting import LossWeighting

__all__ = ["Coba"]


class Coba(LossWeighting):
    """Tasks converge together, and one that diverges counts less: CoBa (Gong et al. 2024, arXiv 2410.06741).

    Validation losses are divided by their first values. With `α_t` the slope of task t's over the last `window`
    observations, `α(i)` the slopes of step i and `a(i)` the slope of the largest of the losses at step i:

        RCS = softmax_t(T α_t / Σ_t |α_t|)                        slow tasks count more
        ACS = softmax_t(-n α_t / Σ_i |α_t(i)|)                    tasks that diverge count less; the last n ≤ window
        DF  = min(1, m · softmax_i(-τ m a(i) / Σ_i |a(i)|)_last)  all m steps since the warm-up
        w   = softmax_t(T (DF · RCS + (1 - DF) · ACS))

    and no weight under a tenth of the mean. This is the authors' released code but for three things: the weights are
    scaled to the mean 1 (theirs sum to 1); DF is at most 1, since above it ACS would count backwards; and the window
    of ACS is the last `window` slopes, where theirs is shorter by the warm-up. All weights are 1 during the warm-up.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`.
        warmup: Observations before the first slope, at least 2.
        window: Observations of a slope, at least 2.
        tau: Temperature of DF: the higher, the sooner a rise of the largest loss brings ACS to bear.

    Raises:
        InputError: If `warmup` or `window` is below 2.
    """

    needs_validation_losses: ClassVar[bool] = True
    growing: ClassVar[tuple[str, ...]] = ("history", "slopes", "worst")
    first: Tensor
    current: Tensor
    history: Tensor
    slopes: Tensor
    worst: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        static: Mapping[str, float] | None = None,
        *,
        warmup: int = 100,
        window: int = 200,
        tau: float = 5.0,
    ) -> None:
        super().__init__(tasks, static)
        if min(warmup, window) < 2:
            raise InputError(f"`warmup` and `window` are at least 2. Found warmup={warmup}, window={window}.")
        self.warmup, self.window, self.tau = warmup, window, tau
        number = len(self.tasks)
        self.register_buffer("first", torch.full((number,), torch.nan, dtype=torch.float64))
        self.register_buffer("current", torch.ones(number, dtype=torch.float64))
        self.register_buffer("history", torch.zeros(number, 0, dtype=torch.float64))
        self.register_buffer("slopes", torch.zeros(number, 0, dtype=torch.float64))
        self.register_buffer("worst", torch.zeros(0, dtype=torch.float64))

    def combine(self, losses: Tensor) -> Tensor:
        return (self.current.to(losses) * losses).sum()

    @torch.no_grad()
    def observe_validation(self, losses: Tensor) -> None:
        """Take one step's validation losses; the first ones are the measure of all later ones.

        Args:
            losses: (T,), without the static weights.
        """
        self._check("losses", losses, 1)
        losses = losses.to(self.first)
        if bool(self.first.isnan().any()):
            self.first = losses.clamp(min=1e-12)
            return
        kept = max(self.warmup, self.window)  # a warm-up longer than the window counts its steps here
        self.history = torch.cat((self.history, (losses / self.first)[:, None]), 1)[:, -kept:].contiguous()
        if self.worst.numel() or self.history.shape[1] >= self.warmup:
            self._weigh(self.history[:, -self.window :])

    def _weigh(self, history: Tensor) -> None:
        slope = _slope(history)
        self.slopes = torch.cat((self.slopes, slope[:, None]), 1)[:, -self.window :].contiguous()
        self.worst = torch.cat((self.worst, _slope(history.amax(0, keepdim=True))))
        number, steps, since = len(self.tasks), self.slopes.shape[1], self.worst.numel()
        relative = torch.softmax(number * _share(slope, slope.abs().sum()), 0)
        absolute = torch.softmax(-steps * _share(slope, self.slopes.abs().sum(1)), 0)
        factor = since * torch.softmax(-self.tau * since * _share(self.worst, self.worst.abs().sum()), 0)[-1]
        factor = factor.clamp(max=1.0)
        weights = torch.softmax(number * (factor * relative + (1 - factor) * absolute), 0)
        least = 1 / (10 * number)
        if bool((weights < least).any()):
            weights = weights * (1 - number * least) + least
        self.current = number * weights


def _slope(losses: Tensor) -> Tensor:
    """Slopes of least-squares lines through equally spaced losses, (T, n) -> (T,)."""
    times = torch.arange(losses.shape[1], dtype=losses.dtype, device=losses.device)
    times -= times.mean()
    return losses @ times / (times @ times)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=torch.finfo(part.dtype).tiny)
