"""Who was harmed by learning together, and who helped whom.

    NT_t = (STL_t - MTL_t) / STL_t        with the sign of the metric; positive is harm

A task is flagged where the whole interval of its gain lies below zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from adapterhub.errors import InputError
from adapterhub.evaluation._bootstrap import Kind
from adapterhub.evaluation._gain import Gain, gain
from adapterhub.evaluation._outcome import Outcome
from adapterhub.evaluation._table import Measure, OutcomeTable

__all__ = ["Influence", "Ledger", "influences", "ledger"]


@dataclass(frozen=True)
class Ledger:
    """Every task's gain under a method.

    Args:
        method: The method.
        baseline: The single-task results that it is held against.
        gains: One for each measure, in order.
        level: Coverage of the intervals.
        missing: Measures of the baseline that the method lacks.
    """

    method: str
    baseline: str
    gains: tuple[Gain, ...]
    level: float
    missing: tuple[Measure, ...] = ()

    @property
    def harmed(self) -> tuple[Measure, ...]:
        """Measures whose whole interval is below zero."""
        return tuple(one.measure for one in self.gains if one.harmed)

    @property
    def helped(self) -> tuple[Measure, ...]:
        """Measures whose whole interval is above zero."""
        return tuple(one.measure for one in self.gains if one.helped)

    @property
    def by_chance(self) -> float:
        """How many would be flagged as harmed if no task gained or lost anything."""
        return (1 - self.level) / 2 * sum(one.interval is not None for one in self.gains)


@dataclass(frozen=True)
class Influence:
    """What the data of one task did for another, or for itself.

    Args:
        left_out: The task whose data a run did without.
        gain: The run with all tasks (`method`) over the one without (`baseline`); positive: its data helped.
    """

    left_out: str
    gain: Gain

    @property
    def unseen(self) -> bool:
        """Whether this is the task itself: `gain.baseline` is then how the method fares on a task it never saw."""
        return self.gain.measure.task == self.left_out


def ledger(table: OutcomeTable, method: str, baseline: str, *, level: float = 0.95, kind: Kind = "student") -> Ledger:
    """Hold a method against the single-task results, task by task.

    Args:
        table: The outcomes.
        method: The method.
        baseline: The single-task results.
        level: Coverage of the intervals.
        kind: See `Interval`.

    Raises:
        InputError: If one of them was not measured, or they share no seed or rows.
    """
    table.measures_of(method)
    measures = table.measures_of(baseline)
    missing = table.gaps(method, measures)
    shared = [one for one in measures if one not in missing]
    gains = tuple(gain(table, one, method, baseline, level=level, kind=kind) for one in shared)
    return Ledger(method, baseline, gains, level, tuple(missing))


def influences(
    outcomes: Iterable[Outcome], method: str, *, level: float = 0.95, kind: Kind = "student"
) -> list[Influence]:
    """Compare runs that left one task out (`left_out`) with the run on all tasks.

    Args:
        outcomes: Of the method with and without each task; others are passed over.
        method: The method.
        level: Coverage of the intervals.
        kind: See `Interval`.

    Returns:
        For each task left out, its influence on every measure that both runs have; empty without such runs.

    Raises:
        InputError: If there is no run on all tasks, or they share no seed or rows.
    """
    held = [one for one in outcomes if one.method == method]
    every = [replace(one, method="all tasks") for one in held if one.left_out is None]
    without = sorted({one.left_out for one in held if one.left_out is not None})
    if without and not every:
        raise InputError(
            f"Leaving a task out is held against a run on all tasks. Found none of {method}. Add outcomes without "
            "`left_out`."
        )
    found: list[Influence] = []
    for name in without:
        fewer = [replace(one, method="without", left_out=None) for one in held if one.left_out == name]
        found += _one_left_out(name, [*every, *fewer], level, kind)
    return found


def _one_left_out(name: str, outcomes: Sequence[Outcome], level: float, kind: Kind) -> list[Influence]:
    table = OutcomeTable(outcomes)
    both = [one for one in table.measures_of("without") if table.seeds(one, "all tasks")]
    return [Influence(name, gain(table, one, "all tasks", "without", level=level, kind=kind)) for one in both]
