"""From the losses and gradients of a step's tasks to the one gradient that the optimiser follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from adapterhub.training.optimisers import ConflictMeter
from adapterhub.training.weighting import GradientWeighting, LossWeighting, Sum

__all__ = ["Balance", "Found"]

Found = Mapping[str, tuple[float, list[Tensor]]]


class Balance:
    """Balances the tasks where they share weights; what a task trains alone follows its own gradient.

    A loss weighting gives the tasks weights w, and the shared gradient is `Σ w_t g_t`: the gradient of its scalar, for
    the price of the sum. A gradient weighting is given the rows g_t themselves. A step may leave tasks out where the
    gradients are only added up; any other weighting compares its tasks and is given all of them.

    Args:
        weighting: How to balance; without one the gradients are added up.
        shared: The weights that the tasks share.
        own: Each task's own weights.
        clip: Each task's gradient is scaled down to this norm first; None for no bound.
        factors: Weight of each task where there is no weighting.
    """

    def __init__(
        self,
        weighting: LossWeighting | GradientWeighting | None,
        shared: Sequence[Tensor],
        own: Mapping[str, Sequence[Tensor]],
        *,
        clip: float | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.weighting, self._shared, self._own = weighting, list(shared), own
        self._clip, self._factors = clip, dict(factors or {})
        if isinstance(weighting, Sum):
            self._factors = dict(zip(weighting.tasks, weighting.static.tolist(), strict=True))
        self._meter = ConflictMeter()
        self._rows = self._followed = self._before = torch.empty(0)

    def apply(self, found: Found, validation: Tensor | None = None) -> None:
        """Set the gradient of every weight.

        Args:
            found: By task, its loss and the gradients of the shared weights and then of its own.
            validation: (P,) gradient of the validation loss, for a weighting that asks for it.
        """
        count = len(self._shared)
        rows = []
        for name, (_, raw) in found.items():
            gradients = self._clipped(raw)
            for weight, gradient in zip(self._own[name], gradients[count:], strict=True):
                weight.grad = gradient
            rows.append(_flat(gradients[:count]))
        if not self._shared:
            return
        self._rows = torch.stack(rows)
        losses = torch.tensor([loss for loss, _ in found.values()], device=self._rows.device)
        self._followed = self._direction(list(found), losses, validation)
        for weight, gradient in zip(self._shared, _parts(self._followed, self._shared), strict=True):
            weight.grad = gradient
        if len(found) > 1:
            self._before = _flat([weight.detach() for weight in self._shared])

    @property
    def adds_up(self) -> bool:
        """Whether gradients are only added up, so that a step may leave tasks out."""
        return self.weighting is None or isinstance(self.weighting, Sum)

    def weights(self, left: Collection[str]) -> list[float]:
        """What the last step gave each task of the weighting, in their order; empty where there is nothing to tell.

        Args:
            left: The tasks that took part.
        """
        if self.weighting is None:
            return []
        if isinstance(self.weighting, Sum):
            return [self._factors[name] if name in left else 0.0 for name in self.weighting.tasks]
        last = self.weighting.weights()
        return [] if last is None else list(last.tolist())

    def measure(self) -> None:
        """Count, once the optimiser has moved the weights, whether that hurt a task to first order."""
        if len(self._rows) > 1:
            change = self._before - _flat([weight.detach() for weight in self._shared])
            self._meter.update(self._rows, self._followed, change)

    @property
    def conflicts(self) -> dict[str, int]:
        """Steps counted, and those whose direction and whose update hurt a task."""
        return self._meter.state_dict()

    @conflicts.setter
    def conflicts(self, counted: dict[str, int]) -> None:
        if counted:
            self._meter.load_state_dict(counted)

    def _direction(self, names: Sequence[str], losses: Tensor, validation: Tensor | None) -> Tensor:
        if isinstance(self.weighting, GradientWeighting):
            direction: Tensor = self.weighting(self._rows, losses, validation)
            return direction
        if self.weighting is None or (self.adds_up and len(names) < len(self.weighting.tasks)):
            factors = self._rows.new_tensor([self._factors.get(name, 1.0) for name in names])
        else:
            losses.requires_grad_()
            self.weighting(losses).backward()  # a weighting that learns gets its gradients here as well
            assert losses.grad is not None
            factors = losses.grad
        return factors @ self._rows

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        if self._clip is None:
            return gradients
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
        factor = torch.clamp(self._clip / (norm + 1e-6), max=1.0)
        return [part * factor for part in gradients]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0)


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view_as(old) for part, old in zip(torch.split(flat, [t.numel() for t in like]), like, strict=True)]
