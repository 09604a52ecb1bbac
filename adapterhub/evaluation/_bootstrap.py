"""Paired bootstrap intervals over the rows of the tests and over the seeds of the runs.

Rows are the same in every run, so one drawing of rows serves all seeds: seeds and rows are crossed (Owen 2007). Drawing
rows anew within each seed would divide their part of the error by the number of seeds, which no further seed does.

A bootstrap over three seeds cannot be honest by itself: its percentiles end at the smallest and largest of the three,
and hold the truth in 75 % of the cases where 95 % were promised. So the default draws rows only, and adds the seeds'
part as Student's t of S - 1 degrees of freedom, times the spread of the seeds that the rows do not explain. The tests
simulate both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError
from adapterhub.evaluation._outcome import Outcome

__all__ = ["Interval", "Pair", "Statistic", "interval", "pair"]

Doubles = NDArray[np.float64]
Kind = Literal["student", "percentile"]
Statistic = Callable[[Doubles, Doubles], Doubles]
"""(K, R, S) values of the baseline and of the method to (R, S) figures, whose mean over seeds is the estimate."""

REPLICATES = 4000
_TAILS = 10  # draws of t for each resample of the rows: its tails are long
_BLOCK = 4_000_000  # numbers drawn at a time


@dataclass(frozen=True)
class Interval:
    """Where a figure lies, and what that says.

    Args:
        low: Lower end.
        high: Upper end.
        level: Share of such intervals that hold the true figure.
        kind: `student`: rows drawn again, the seeds by Student's t. `percentile`: seeds and rows drawn again.
        seeds: Number of seeds.
        rows: Number of test rows, of all tasks together; 0 where the seeds alone speak.
    """

    low: float
    high: float
    level: float
    kind: Kind
    seeds: int
    rows: int

    def __str__(self) -> str:
        return f"{self.low:+.3f} to {self.high:+.3f}"


@dataclass(frozen=True)
class Pair:
    """One measure under two methods, seed by seed.

    Args:
        name: Of the measure; the draws depend on it and not on the order of tasks.
        sign: +1 where more is better.
        seeds: The common seeds, rising.
        base: Outcomes of the baseline, one a seed.
        other: Outcomes of the method.
    """

    name: str
    sign: int
    seeds: tuple[int, ...]
    base: tuple[Outcome, ...]
    other: tuple[Outcome, ...]

    @property
    def rows(self) -> int:
        """Number of test rows, 0 where not every outcome has them."""
        sizes = [len(one.per_row or ()) for one in (*self.base, *self.other)]
        return max(sizes) if min(sizes) else 0

    def values(self) -> tuple[Doubles, Doubles]:
        """(S,) values of baseline and method."""
        return np.array([one.value for one in self.base]), np.array([one.value for one in self.other])


def pair(base: Sequence[Outcome], other: Sequence[Outcome], seeds: Sequence[int] | None = None) -> Pair:
    """Pair the outcomes of two methods on one measure by their seeds.

    Args:
        base: Of the baseline.
        other: Of the method.
        seeds: Use these only; by default those that both have.

    Raises:
        InputError: If they share no seed, or have other rows.
    """
    left, right = ({one.seed: one for one in side} for side in (base, other))
    common = sorted(left.keys() & right.keys() if seeds is None else set(seeds) & left.keys() & right.keys())
    one = next(iter(base))
    if not common:
        raise InputError(
            f"Methods are compared on runs with the same seeds. Found none for {one.task} {one.metric}: "
            f"{sorted(left)} and {sorted(right)}. Run both with the same seeds."
        )
    for seed in common:
        sizes = [len(side[seed].per_row or ()) for side in (left, right)]
        if all(sizes) and sizes[0] != sizes[1]:
            raise InputError(
                f"Methods are compared on the same test rows. Found {sizes[0]} and {sizes[1]} for {one.task} "
                f"{one.metric}, seed {seed}. Measure both on one file."
            )
    name = f"{one.task} {one.metric}"
    return Pair(name, one.sign, tuple(common), tuple(left[s] for s in common), tuple(right[s] for s in common))


def interval(
    pairs: Sequence[Pair],
    statistic: Statistic,
    *,
    level: float = 0.95,
    kind: Kind = "student",
    replicates: int = REPLICATES,
) -> Interval | None:
    """The interval of a figure that compares two methods on one or more measures.

    Args:
        pairs: The measures in the order that `statistic` has them in, all with the same seeds.
        statistic: The figure of each seed, from values of any resample.
        level: Promised coverage in (0, 1).
        kind: See `Interval`.
        replicates: Number of resamples.

    Returns:
        The interval, or None where there is nothing to draw (one seed without rows), or the figure is not defined in
        some resample (a baseline of 0).

    Raises:
        InputError: If `level` is not in (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"`level` is between 0 and 1. Found {level}. Give 0.95 for 95 %.")
    seeds, rows = len(pairs[0].seeds), sum(one.rows for one in pairs)
    if seeds == 1 and not rows:
        return None
    drawn = [_resampled(one, replicates) for one in pairs]
    with np.errstate(all="ignore"):
        found = statistic(np.stack([b for b, _ in drawn]), np.stack([o for _, o in drawn]))  # (R, S)
        point = statistic(*(np.stack(side)[:, np.newaxis] for side in zip(*(p.values() for p in pairs), strict=True)))
    if not (np.isfinite(found).all() and np.isfinite(point).all()):
        return None
    spread = np.random.default_rng([zlib.crc32(b"seeds"), seeds])
    if kind == "percentile":
        figures = np.take_along_axis(found, spread.integers(seeds, size=found.shape), axis=1).mean(axis=1)
    else:
        figures = (found.mean(axis=1) + _seed_part(found, point[0], spread)).ravel()
    low, high = np.quantile(figures, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high), level, kind, seeds, rows)


