"""What was measured of one task under one method with one seed, and what a run recorded on its way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from adapterhub.errors import InputError
from adapterhub.evaluation._directions import Better, better_of, ceiling_of

__all__ = ["Outcome", "Trace"]

_EXACT = 1e-6


@dataclass(frozen=True)
class Outcome:
    """One measured number, and what it takes to compare it with another.

    Rows carry the intervals: the value is `sum(per_row) / sum(per_row_weight)`, so accuracy, exact match, mean errors
    and micro-averaged F1 (2·TP over predicted + true, a row each; see `row_scores`) all have one. A metric of the
    whole corpus, such as BLEU, has no rows: leave them out, and its interval comes from the seeds alone.

    Args:
        task: Name of the task.
        method: How it was trained, such as `single-task`, `group`, `sum`.
        seed: Of the run; runs with one seed are compared with each other.
        metric: Name of the metric.
        value: Its value on the test rows, in the metric's own units.
        per_row: A number for each test row, the same rows in the same order for every method and seed.
        per_row_weight: What each row counts; 1 if left out.
        train_value: The metric on the training rows, for the train-test gap.
        examples: Training examples that the task was given.
        steps: Optimiser steps of the run.
        seconds: The task's share of the time of training: of a run over K tasks the K-th part, so that sums are right.
        peak_bytes: Peak memory of the run in bytes.
        left_out: The task whose data the run did without (leave-one-task-out), or None.
        better: `higher` or `lower`; by default what the metric's name says.

    Raises:
        InputError: If a number is not finite, the rows do not give the value, or the metric is not known and `better`
            is not given.
    """

    task: str
    method: str
    seed: int
    metric: str
    value: float
    per_row: tuple[float, ...] | None = None
    per_row_weight: tuple[float, ...] | None = None
    train_value: float | None = None
    examples: int | None = None
    steps: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    left_out: str | None = None
    better: Better | None = None

    def __post_init__(self) -> None:
        if self.better is None:
            object.__setattr__(self, "better", better_of(self.metric))
        for name in ("per_row", "per_row_weight"):
            if (rows := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(map(float, rows)))
        faults = [*self._name_faults(), *self._number_faults()]
        faults = faults or list(self._row_faults())
        if faults:
            where = f"{self.task} under {self.method}, seed {self.seed}, {self.metric}"
            raise InputError(f"{where}: " + "; ".join(faults))

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is."""
        return 1 if self.better == "higher" else -1

    @property
    def weights(self) -> tuple[float, ...]:
        """What each row counts."""
        return self.per_row_weight or (1.0,) * len(self.per_row or ())

    def _name_faults(self) -> Iterator[str]:
        for name in ("task", "method", "metric"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                yield f"`{name}` is a text. Found {getattr(self, name)!r}. Name it."
        if self.better not in ("higher", "lower"):
            yield f'`better` is "higher" or "lower". Found {self.better!r}. Give one of them.'

    def _number_faults(self) -> Iterator[str]:
        for name in ("seed", "examples", "steps", "peak_bytes"):
            number = getattr(self, name)
            needed = name == "seed"
            if not (number is None and not needed) and (isinstance(number, bool) or not isinstance(number, int)):
                yield f"`{name}` is a whole number. Found {number!r}. Correct it."
        for name in ("value", "train_value", "seconds"):
            number = getattr(self, name)
            if not (number is None and name != "value") and not _finite(number):
                yield f"`{name}` is a finite number. Found {number!r}. Leave out a run that failed."
        ceiling = ceiling_of(self.metric)
        if ceiling is not None and _finite(self.value) and self.value > ceiling * (1 + _EXACT):
            yield f"`value` of {self.metric} is at most {ceiling:g}. Found {self.value:g}. Use the metric's own units."

    def _row_faults(self) -> Iterator[str]:
        if self.per_row is None:
            if self.per_row_weight is not None:
                yield "`per_row_weight` goes with `per_row`. Found it alone. Give both."
            return
        if not self.per_row or len(self.weights) != len(self.per_row):
            yield (
                f"`per_row` has at least one number, `per_row_weight` as many. Found {len(self.per_row)} and "
                f"{len(self.weights)}. Give one of each a row."
            )
            return
        if not all(map(math.isfinite, (*self.per_row, *self.weights))) or min(self.weights) < 0:
            yield "rows are finite numbers and weights not negative. Found others. Correct them."
            return
        total = math.fsum(self.weights)
        found = math.fsum(self.per_row) / total if total else 0.0
        if not math.isclose(found, self.value, rel_tol=_EXACT, abs_tol=_EXACT):
            yield (
                f"the rows give the value, sum(per_row) / sum(per_row_weight). Found {found:.6g} and {self.value:.6g}. "
                "Leave the rows of a metric of the whole corpus out"
            )


@dataclass(frozen=True)
class Trace:
    """One series of numbers over the steps of a run: a loss, a metric, a task's weight, a rate of conflict.

    Args:
        method: How was trained.
        seed: Of the run.
        name: What it is: the name of a metric (`validation_accuracy`, `loss`), or `weight`, `conflict`, …
        steps: Optimiser steps done at each point, rising.
        values: As many finite numbers.
        task: The task that it belongs to; empty where it belongs to the run.

    Raises:
        InputError: If the sizes differ, the steps do not rise, or a number is not finite.
    """

    method: str
    seed: int
    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    task: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "values", tuple(self.values))
        where = f"trace `{self.name}` of {self.task or 'the run'} under {self.method}, seed {self.seed}"
        if len(self.steps) != len(self.values) or not self.steps:
            raise InputError(
                f"{where}: there is one value a step, and at least one. Found {len(self.steps)} steps and "
                f"{len(self.values)} values. Give as many of both."
            )
        if any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise InputError(f"{where}: steps rise. Found {self.steps[:8]}. Give each step once, in order.")
        if not all(_finite(value) for value in self.values):
            raise InputError(f"{where}: values are finite numbers. Found others. Leave them out.")


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
