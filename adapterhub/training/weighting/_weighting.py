"""What a training loop asks of a weighting: losses to one scalar, or gradients to one direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapterhub.errors import InputError, did_you_mean

__all__ = ["GradientWeighting", "LossWeighting", "by_task"]


def by_task(name: str, given: Mapping[str, float] | None, tasks: Sequence[str], default: float) -> Tensor:
    """One number for each task.

    Args:
        name: What the numbers are, for the error.
        given: Numbers by task; None for none.
        tasks: The tasks, in their order.
        default: The number of a task without one.

    Returns:
        (T,) float32.

    Raises:
        InputError: If a name is not among the tasks or a number is not finite.
    """
    given = given or {}
    faults = [
        f"`{name}` names tasks that are trained here. Found {task!r}.{did_you_mean(task, tasks)}"
        for task in given
        if task not in tasks
    ]
    faults += [
        f"`{name}` of {task} should be a finite number. Found {value!r}."
        for task, value in given.items()
        if not isinstance(value, int | float) or not math.isfinite(value)
    ]
    if faults:
        raise InputError("\n".join(faults))
    return torch.tensor([float(given.get(task, default)) for task in tasks])


class _Weighting(nn.Module, ABC):
    """Names, static weights and the last weights, which both kinds have.

    Everything that a step changes is a buffer or a parameter, so `state_dict()` is the whole state.
    """

    growing: ClassVar[tuple[str, ...]] = ()  # buffers whose shape depends on the steps done
    static: Tensor

    def __init__(self, tasks: Sequence[str], static: Mapping[str, float] | None) -> None:
        super().__init__()
        if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
            raise InputError(f"A weighting has at least one task, and each once. Found {tasks!r}.")
        self.tasks = tuple(tasks)
        weights = by_task("static", static, self.tasks, 1.0)
        if bool((weights < 0).any()):
            raise InputError(f"A static weight is at least 0. Found {dict(static or {})}.")
        self.register_buffer("static", weights, persistent=False)
        self._last: Tensor | None = None

    def weights(self) -> Tensor | None:
        """The weights last used, (T,), or None before the first step and where there are none."""
        return self._last

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the main metric of each task, after each evaluation."""

    def epoch(self) -> None:
        """Take note that a pass over the data has ended."""

    def _check(self, name: str, found: Tensor, dimensions: int) -> None:
        if found.ndim != dimensions or found.shape[0] != len(self.tasks):
            rest = ", P" if dimensions == 2 else ","
            raise InputError(
                f"`{name}` should have shape ({len(self.tasks)}{rest}), a row for each of {', '.join(self.tasks)}. "
                f"Found {tuple(found.shape)}."
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.growing:
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, self.get_buffer(name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LossWeighting(_Weighting):
    """Losses of T tasks to one scalar; one backward pass serves.

    Args:
        tasks: Names of the tasks, in the order of the losses.
        static: Weights by task that multiply the losses before anything else; 1 for a task without one. A weighting
            that does not see a loss's scale (`inverse_loss`, `gls`, and in the end `uncertainty` and `imtl_l`) takes
            such a factor out again.

    Raises:
        InputError: If a name comes twice or a static weight is negative or of another task.
    """

    needs_validation_losses: ClassVar[bool] = False  # the loop calls `observe_validation` each step
    needs_losses_after_step: ClassVar[bool] = False  # the loop may call `observe_after_step`; better, and dearer

    def __init__(self, tasks: Sequence[str], static: Mapping[str, float] | None = None) -> None:
        super().__init__(tasks, static)

    @abstractmethod
    def combine(self, losses: Tensor) -> Tensor:
        """The scalar of the losses, (T,) -> (), once the static weights are in them."""

    def forward(self, losses: Tensor) -> Tensor:
        """The scalar whose gradient is the step.

        Args:
            losses: (T,), one for each task.

        Raises:
            InputError: If the losses have another shape.
        """
        self._check("losses", losses, 1)
        with torch.enable_grad():
            seen = losses if losses.requires_grad else losses.detach().requires_grad_()
            scalar = self.combine(self.static.to(seen) * seen)
            (self._last,) = torch.autograd.grad(scalar, seen, retain_graph=True)
        return scalar

    def observe_validation(self, losses: Tensor) -> None:
        """Take validation losses, (T,), each step; called only where `needs_validation_losses`."""

    def observe_after_step(self, losses: Tensor) -> None:
        """Take the losses of the same batches after the step, (T,), where `needs_losses_after_step`."""


class GradientWeighting(_Weighting):
    """Gradients of T tasks to one direction on the shared parameters; the step goes against the direction.

    A gradient that is not finite gives a direction that is not finite, so the loop's own check stops the run.

    Args:
        tasks: Names of the tasks, in the order of the rows.
        static: Weights by task that multiply the rows before anything else; 1 for a task without one.

    Raises:
        InputError: If a name comes twice or a static weight is negative or of another task.
    """

    needs_validation_gradient: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str], static: Mapping[str, float] | None = None) -> None:
        super().__init__(tasks, static)

    @abstractmethod
    def direct(self, gradients: Tensor, losses: Tensor, validation: Tensor | None) -> Tensor:
        """The direction; the arguments are those of `forward`, their shapes checked."""

    @torch.no_grad()
    def forward(self, gradients: Tensor, losses: Tensor, validation: Tensor | None = None) -> Tensor:
        """The direction that takes the place of the gradient, (P,).

        Args:
            gradients: (T, P), a row for each task, zero where a task does not touch a parameter.
            losses: (T,), the losses that the gradients are of.
            validation: (P,), the gradient of the validation loss, where `needs_validation_gradient`.

        Raises:
            InputError: If a shape is another one, or the validation gradient is missing.
        """
        self._check("gradients", gradients, 2)
        self._check("losses", losses, 1)
        if self.needs_validation_gradient and (validation is None or validation.shape != gradients.shape[1:]):
            found = "None" if validation is None else tuple(validation.shape)
            raise InputError(f"`validation` should have shape ({gradients.shape[1]},). Found {found}.")
        return self.direct(gradients, losses, validation)