def _seed_part(found: Doubles, point: Doubles, spread: np.random.Generator) -> Doubles | float:
    """(T, R) what the choice of seeds adds: t of S - 1 degrees times the spread that the rows leave unexplained."""
    seeds = len(point)
    if seeds == 1:
        return 0.0
    from_rows = (found - found.mean(axis=1, keepdims=True)).var(axis=0).mean() * seeds / (seeds - 1)
    own = max(0.0, float(point.var(ddof=1) - from_rows))
    return spread.standard_t(seeds - 1, size=(_TAILS, len(found))) * math.sqrt(own / seeds)


def _resampled(one: Pair, replicates: int) -> tuple[Doubles, Doubles]:
    """Values of baseline and method, (R, S) each, in resamples of the rows; without rows the values themselves."""
    if not one.rows:
        base, other = one.values()
        return tuple(np.broadcast_to(side, (replicates, len(side))) for side in (base, other))  # type: ignore[return-value]
    sizes = {len(outcome.per_row or ()) for outcome in one.base}
    # The same number of rows in every seed is the same rows; other numbers are other rows, drawn for themselves.
    groups = [range(len(one.seeds))] if len(sizes) == 1 else [range(s, s + 1) for s in range(len(one.seeds))]
    parts = []
    for group in groups:
        held = [outcome for s in group for outcome in (one.base[s], one.other[s])]
        random = np.random.default_rng([zlib.crc32(one.name.encode()), group[0]])
        parts.append(_ratios(held, replicates, random))
    found = np.concatenate(parts, axis=1)  # (R, 2 S): base, other, base, other, …
    return found[:, 0::2], found[:, 1::2]


def _ratios(held: Sequence[Outcome], replicates: int, random: np.random.Generator) -> Doubles:
    """(R, C) value of each outcome in resamples of their common rows."""
    columns = np.array([[one.per_row, one.weights] for one in held], dtype=np.float64).reshape(2 * len(held), -1).T
    columns = columns[np.lexsort(columns.T)]  # in an order of their own, whatever the file's was
    rows = len(columns)
    parts = []
    for start in range(0, replicates, step := max(1, _BLOCK // rows)):
        count = min(step, replicates - start)
        places = random.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, np.newaxis]
        drawn = np.bincount(places.ravel(), minlength=count * rows).reshape(count, rows)  # how often each row
        parts.append(drawn.astype(np.float64) @ columns)
    sums = np.concatenate(parts)
    numbers, weights = sums[:, 0::2], sums[:, 1::2]
    return np.divide(numbers, weights, out=np.zeros_like(numbers), where=weights > 0)
