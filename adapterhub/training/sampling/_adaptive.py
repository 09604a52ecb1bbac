"""Tasks drawn by how far they are from their target."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from adapterhub.errors import InputError
from adapterhub.training.sampling._sampler import check_names, check_sizes, draw

__all__ = ["Adaptive"]

_FLOOR = 0.01
"""The gap of a task that has reached its target: it is still asked now and then, so that it does not sink unseen."""


class Adaptive:
    """P(t) ∝ max(target_t − metric_t, ε); where lower is better, max(metric_t − target_t, ε).

    Until a task is evaluated it counts with the widest gap known, and before the first evaluation all count the same.
    Gaps are in the metrics' units: metrics of one kind belong together.

    Args:
        sizes: Rows of each task; only the names count.
        targets: The metric to reach, by task; by default 1, or 0 where lower is better.
        lower_is_better: Tasks with such a metric.
        floor: ε.
        seed: Seed of the draws.

    Raises:
        InputError: If there is no task or one without rows, if `targets` or `lower_is_better` name others, or if a
            target is not a finite number or `floor` not above 0.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        targets: Mapping[str, float] | None = None,
        lower_is_better: Collection[str] = (),
        floor: float = _FLOOR,
        seed: int = 0,
    ) -> None:
        names = list(check_sizes(sizes))
        check_names(targets or {}, names, "`targets`")
        check_names(lower_is_better, names, "`lower_is_better`")
        self._sign = {name: -1.0 if name in lower_is_better else 1.0 for name in names}
        best = {name: 0.0 if name in lower_is_better else 1.0 for name in names}
        self._targets = best | dict(targets or {})
        wrong = [f"{name}: {value!r}" for name, value in self._targets.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(f"`targets` are finite numbers. Found {', '.join(wrong)}.")
        if not (math.isfinite(floor) and floor > 0):
            raise InputError(f"`floor` should be a number above 0, so that no task is lost. Found {floor!r}.")
        self._floor, self._seed, self._drawn = floor, seed, 0
        self._metrics: dict[str, float] = {}

    @property
    def shares(self) -> dict[str, float]:
        """The probability of each task as of now."""
        gaps = {
            name: max(self._sign[name] * (self._targets[name] - metric), self._floor)
            for name, metric in self._metrics.items()
        }
        widest = max(gaps.values(), default=1.0)
        all_gaps = {name: gaps.get(name, widest) for name in self._sign}
        return {name: gap / sum(all_gaps.values()) for name, gap in all_gaps.items()}

    def next(self, among: Collection[str] | None = None) -> str:
        """The task of the next step; see `TaskSampler`."""
        self._drawn += 1
        return draw(self.shares, among, self._seed, self._drawn)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Move the shares; tasks that are not named, or whose metric is not a finite number, keep their last one.

        Args:
            metrics: Each evaluated task's metric.

        Raises:
            InputError: If a task is not of this run.
        """
        check_names(metrics, self._sign, "`metrics`")
        self._metrics |= {name: float(value) for name, value in metrics.items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """The number of draws and the last metrics."""
        return {"drawn": self._drawn, "metrics": dict(self._metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: If it names other tasks.
        """
        check_names(state["metrics"], self._sign, "The sampler's state")
        self._drawn, self._metrics = int(state["drawn"]), dict(state["metrics"])
