"""A bound on how often the rows of a small task come back."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

from adapterhub.errors import InputError
from adapterhub.training._batches import steps_per_epoch
from adapterhub.training.sampling._sampler import ExhaustedError, TaskSampler, check_names, check_sizes

__all__ = ["Capped"]

_LOG = logging.getLogger(__name__)


class Capped:
    """Another sampler in which no row is read more than `max_repeats` times over the run.

    It counts batches: an epoch of `schedule` reads every row once. When a task has had its epochs, its mass goes to the
    others and a warning says so. A curriculum reads easy rows more often than hard ones; then the bound is on the
    task's batches only.

    Args:
        sampler: Who draws.
        sizes: Rows of each task.
        max_repeats: The bound, at least 1; a row is read a whole number of times, so 2.5 is 2.
        batch_size: Rows of a batch.
        steps: Steps of the run, one batch each.

    Raises:
        InputError: If `max_repeats` is below 1, or all tasks together may not take that many steps.
    """

    def __init__(
        self, sampler: TaskSampler, sizes: Mapping[str, int], *, max_repeats: float, batch_size: int, steps: int
    ) -> None:
        if not max_repeats >= 1 or math.isinf(max_repeats):
            raise InputError(f"`max_repeats` should be a number of at least 1. Found {max_repeats!r}.")
        self._sampler, self._sizes, self._steps = sampler, check_sizes(sizes), steps
        self._repeats = int(max_repeats)
        self.budgets = {name: self._repeats * steps_per_epoch(size, batch_size) for name, size in sizes.items()}
        self._taken = dict.fromkeys(sizes, 0)
        most = sum(self.budgets.values())
        if most < steps:
            raise InputError(
                f"With `max_repeats`={max_repeats} all tasks together may take {most} steps of {batch_size} rows. "
                f"Found {steps} steps. Raise `max_repeats`, lower the steps, or add rows."
            )

    def next(self, among: Collection[str] | None = None) -> str:
        """The task of the next step; see `TaskSampler`.

        Raises:
            ExhaustedError: If every task that may be drawn has had its epochs.
        """
        left = [
            name
            for name, taken in self._taken.items()
            if taken < self.budgets[name] and (among is None or name in among)
        ]
        if not left:
            raise ExhaustedError(
                f"With `max_repeats`={self._repeats} the tasks may take {sum(self.budgets.values())} steps. Found one "
                "more. Raise `max_repeats` or lower the steps."
            )
        name = self._sampler.next(left)
        self._taken[name] += 1
        if self._taken[name] == self.budgets[name] and len(left) > 1 and sum(self._taken.values()) < self._steps:
            _LOG.warning(
                "%s: its %d rows were read %d times each, as often as `max_repeats` allows. The steps that it would "
                "still have had go to the other tasks.",
                name,
                self._sizes[name],
                self._repeats,
            )
        return name

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Passed on."""
        self._sampler.observe(metrics)

    def state_dict(self) -> dict[str, Any]:
        """The batches of each task, and the inner sampler's state."""
        return {"taken": dict(self._taken), "sampler": self._sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: If it names other tasks.
        """
        check_names(state["taken"], self._taken, "The sampler's state")
        self._taken |= {name: int(taken) for name, taken in state["taken"].items()}
        self._sampler.load_state_dict(state["sampler"])
