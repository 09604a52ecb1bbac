"""A starting point from which new tasks are learned in few steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapterhub.errors import InputError

__all__ = ["Reptile", "reptile_step"]


def reptile_step(parameters: Tensor, adapted: Tensor, epsilon: float) -> Tensor:
    """θ + ε (θ′ − θ), with the mean of θ′ where there are several (Nichol et al. 2018).

    Args:
        parameters: θ, (P,), where the tasks began.
        adapted: θ′, (P,) after a few steps on one task, or (tasks, P).
        epsilon: ε, in (0, 1]: 0 would not move, 1 goes to the mean.

    Returns:
        (P,).

    Raises:
        InputError: If the shapes do not fit, ε is outside its range, or a weight is not finite.
    """
    ends = adapted if adapted.dim() == 2 else adapted[None]
    if parameters.dim() != 1 or ends.dim() != 2 or ends.shape[1] != len(parameters) or len(ends) == 0:
        raise InputError(
            f"Reptile takes weights (P,) and adapted weights (P,) or (tasks, P). Found {tuple(parameters.shape)} and "
            f"{tuple(adapted.shape)}."
        )
    if not 0 < epsilon <= 1:
        raise InputError(f"`epsilon` should be a number in (0, 1]. Found {epsilon!r}.")
    if not bool(ends.isfinite().all()):
        raise InputError("Reptile needs finite weights. Found some that are not. Lower the inner learning rate.")
    return torch.lerp(parameters, ends.mean(dim=0), epsilon)


class Reptile:
    """Reptile's outer loop: hands out the weights to begin with and takes those that a task ended with.

    ε falls from `epsilon` in equal parts, as in the paper, so that the last tasks do not decide alone.

    Args:
        start: (P,), the weights to begin with.
        epsilon: ε of the first step, in (0, 1].
        steps: Outer steps in all.

    Raises:
        InputError: If an argument is outside its range.
    """

    def __init__(self, start: Tensor, *, epsilon: float = 0.5, steps: int) -> None:
        if not 0 < epsilon <= 1 or steps < 1:
            raise InputError(f"Reptile has `epsilon` in (0, 1] and at least 1 step. Found {epsilon!r} and {steps!r}.")
        self.weights = start.detach().clone()
        self.step = 0
        self._epsilon, self._steps = epsilon, steps

    @property
    def epsilon(self) -> float:
        """ε of the next step."""
        return self._epsilon * (1 - self.step / self._steps)

    def update(self, adapted: Tensor) -> Tensor:
        """Move towards the weights of one or more tasks.

        Args:
            adapted: (P,) or (tasks, P), from a few steps on each task beginning at `weights`.

        Returns:
            (P,), the new `weights`.

        Raises:
            InputError: If all steps are done, the shape does not fit, or a weight is not finite.
        """
        if self.step >= self._steps:
            raise InputError(f"Reptile was given {self._steps} steps. Found one more. Raise `steps`.")
        self.weights = reptile_step(self.weights, adapted.detach(), self.epsilon)
        self.step += 1
        return self.weights

    def state_dict(self) -> dict[str, Tensor]:
        """`weights` (P,) and `step` (): tensors that safetensors stores."""
        return {"weights": self.weights.clone(), "step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            InputError: If it has another number of weights.
        """
        if state["weights"].shape != self.weights.shape:
            raise InputError(
                f"Reptile has {self.weights.numel()} weights. Found a state of {state['weights'].numel()}. Begin with "
                "weights of that shape."
            )
        self.weights, self.step = state["weights"].clone(), int(state["step"])
