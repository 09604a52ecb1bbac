"""AdamW whose momentum gives way where the gradient turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from adapterhub.errors import InputError

__all__ = ["AdaptiveMomentum"]


class AdaptiveMomentum(AdamW):
    """AdamW with `β₁ = low + (high - low)(1 + cos(g, m)) / 2` for each tensor at each step.

    Momentum carries old gradients into the update, and with them the conflicts that a gradient weighting has just
    taken out of the new one. Here a gradient g that turns against its running mean m counts more. It is our reading
    of the adaptive momentum of APT (arXiv 2604.08939), whose text leaves the formula and its scope open: we take the
    cosine tensor by tensor, and 0 at the first step. The bias correction divides by `1 - Π β₁`.

    With `low == high` it is AdamW bit for bit. A checkpoint holds four tensors a parameter: AdamW's, and `decay`, the
    product of the β₁ so far.

    Args:
        params: Parameters or groups.
        lr: Learning rate of groups without one.
        low: The least β₁.
        high: The greatest β₁, below 1.
        beta2: Decay of the squares' running mean.
        eps: Added to the root of the squares' mean.
        weight_decay: Decoupled decay.

    Raises:
        InputError: If not 0 <= low <= high < 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        low: float = 0.0,
        high: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= low <= high < 1:
            raise InputError(f"Momentum's bounds are 0 <= low <= high < 1. Found low={low}, high={high}.")
        self.low, self.high = low, high
        super().__init__(params, lr=lr, betas=(high, beta2), eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step.

        Args:
            closure: Evaluates the loss again; its value is returned.
        """
        if self.low == self.high:
            return super().step(closure)  # type: ignore[no-any-return]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["decay"] = parameter.new_ones(())
        mean, square, (_, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        lengths = torch.linalg.vector_norm(gradient) * torch.linalg.vector_norm(mean)
        cosine = (gradient * mean).sum() / lengths.clamp(min=torch.finfo(mean.dtype).tiny)
        beta = self.low + (self.high - self.low) * (1 + cosine) / 2
        state["step"] += 1
        state["decay"] *= beta
        mean.lerp_(gradient, 1 - beta)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2 ** float(state["step"]))).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(group["lr"] / (1 - state["decay"]) * mean / root)
