"""A run in stages, each with its own tasks and sampling."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from adapterhub.errors import InputError
from adapterhub.training.sampling._proportional import Proportional
from adapterhub.training.sampling._sampler import TaskSampler, check_sizes

__all__ = ["Stage", "Staged"]


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Args:
        share: Its share of the run's steps, in (0, 1].
        tasks: The tasks that take part; empty for all.
        sampling: How they are drawn, one of `SAMPLINGS` or a sampler; None for the run's own.
    """

    share: float
    tasks: Sequence[str] = ()
    sampling: str | TaskSampler | None = None


class Staged:
    """One sampler after another.

    Args:
        parts: Share of the steps, tasks and sampler of each stage; the shares sum to 1.
        sizes: Rows of each task of the run.
        steps: Steps of the run; what comes after them belongs to the last stage.
        seed: Seed of the draws outside a stage's tasks, where none of them may be drawn.

    Raises:
        InputError: If there is no stage, a share is not above 0, or they do not sum to 1.
    """

    def __init__(
        self,
        parts: Sequence[tuple[float, Collection[str], TaskSampler]],
        sizes: Mapping[str, int],
        *,
        steps: int,
        seed: int = 0,
    ) -> None:
        shares = [share for share, _, _ in parts]
        if not shares or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise InputError(f"The shares of `stages` are above 0 and sum to 1. Found {shares}. Correct them.")
        self._ends = [round(end * steps) for end in accumulate(shares)]
        self._tasks = [frozenset(tasks) for _, tasks, _ in parts]
        self._samplers = [sampler for _, _, sampler in parts]
        self._others = Proportional(check_sizes(sizes), seed=seed)
        self._drawn = 0

    @property
    def stage(self) -> int:
        """Position of the stage that the next step belongs to."""
        return next((place for place, end in enumerate(self._ends) if self._drawn < end), len(self._ends) - 1)

    def next(self, among: Collection[str] | None = None) -> str:
        """The task of the next step; see `TaskSampler`. Where none of the stage's tasks may be drawn, any other is."""
        stage = self.stage
        self._drawn += 1
        if among is None:
            return self._samplers[stage].next()
        here = self._tasks[stage].intersection(among)
        return self._samplers[stage].next(here) if here else self._others.next(among)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Passed on to every stage, so that a later one begins with what is known; each hears of its own tasks."""
        for tasks, sampler in zip(self._tasks, self._samplers, strict=True):
            sampler.observe({name: value for name, value in metrics.items() if name in tasks})

    def state_dict(self) -> dict[str, Any]:
        """The number of draws and the state of every stage."""
        states = [sampler.state_dict() for sampler in self._samplers]
        return {"drawn": self._drawn, "stages": states, "others": self._others.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: If it has another number of stages, or names other tasks.
        """
        if len(state["stages"]) != len(self._samplers):
            raise InputError(
                f"The sampler's state has {len(state['stages'])} stages. Found {len(self._samplers)} in `stages`."
            )
        self._drawn = int(state["drawn"])
        self._others.load_state_dict(state["others"])
        for sampler, saved in zip(self._samplers, state["stages"], strict=True):
            sampler.load_state_dict(saved)
