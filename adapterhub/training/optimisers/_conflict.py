"""How often a direction or an update hurts a task."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.errors import InputError

__all__ = ["ConflictMeter"]


class ConflictMeter:
    """Counts the steps that hurt a task to first order.

    A direction d conflicts if an entry of `J d` is negative: going against d raises that task's loss. An update
    conflicts if an entry of `J Δθ` is, where `Δθ = θ_before - θ_after` is what the optimiser took away; momentum and
    Adam's scales make it another vector than d, and of directions that hurt no task a third of the updates did.

    Args:
        tolerance: How far below 0 a cosine must be to count; rounding stays under it.
    """

    def __init__(self, tolerance: float = 1e-6) -> None:
        self.tolerance = tolerance
        self.steps = self.directions = self.updates = 0

    def update(self, gradients: Tensor, direction: Tensor, change: Tensor) -> None:
        """Take one step.

        Args:
            gradients: J, (T, P), a row for each task, at the parameters before the step.
            direction: d, (P,), which took the gradient's place.
            change: Δθ, (P,), the parameters before the step less those after it.

        Raises:
            InputError: If a shape is another one.
        """
        if gradients.ndim != 2 or any(vector.shape != gradients.shape[1:] for vector in (direction, change)):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (gradients, direction, change))
            raise InputError(f"The meter takes shapes (T, P), (P,) and (P,). Found {shapes}.")
        self.steps += 1
        self.directions += self._hurts(gradients, direction)
        self.updates += self._hurts(gradients, change)

    def rates(self) -> tuple[float, float]:
        """Shares of the steps whose direction and whose update conflicted; nan before the first step."""
        if not self.steps:
            return float("nan"), float("nan")
        return self.directions / self.steps, self.updates / self.steps

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"steps": self.steps, "directions": self.directions, "updates": self.updates}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from saved counts."""
        self.steps, self.directions, self.updates = state["steps"], state["directions"], state["updates"]

    def _hurts(self, gradients: Tensor, vector: Tensor) -> bool:
        scale = torch.linalg.vector_norm(gradients, dim=1) * torch.linalg.vector_norm(vector)
        return bool((gradients @ vector < -self.tolerance * scale).any())
