"""Summaries as tables of text, and these as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapterhub.evaluation._bootstrap import Interval
from adapterhub.evaluation._curves import CostRatio, SizePoint, StepsToTarget
from adapterhub.evaluation._gain import Gain
from adapterhub.evaluation._summary import MethodSummary, Section
from adapterhub.evaluation._table import Mean

__all__ = ["Sheet", "as_markdown", "section_sheets", "size_sheet", "steps_sheet"]

NOTHING = "–"
T = TypeVar("T")


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Args:
        title: What it shows.
        columns: Headings.
        rows: As many cells each.
        notes: Lines below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Tables one below the other, each with its title and notes.

    Args:
        sheets: The tables.
    """
    parts = []
    for sheet in sheets:
        lines = [f"### {sheet.title}", "", _line(sheet.columns), "|" + "---|" * len(sheet.columns)]
        lines += [_line(row) for row in sheet.rows]
        lines += [""] if sheet.notes else []
        parts.append("\n".join([*lines, *(f"- {note}" for note in sheet.notes)]) + "\n")
    return "\n".join(parts)


def section_sheets(section: Section) -> list[Sheet]:
    """The tables of a section: tasks, methods, ledger, train-test gaps, influences; those that have a row.

    Args:
        section: What was summarised.
    """
    at = "" if section.examples is None else f", {section.examples} examples a task"
    sheets = [
        _task_sheet(section, at),
        _method_sheet(section, at),
        _ledger_sheet(section, at),
        _gap_sheet(section, at),
        _influence_sheet(section, at),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def size_sheet(points: Sequence[SizePoint]) -> Sheet:
    """Value against number of examples: a row for each task and method, a column for each number.

    Args:
        points: Of `size_curve`.
    """
    sizes = sorted({one.examples for one in points})
    cells = {(one.measure, one.method, one.examples): str(one.value) for one in points}
    lines = sorted({(measure, method) for measure, method, _ in cells})
    rows = [
        (measure.task, measure.metric, method, *(cells.get((measure, method, size), NOTHING) for size in sizes))
        for measure, method in lines
    ]
    return Sheet("value against examples", ("task", "metric", "method", *map(str, sizes)), tuple(rows))


def steps_sheet(found: Sequence[StepsToTarget]) -> Sheet:
    """Steps until a target was reached.

    Args:
        found: Of `steps_to_target`.
    """
    rows = [
        (
            one.task,
            one.method,
            f"{one.target:.3f}",
            NOTHING if one.median is None else f"{one.median:g}",
            f"{one.reached} of {one.runs}",
        )
        for one in found
    ]
    note = "a run that never reached it counts as infinitely many steps"
    return Sheet("steps to target", ("task", "method", "target", "median steps", "runs"), tuple(rows), (note,))


def _task_sheet(section: Section, at: str) -> Sheet:
    rows = []
    for place, measure in enumerate(section.measures):
        arrow = "↑" if section.better[place] == "higher" else "↓"
        means = [_or_nothing(found[place], str) for found in section.means]
        mark = " (saturated)" if measure in section.saturated else ""
        rows.append((measure.task + mark, f"{measure.metric} {arrow}", *means))
    seeds = sorted({mean.seeds for found in section.means for mean in found if mean is not None})
    counted = "–".join(str(end) for end in sorted({seeds[0], seeds[-1]}))
    title = f"per task{at}: mean ± standard deviation over {counted} seed{'s' * (counted != '1')}"
    return Sheet(title, ("task", "metric", *section.methods), tuple(rows), section.notes)


def _method_sheet(section: Section, at: str) -> Sheet:
    ranks = {one.method: f"{one.rank:.2f}" for one in section.ranks}
    costs = {one.method: one for one in section.costs}
    against = {one.method: one for one in section.summaries}
    rows = [
        (name, *_against_cells(against.get(name)), ranks.get(name, NOTHING), *_cost_cells(costs.get(name)))
        for name in section.methods
    ]
    notes = []
    for one in section.summaries[:1]:
        notes += [f"Δm: {one.delta.convention}"] if one.delta else []
        endless = ", ".join(f"{m.task} {m.metric}" for m in one.average.left_out) if one.average else ""
        notes += [f"no average in points with metrics that have no largest value: {endless}"] if endless else []
    if section.costs:
        notes.append(f"time and memory are ratios to `{section.costs[0].reference}`")
    heads = ("method", "Δm %", "average gain, points", "harmed", "helped", "mean rank", "time ÷", "memory ÷")
    return Sheet(f"methods against `{section.baseline or NOTHING}`{at}", heads, tuple(rows), tuple(notes))


def _against_cells(found: MethodSummary | None) -> tuple[str, ...]:
    if found is None:
        return (NOTHING,) * 4
    delta = _or_nothing(found.delta, lambda one: _figure(one.value, one.interval))
    average = _or_nothing(found.average, lambda one: _figure(one.value, one.interval))
    count = len(found.ledger.gains)
    return delta, average, f"{len(found.ledger.harmed)} of {count}", f"{len(found.ledger.helped)} of {count}"


def _cost_cells(found: CostRatio | None) -> tuple[str, str]:
    if found is None:
        return NOTHING, NOTHING
    return _or_nothing(found.seconds, _ratio), _or_nothing(found.peak_bytes, _ratio)


def _ledger_sheet(section: Section, at: str) -> Sheet:
    rows, notes = [], []
    for one in section.summaries:
        rows += [(one.method, *_gain_cells(gain)) for gain in one.ledger.gains]
        if one.ledger.missing:
            notes.append(f"{one.method} lacks {', '.join(f'{m.task} {m.metric}' for m in one.ledger.missing)}")
    shown = next((g.interval for s in section.summaries for g in s.ledger.gains if g.interval), None)
    if shown is not None:
        chance = section.summaries[0].ledger.by_chance
        drawn = "rows drawn again, seeds by Student's t" if shown.kind == "student" else "seeds and rows drawn again"
        rows_too = "test rows" if shown.rows else ""
        over = " and ".join(part for part in (f"{shown.seeds} seeds" * (shown.seeds > 1), rows_too) if part)
        notes.insert(0, f"{shown.level:.0%} paired bootstrap intervals over {over}: {drawn}")
        notes.insert(1, f"harmed: the whole interval is below 0; {chance:.1f} flags a method are expected by chance")
    heads = ("method", "task", "metric", "gain", "interval", "negative transfer", "verdict")
    return Sheet(f"ledger of negative transfer{at}; gain: positive is better", heads, tuple(rows), tuple(notes))


def _gain_cells(one: Gain) -> tuple[str, ...]:
    transfer = _or_nothing(one.negative_transfer, lambda value: f"{value:+.1%}")
    verdict = "harmed" if one.harmed else "helped" if one.helped else NOTHING
    place = _or_nothing(one.interval, str)
    return one.measure.task, one.measure.metric, f"{one.gain:+.3f}", place, transfer, verdict


def _gap_sheet(section: Section, at: str) -> Sheet:
    rows = [(one.measure.task, one.measure.metric, one.method, str(one.gap)) for one in section.gaps]
    return Sheet(f"train-test gap{at}; positive: better on the rows learnt", ("task", "metric", "method", "gap"),
                 tuple(rows))  # fmt: skip


def _influence_sheet(section: Section, at: str) -> Sheet:
    rows = [
        (one.left_out, *_gain_cells(one.gain)[:4], "itself, never seen" if one.unseen else "")
        for one in section.influences
    ]
    heads = ("left out", "task", "metric", "gain from its data", "interval", "")
    return Sheet(f"leave one task out{at}", heads, tuple(rows))


def _figure(value: Mean, where: Interval | None) -> str:
    spread = "" if value.sd is None else f" ± {value.sd:.2f}"
    return f"{value.mean:+.2f}{spread}" + ("" if where is None else f" [{where.low:+.2f}, {where.high:+.2f}]")


def _ratio(value: Mean) -> str:
    return f"{value.mean:.2f}" + ("" if value.sd is None else f" ± {value.sd:.2f}")


def _or_nothing(value: T | None, shown: Callable[[T], str]) -> str:
    return NOTHING if value is None else shown(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
