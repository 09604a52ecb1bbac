"""Outcomes by measure, method and seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapterhub.errors import InputError, did_you_mean
from adapterhub.evaluation._outcome import Outcome

__all__ = ["ENOUGH_SEEDS", "Mean", "Measure", "OutcomeTable"]

ENOUGH_SEEDS = 3


@dataclass(frozen=True, order=True)
class Measure:
    """What is measured.

    Args:
        task: Name of the task.
        metric: Name of the metric.
    """

    task: str
    metric: str


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Args:
        mean: The mean.
        sd: Standard deviation over the seeds (n - 1), or None with one seed.
        seeds: Number of seeds.
    """

    mean: float
    sd: float | None
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """The mean of one value a seed."""
        found = sorted(values)  # so that their order is never seen in the last digit
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))

    @property
    def note(self) -> str:
        """What is wrong with it, or the empty string."""
        few = self.seeds < ENOUGH_SEEDS
        return f"{self.seeds} seed{'s' * (self.seeds > 1)}, at least {ENOUGH_SEEDS} are asked for" if few else ""

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.sd is None else f" ± {self.sd:.3f}")


class OutcomeTable:
    """Outcomes that can be compared: each measure once for every method and seed, in one unit.

    Args:
        outcomes: Any order. Where tasks were measured with several numbers of examples, choose one with
            `at_examples` first, and leave runs that left a task out to `influences`.

    Raises:
        InputError: If there is none, a measure occurs twice for a method and seed, or is better both ways.
    """

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._cells: dict[Measure, dict[str, dict[int, Outcome]]] = {}
        for one in outcomes:
            seeds = self._cells.setdefault(Measure(one.task, one.metric), {}).setdefault(one.method, {})
            if one.seed in seeds:
                raise InputError(
                    "A task is measured once by a metric, method, seed and number of examples. Found two outcomes of "
                    f"{one.task} under {one.method}, seed {one.seed}, {one.metric}. Remove one, or give them different "
                    "`examples` or `left_out` and compare one at a time."
                )
            seeds[one.seed] = one
        if not self._cells:
            raise InputError("A comparison needs at least one outcome. Found none. Measure a task first.")
        self._cells = {measure: self._cells[measure] for measure in sorted(self._cells)}
        for measure, methods in self._cells.items():
            if len({one.better for seeds in methods.values() for one in seeds.values()}) > 1:
                raise InputError(
                    f"A metric is better one way. Found both for {measure.task} {measure.metric}. Fix one."
                )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures, in order."""
        return tuple(self._cells)

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods, in order."""
        return tuple(sorted({method for methods in self._cells.values() for method in methods}))

    def seeds(self, measure: Measure, method: str) -> Mapping[int, Outcome]:
        """Outcomes by seed; empty where it was not measured."""
        return self._cells[measure].get(method, {})

    def sign(self, measure: Measure) -> int:
        """+1 where more is better, -1 where less is."""
        return next(iter(next(iter(self._cells[measure].values())).values())).sign

    def mean(self, measure: Measure, method: str) -> Mean:
        """Mean over seeds of a method that was measured."""
        return Mean.of(one.value for one in self.seeds(measure, method).values())

    def gaps(self, method: str, measures: Sequence[Measure]) -> list[Measure]:
        """Those of the measures that a method lacks."""
        return [measure for measure in measures if not self.seeds(measure, method)]

    def measures_of(self, method: str) -> tuple[Measure, ...]:
        """What was measured of a method.

        Raises:
            InputError: If nothing was.
        """
        found = tuple(measure for measure, methods in self._cells.items() if method in methods)
        if not found:
            raise InputError(
                f"A method is one that was measured ({', '.join(self.methods)}). Found {method!r}."
                f"{did_you_mean(method, self.methods)} Name one of them."
            )
        return found
