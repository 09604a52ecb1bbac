"""How much better or worse several tasks fare under one method than under another.

    Δm = 100 % · (1/K) Σ_t (1/M_t) Σ_m (-1)^l (N - B) / B        l = 1 where less is better

N is the method's value, B the single-task baseline's, both means over the common seeds. **Positive is better.** The
tables of Nash-MTL (Navon et al. 2022), FAMO (Liu et al. 2023) and others print it with the other sign, as a drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import InputError
from adapterhub.evaluation._bootstrap import Doubles, Interval, Kind, Pair, Statistic, interval, pair
from adapterhub.evaluation._directions import ceiling_of
from adapterhub.evaluation._gain import check_whole
from adapterhub.evaluation._table import Mean, Measure, OutcomeTable

__all__ = ["AverageGain", "DeltaM", "Rank", "average_gain", "delta_m", "mean_rank"]


@dataclass(frozen=True)
class DeltaM:
    """Δm of a method, in per cent.

    Args:
        value: The mean over seeds with its spread; positive is better, or with `drop` worse.
        interval: Where it lies, or None where that is not defined.
        drop: Whether it is printed as a drop, as some papers do.
        tasks: Number of tasks that it is a mean over.
        left_out: Saturated measures that it leaves out.
    """

    value: Mean
    interval: Interval | None
    drop: bool
    tasks: int
    left_out: tuple[Measure, ...]

    @property
    def convention(self) -> str:
        """What the sign says; it stands beside the number wherever that is printed."""
        way = "as a drop: lower is better" if self.drop else "positive is better"
        out = f", without {len(self.left_out)} saturated" if self.left_out else ""
        return (
            f"{way}; mean over {self.tasks} task{'s' * (self.tasks != 1)} of the relative gain over the baseline{out}"
        )

    def __str__(self) -> str:
        spread = "" if self.value.sd is None else f" ± {self.value.sd:.2f}"
        where = "" if self.interval is None else f" [{self.interval.low:+.2f}, {self.interval.high:+.2f}]"
        return f"Δm {self.value.mean:+.2f} %{spread}{where} ({self.convention})"


@dataclass(frozen=True)
class AverageGain:
    """The mean gain in points: hundredths of the metric's largest value.

    Args:
        value: The mean over seeds with its spread; positive is better.
        interval: Where it lies.
        tasks: Number of tasks.
        left_out: Measures without a largest value, such as mean errors.
    """

    value: Mean
    interval: Interval | None
    tasks: int
    left_out: tuple[Measure, ...]


@dataclass(frozen=True)
class Rank:
    """A method's mean rank over the tasks, 1 for the best; ties share the mean of their ranks.

    Args:
        method: Its name.
        rank: The mean rank.
        tasks: Number of tasks.
    """

    method: str
    rank: float
    tasks: int


def delta_m(
    table: OutcomeTable,
    method: str,
    baseline: str,
    *,
    leave_out: Sequence[Measure] = (),
    drop: bool = False,
    level: float = 0.95,
    kind: Kind = "student",
) -> DeltaM:
    """Δm of a method over a baseline; the formula stands at the head of this module.

    Args:
        table: The outcomes.
        method: The method.
        baseline: The single-task results.
        leave_out: Measures to leave out, such as `saturated(…)`.
        drop: Print it with the other sign, lower is better.
        level: Coverage of the interval.
        kind: See `Interval`.

    Raises:
        InputError: If a baseline is 0 or less, the methods were not measured on the same tasks or share no seed, or
            nothing is left.
    """
    pairs, weights, tasks = _shared(table, method, baseline, leave_out)
    broken = [one.name for one in pairs if one.values()[0].mean() <= 0]
    if broken:
        raise InputError(
            f"Δm divides by the baseline, which is above 0. Found 0 or less for {', '.join(broken)}. Leave these out "
            "with `leave_out`, or compare gains in points."
        )
    sign = -1 if drop else 1
    statistic = _gains(pairs, 100 * sign * weights, relative=True)
    found = interval(pairs, statistic, level=level, kind=kind)
    out = tuple(measure for measure in table.measures_of(baseline) if measure in leave_out)
    return DeltaM(_by_seed(pairs, statistic), found, drop, tasks, out)


def average_gain(
    table: OutcomeTable,
    method: str,
    baseline: str,
    *,
    leave_out: Sequence[Measure] = (),
    level: float = 0.95,
    kind: Kind = "student",
) -> AverageGain:
    """The mean over tasks of the gain in points, each task with the mean of its metrics.

    Args:
        table: The outcomes.
        method: The method.
        baseline: What it is compared with.
        leave_out: Measures to leave out besides those without a largest value.
        level: Coverage of the interval.
        kind: See `Interval`.

    Raises:
        InputError: If the methods were not measured on the same tasks or share no seed, or nothing is left.
    """
    endless = tuple(one for one in table.measures_of(baseline) if ceiling_of(one.metric) is None)
    pairs, weights, tasks = _shared(table, method, baseline, (*leave_out, *endless))
    metrics = [ceiling_of(one.base[0].metric) or 1.0 for one in pairs]
    statistic = _gains(pairs, 100 * weights / np.array(metrics))
    found = interval(pairs, statistic, level=level, kind=kind)
    return AverageGain(_by_seed(pairs, statistic), found, tasks, endless)


def mean_rank(table: OutcomeTable, methods: Sequence[str] | None = None) -> list[Rank]:
    """Mean rank of each method over the tasks, best first; a task counts once however many metrics it has.

    Args:
        table: The outcomes.
        methods: The methods to rank; by default all.

    Raises:
        InputError: If a method lacks a measure that another one has.
    """
    names = sorted(methods or table.methods)
    measures = sorted({measure for name in names for measure in table.measures_of(name)})
    check_whole(table, names, measures)
    values = np.array([[table.sign(one) * table.mean(one, name).mean for name in names] for one in measures])
    above = (values[:, :, np.newaxis] < values[:, np.newaxis, :]).sum(axis=2)  # (measures, methods)
    level = (values[:, :, np.newaxis] == values[:, np.newaxis, :]).sum(axis=2)
    ranks = 1 + above + (level - 1) / 2
    weights, tasks = _weights(measures)
    found = [Rank(name, float(weights @ ranks[:, place]), tasks) for place, name in enumerate(names)]
    return sorted(found, key=lambda one: (one.rank, one.method))


def _shared(
    table: OutcomeTable, method: str, baseline: str, leave_out: Sequence[Measure]
) -> tuple[list[Pair], Doubles, int]:
    """Pairs on the seeds that all of them have, the weight of each in the mean over tasks, and the number of tasks."""
    union = {*table.measures_of(method), *table.measures_of(baseline)}
    measures = sorted(union - set(leave_out))
    check_whole(table, (baseline, method), measures)
    if not measures:
        raise InputError("A mean over tasks needs at least one. Found that all were left out. Leave out fewer.")
    sides = [[table.seeds(one, name) for name in (baseline, method)] for one in measures]
    common = set.intersection(*({*side} for both in sides for side in both))
    if not common:
        raise InputError(
            f"A mean over tasks is taken on seeds that all tasks share. Found none for {method} and {baseline}. Run "
            "every task with the same seeds."
        )
    pairs = [pair(list(base.values()), list(other.values()), sorted(common)) for base, other in sides]
    weights, tasks = _weights(measures)
    return pairs, weights, tasks


def _weights(measures: Sequence[Measure]) -> tuple[Doubles, int]:
    """1 / (K · M_t) for each measure, and K."""
    tasks = [measure.task for measure in measures]
    count = len(set(tasks))
    return np.array([1 / (count * tasks.count(task)) for task in tasks]), count


def _gains(pairs: Sequence[Pair], weights: Doubles, *, relative: bool = False) -> Statistic:
    """The weighted sum of gains in each seed; `relative` divides by the baseline's mean over the seeds."""
    factors = (np.array([one.sign for one in pairs]) * weights)[:, np.newaxis, np.newaxis]

    def figure(base: Doubles, other: Doubles) -> Doubles:
        below = base.mean(axis=-1, keepdims=True) if relative else np.ones(1)
        scaled = np.where(below > 0, (other - base) / below, np.nan)
        return np.asarray((factors * scaled).sum(axis=0))

    return figure


def _by_seed(pairs: Sequence[Pair], statistic: Statistic) -> Mean:
    """The point estimate in each seed."""
    sides = (np.stack(side)[:, np.newaxis] for side in zip(*(one.values() for one in pairs), strict=True))
    return Mean.of(statistic(*sides)[0].tolist())
