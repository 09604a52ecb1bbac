"""What the loop asks of a sampler, and the draw that all of ours share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np

from adapterhub.errors import InputError, did_you_mean

__all__ = ["ExhaustedError", "TaskSampler", "check_names", "check_sizes", "draw"]


class ExhaustedError(InputError):
    """No task that may be drawn has batches left."""


class TaskSampler(Protocol):
    """Which task a step belongs to; the same sequence for the same seed, state and tasks to choose from."""

    def next(self, among: Collection[str] | None = None) -> str:
        """The task of the next step; the mass of those that may not be drawn goes to the others.

        Args:
            among: The tasks that may be drawn, at least one of the sampler's; by default all of them.
        """

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Told after each evaluation.

        Args:
            metrics: Each evaluated task's metric.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that the sequence's continuation depends on beside the arguments; JSON holds it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called.

        Args:
            state: What it gave.
        """


def draw(weights: Mapping[str, float], among: Collection[str] | None, seed: int, number: int) -> str:
    """One task by its weight; the same for the same arguments, so that a counter is all the state there is.

    Args:
        weights: A positive weight for each task; they need not sum to one.
        among: The tasks that may be drawn, or None for all.
        seed: Seed of the sequence.
        number: Number of the draw.
    """
    names = [name for name in weights if among is None or name in among]
    edges = np.cumsum([weights[name] for name in names])
    place = np.random.default_rng([seed, number]).random() * edges[-1]
    return names[min(int(np.searchsorted(edges, place, side="right")), len(names) - 1)]


def check_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """A copy of the sizes.

    Raises:
        InputError: If there is no task, or one without rows.
    """
    if not sizes:
        raise InputError("Sampling needs at least one task. Found none. Pass {task name: number of rows}.")
    empty = [name for name, size in sizes.items() if size < 1]
    if empty:
        raise InputError(f"Every task has at least one row. Found none for {', '.join(empty)}. Add rows or drop it.")
    return dict(sizes)


def check_names(found: Collection[str], known: Collection[str], what: str) -> None:
    """Compare names with the tasks of the run.

    Args:
        found: The names.
        known: The tasks.
        what: Where the names stand, for the message.

    Raises:
        InputError: If a name is not among the tasks.
    """
    wrong = [name for name in found if name not in known]
    if wrong:
        raise InputError(
            "\n".join(f"{what} names {name!r}, which is not trained here.{did_you_mean(name, known)}" for name in wrong)
        )
