"""All that outcomes say, put together: per task, Δm, ranks, who was harmed, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.errors import InputError
from adapterhub.evaluation._bootstrap import Kind
from adapterhub.evaluation._curves import CostRatio, TrainTestGap, cost_ratios, train_test_gaps
from adapterhub.evaluation._gain import saturated
from adapterhub.evaluation._ledger import Influence, Ledger, influences, ledger
from adapterhub.evaluation._multitask import AverageGain, DeltaM, Rank, average_gain, delta_m, mean_rank
from adapterhub.evaluation._outcome import Outcome
from adapterhub.evaluation._table import ENOUGH_SEEDS, Mean, Measure, OutcomeTable

__all__ = ["BASELINE", "REFERENCE", "MethodSummary", "Section", "summarise"]

BASELINE = "single-task"
REFERENCE = "sum"


@dataclass(frozen=True)
class MethodSummary:
    """A method over all tasks, held against the baseline.

    Args:
        method: The method.
        delta: Δm, or None where it is not defined; `notes` of the section say why.
        average: Mean gain in points, or None likewise.
        ledger: Every task's gain.
    """

    method: str
    delta: DeltaM | None
    average: AverageGain | None
    ledger: Ledger


@dataclass(frozen=True)
class Section:
    """Outcomes that can be compared with each other: one number of examples a task.

    Args:
        examples: That number, or None where the outcomes do not differ in it.
        baseline: The single-task results, or None where they were not measured.
        measures: Tasks and metrics.
        methods: All methods, the baseline first.
        means: Mean over seeds by method and measure; None where it was not measured.
        better: `higher` or `lower` by measure.
        saturated: Measures that every method solves; Δm leaves them out.
        summaries: The methods against the baseline.
        ranks: Mean ranks, best first; empty where methods were measured on different tasks.
        costs: Time and memory over the plain sum's; empty without it.
        gaps: Train-test gaps.
        influences: What each task's data did for the others.
        notes: What the reader has to know.
    """

    examples: int | None
    baseline: str | None
    measures: tuple[Measure, ...]
    methods: tuple[str, ...]
    means: tuple[tuple[Mean | None, ...], ...]
    better: tuple[str, ...]
    saturated: tuple[Measure, ...]
    summaries: tuple[MethodSummary, ...]
    ranks: tuple[Rank, ...]
    costs: tuple[CostRatio, ...]
    gaps: tuple[TrainTestGap, ...]
    influences: tuple[Influence, ...]
    notes: tuple[str, ...]


def summarise(
    outcomes: Sequence[Outcome],
    *,
    baseline: str = BASELINE,
    reference: str = REFERENCE,
    drop: bool = False,
    level: float = 0.95,
    kind: Kind = "student",
) -> list[Section]:
    """Summarise outcomes; where tasks were measured with several numbers of examples, a section for each.

    Args:
        outcomes: Any order.
        baseline: The method that is the single-task result.
        reference: The method whose cost is 1.
        drop: Give Δm as a drop.
        level: Coverage of the intervals.
        kind: See `Interval`.

    Raises:
        InputError: If there is no outcome, or one occurs twice.
    """
    if not outcomes:
        raise InputError("A summary needs at least one outcome. Found none. Measure a task first.")
    return [
        _section(size, held, baseline, reference, drop=drop, level=level, kind=kind)
        for size, held in _by_size(outcomes)
    ]


def _by_size(outcomes: Sequence[Outcome]) -> list[tuple[int | None, list[Outcome]]]:
    """Apart by number of examples, but only where one run was done with several: tasks may have sizes of their own."""
    sizes: dict[tuple[object, ...], set[int | None]] = {}
    for one in outcomes:
        key = (one.task, one.method, one.seed, one.metric, one.left_out)
        sizes.setdefault(key, set()).add(one.examples)
    if all(len(found) == 1 for found in sizes.values()):
        return [(None, list(outcomes))]
    order = sorted({one.examples for one in outcomes}, key=lambda size: -1 if size is None else size)
    return [(size, [one for one in outcomes if one.examples == size]) for size in order]


def _section(
    size: int | None,
    outcomes: Sequence[Outcome],
    baseline: str,
    reference: str,
    *,
    drop: bool,
    level: float,
    kind: Kind,
) -> Section:
    notes: list[str] = []
    whole = [one for one in outcomes if one.left_out is None]
    table = OutcomeTable(whole or outcomes)
    held = baseline if baseline in table.methods else None
    methods = tuple(sorted(table.methods, key=lambda name: (name != held, name)))
    full = saturated(table, methods)
    if held is None:
        notes.append(f"no outcome of the baseline `{baseline}`: neither Δm nor harm can be told")
    if full:
        listed = ", ".join(f"{one.task} {one.metric}" for one in full)
        notes.append(f"saturated, every method is at the largest value, left out of Δm: {listed}")
    summaries: list[MethodSummary] = []
    for name in methods:
        if held is not None and name != held:
            summaries.append(_against(table, name, held, full, notes, drop=drop, level=level, kind=kind))
    costs = cost_ratios(table, reference) if reference in table.methods else []
    return Section(
        examples=size,
        baseline=held,
        measures=table.measures,
        methods=methods,
        means=tuple(
            tuple(table.mean(measure, name) if table.seeds(measure, name) else None for measure in table.measures)
            for name in methods
        ),
        better=tuple("higher" if table.sign(measure) > 0 else "lower" for measure in table.measures),
        saturated=full,
        summaries=tuple(summaries),
        ranks=_ranks(table, notes),
        costs=tuple(one for one in costs if one.seconds is not None or one.peak_bytes is not None),
        gaps=tuple(train_test_gaps(table)),
        influences=tuple(_influences(outcomes, methods, notes, level, kind)),
        notes=(*notes, *_seed_notes(table)),
    )


def _against(
    table: OutcomeTable,
    method: str,
    baseline: str,
    full: tuple[Measure, ...],
    notes: list[str],
    *,
    drop: bool,
    level: float,
    kind: Kind,
) -> MethodSummary:
    try:
        found = ledger(table, method, baseline, level=level, kind=kind)
    except InputError as error:
        notes.append(f"{method}: {error}")
        found = Ledger(method, baseline, (), level, table.measures_of(baseline))
    delta, average = None, None
    try:
        delta = delta_m(table, method, baseline, leave_out=full, drop=drop, level=level, kind=kind)
    except InputError as error:
        notes.append(f"Δm of {method}: {error}")
    try:
        average = average_gain(table, method, baseline, level=level, kind=kind)
    except InputError as error:
        notes.append(f"average gain of {method}: {error}")
    return MethodSummary(method, delta, average, found)


def _ranks(table: OutcomeTable, notes: list[str]) -> tuple[Rank, ...]:
    if len(table.methods) < 2:
        return ()
    try:
        return tuple(mean_rank(table))
    except InputError as error:
        notes.append(f"ranks: {error}")
        return ()


def _influences(
    outcomes: Sequence[Outcome], methods: Sequence[str], notes: list[str], level: float, kind: Kind
) -> list[Influence]:
    found: list[Influence] = []
    for name in methods:
        try:
            found += influences(outcomes, name, level=level, kind=kind)
        except InputError as error:
            notes.append(f"leave one task out, {name}: {error}")
    return found


def _seed_notes(table: OutcomeTable) -> list[str]:
    seeds = [len(found) for one in table.measures for name in table.methods if (found := table.seeds(one, name))]
    if min(seeds) >= ENOUGH_SEEDS:
        return []
    return [f"at least {ENOUGH_SEEDS} seeds are asked for; some means are of {min(seeds)}"]
