"""How results depend on examples, steps, time and memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapterhub.evaluation._directions import better_of
from adapterhub.evaluation._outcome import Outcome, Trace
from adapterhub.evaluation._table import Mean, Measure, OutcomeTable

__all__ = [
    "CostRatio",
    "SizePoint",
    "StepsToTarget",
    "TrainTestGap",
    "cost_ratios",
    "final_values",
    "size_curve",
    "steps_to_target",
    "train_test_gaps",
]


@dataclass(frozen=True)
class SizePoint:
    """A method's value on one task at one number of examples.

    Args:
        measure: Task and metric.
        method: The method.
        examples: Training examples of the task.
        value: Mean over seeds.
    """

    measure: Measure
    method: str
    examples: int
    value: Mean


@dataclass(frozen=True)
class StepsToTarget:
    """How many steps runs needed until a metric reached its target.

    Args:
        task: The task.
        method: The method.
        target: The value to reach.
        reached: Runs that did.
        runs: All runs.
        median: Median of the steps, a run that never did counting as infinitely many; None where that is the median.
    """

    task: str
    method: str
    target: float
    reached: int
    runs: int
    median: float | None


@dataclass(frozen=True)
class TrainTestGap:
    """How much better a method is on the rows that it was trained on.

    Args:
        measure: Task and metric.
        method: The method.
        gap: Train minus test with the sign of the metric, mean over seeds; positive: it learnt rows by heart.
    """

    measure: Measure
    method: str
    gap: Mean


@dataclass(frozen=True)
class CostRatio:
    """What a method costs against the plain sum of the losses.

    Args:
        method: The method.
        reference: What stands for 1.
        seconds: Ratio of the time of training, paired by seed, or None where it was not measured.
        peak_bytes: Ratio of the peak memory.
    """

    method: str
    reference: str
    seconds: Mean | None
    peak_bytes: Mean | None


def size_curve(outcomes: Iterable[Outcome]) -> list[SizePoint]:
    """Value against number of examples, for every task and method.

    Args:
        outcomes: Those with `examples` and all tasks count.
    """
    cells: dict[tuple[Measure, str, int], list[float]] = {}
    for one in outcomes:
        if one.examples is not None and one.left_out is None:
            cells.setdefault((Measure(one.task, one.metric), one.method, one.examples), []).append(one.value)
    return [SizePoint(*key, Mean.of(values)) for key, values in sorted(cells.items())]


def steps_to_target(traces: Iterable[Trace], name: str, targets: Mapping[str, float]) -> list[StepsToTarget]:
    """The first recorded step at which each run's metric is as good as the target; nothing is interpolated.

    Args:
        traces: Learning curves; those of other names and tasks are passed over.
        name: Name of the metric, such as `validation_accuracy`.
        targets: By task, such as what the single-task run ends with.

    Raises:
        InputError: If it is not known whether more of the metric is better.
    """
    sign = 1 if better_of(name) == "higher" else -1
    firsts: dict[tuple[str, str], list[float]] = {}
    for one in traces:
        if one.name == name and one.task in targets:
            target = sign * targets[one.task]
            found = (s for s, value in zip(one.steps, one.values, strict=True) if sign * value >= target)
            firsts.setdefault((one.task, one.method), []).append(next(found, math.inf))
    return [
        StepsToTarget(task, method, targets[task], sum(map(math.isfinite, steps)), len(steps), _finite_median(steps))
        for (task, method), steps in sorted(firsts.items())
    ]


def final_values(traces: Iterable[Trace], name: str, method: str) -> dict[str, float]:
    """By task, the mean over seeds of the last value of a method's curves: the target for others.

    Args:
        traces: Learning curves.
        name: Name of the metric.
        method: The method.
    """
    last: dict[str, list[float]] = {}
    for one in traces:
        if one.name == name and one.method == method and one.task:
            last.setdefault(one.task, []).append(one.values[-1])
    return {task: Mean.of(values).mean for task, values in sorted(last.items())}


def train_test_gaps(table: OutcomeTable) -> list[TrainTestGap]:
    """The train-test gap of every method on every measure that has a training value in all its runs.

    Args:
        table: The outcomes.
    """
    found = []
    for measure in table.measures:
        for method in table.methods:
            held = list(table.seeds(measure, method).values())
            gaps = [one.sign * (one.train_value - one.value) for one in held if one.train_value is not None]
            if gaps and len(gaps) == len(held):
                found.append(TrainTestGap(measure, method, Mean.of(gaps)))
    return found


def cost_ratios(table: OutcomeTable, reference: str = "sum") -> list[CostRatio]:
    """Time and memory of each method over the plain sum's, seed by seed.

    A method's time is the sum over its tasks, its memory the largest; see `Outcome.seconds`.

    Args:
        table: The outcomes.
        reference: What stands for 1.

    Raises:
        InputError: If the reference was not measured.
    """
    table.measures_of(reference)
    tasks = {method: {one.task for one in table.measures_of(method)} for method in table.methods}
    found = []
    for method in table.methods:
        if tasks[method] == tasks[reference]:  # the time of other tasks says nothing
            ratios = [_ratio(table, method, reference, name) for name in ("seconds", "peak_bytes")]
            found.append(CostRatio(method, reference, *ratios))
    return found


def _ratio(table: OutcomeTable, method: str, reference: str, name: str) -> Mean | None:
    own, other = _costs(table, method, name), _costs(table, reference, name)
    ratios = [own[seed] / other[seed] for seed in own.keys() & other.keys() if other[seed] > 0]
    return Mean.of(ratios) if ratios else None


def _costs(table: OutcomeTable, method: str, name: str) -> dict[int, float]:
    """Cost by seed, of the seeds in which every task has one."""
    by_seed: dict[int, dict[str, float]] = {}
    for measure in table.measures_of(method):
        for seed, one in table.seeds(measure, method).items():
            cost = getattr(one, name)
            if cost is not None:  # several metrics of a task are of one run
                tasks = by_seed.setdefault(seed, {})
                tasks[measure.task] = max(tasks.get(measure.task, 0.0), cost)
    count = len({measure.task for measure in table.measures_of(method)})
    total = sum if name == "seconds" else max
    return {seed: float(total(tasks.values())) for seed, tasks in by_seed.items() if len(tasks) == count}


def _finite_median(steps: list[float]) -> float | None:
    found = statistics.median(steps)
    return found if math.isfinite(found) else None
