"""How one task fares under a method and under a baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from adapterhub.errors import InputError
from adapterhub.evaluation._bootstrap import Interval, Kind, interval, pair
from adapterhub.evaluation._directions import ceiling_of
from adapterhub.evaluation._table import Mean, Measure, OutcomeTable

__all__ = ["Gain", "check_whole", "gain", "saturated"]

SATURATED = 0.99


@dataclass(frozen=True)
class Gain:
    """How one task fares under a method and under the baseline.

    Args:
        measure: The task and the metric.
        baseline: The baseline's mean over the common seeds.
        method: The method's.
        gain: How much better the method is, in the metric's units; positive is better whatever the metric.
        interval: Where the gain lies, or None with one seed and no rows.
    """

    measure: Measure
    baseline: Mean
    method: Mean
    gain: float
    interval: Interval | None

    @property
    def negative_transfer(self) -> float | None:
        """(single-task - method) / single-task with the sign of the metric: positive is harm; None where B ≤ 0."""
        return 0.0 - self.gain / self.baseline.mean if self.baseline.mean > 0 else None

    @property
    def harmed(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.interval is not None and self.interval.high < 0

    @property
    def helped(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.interval is not None and self.interval.low > 0


def gain(
    table: OutcomeTable,
    measure: Measure,
    method: str,
    baseline: str,
    *,
    level: float = 0.95,
    kind: Kind = "student",
) -> Gain:
    """The gain of a method over a baseline on one measure, with a paired interval.

    Args:
        table: The outcomes.
        measure: Task and metric.
        method: The method.
        baseline: What it is compared with.
        level: Coverage of the interval.
        kind: See `Interval`.

    Raises:
        InputError: If one was not measured on it, they share no seed, or were measured on different rows.
    """
    check_whole(table, (baseline, method), [measure])
    one = pair(list(table.seeds(measure, baseline).values()), list(table.seeds(measure, method).values()))
    base, other = one.values()
    found = interval([one], lambda b, o: one.sign * (o - b)[0], level=level, kind=kind)
    return Gain(
        measure, Mean.of(base.tolist()), Mean.of(other.tolist()), one.sign * float((other - base).mean()), found
    )


def saturated(table: OutcomeTable, methods: Collection[str], threshold: float = SATURATED) -> tuple[Measure, ...]:
    """Measures on which every one of the methods is at the metric's largest value, so that nothing can be gained.

    A task that one method solves and another does not is not saturated: it tells them apart.

    Args:
        table: The outcomes.
        methods: The methods that are compared.
        threshold: Share of the largest value from which on a mean counts as there.
    """
    found = []
    for measure in table.measures:
        ceiling = ceiling_of(measure.metric)
        held = [table.mean(measure, method) for method in methods if table.seeds(measure, method)]
        if ceiling is not None and held and all(one.mean >= threshold * ceiling for one in held):
            found.append(measure)
    return tuple(found)


def check_whole(table: OutcomeTable, methods: Iterable[str], measures: Sequence[Measure]) -> None:
    """Raise if one of the methods lacks one of the measures.

    Args:
        table: The outcomes.
        methods: The methods.
        measures: What each is to have.

    Raises:
        InputError: If it does; the message names every gap.
    """
    lacking = [f"{name} lacks {gap.task} {gap.metric}" for name in methods for gap in table.gaps(name, measures)]
    if lacking:
        raise InputError(
            f"Methods are compared on the same tasks and metrics. Found: {'; '.join(lacking)}. Measure them, or leave "
            "the method or the task out."
        )
