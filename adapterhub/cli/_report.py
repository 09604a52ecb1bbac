"""`report`: what multi-task runs gave and who was harmed. `stats`: what a usage log says."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from adapterhub.cli._options import JsonOption
from adapterhub.cli._print import hint, out, print_json
from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.evaluation import Section, Sheet, StepsToTarget, Trace, UsageReport

__all__ = ["report", "stats"]

_TEXTS = frozenset({"task", "metric", "method", "verdict", "left out", "adapter", "signal", ""})


def report(
    runs: Annotated[list[Path], typer.Argument(help="Files of outcomes (JSON lines), or folders of them.")],
    baseline: Annotated[str, typer.Option(help="The method that is the single-task result.")] = "single-task",
    reference: Annotated[str, typer.Option(help="The method whose time and memory are 1.")] = "sum",
    drop: Annotated[bool, typer.Option("--drop", help="Print Δm as a drop: lower is better.")] = False,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    interval: Annotated[
        Literal["student", "percentile"],
        typer.Option(help="Rows drawn again and seeds by Student's t, or seeds and rows drawn again."),
    ] = "student",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json: JsonOption = False,
) -> None:
    """Per task, Δm, ranks, negative transfer, cost: from files of outcomes."""
    from adapterhub.evaluation import (
        Outcome,
        as_markdown,
        read_records,
        section_sheets,
        size_curve,
        size_sheet,
        steps_sheet,
        summarise,
    )

    records = read_records(_files(runs))
    outcomes = [one for one in records if isinstance(one, Outcome)]
    sections = summarise(outcomes, baseline=baseline, reference=reference, drop=drop, level=level, kind=interval)
    points = size_curve(outcomes) if len(sections) > 1 else []
    steps = _steps([one for one in records if not isinstance(one, Outcome)], baseline)
    if json:
        print_json({"sections": [_section_dict(one) for one in sections], "examples": [asdict(p) for p in points],
                    "steps": {name: [asdict(one) for one in found] for name, found in steps.items()}})  # fmt: skip
        return
    sheets = [sheet for section in sections for sheet in section_sheets(section)]
    sheets += [size_sheet(points)] if points else []
    sheets += [replace(steps_sheet(found), title=f"steps to target, {name}") for name, found in steps.items()]
    if markdown:
        typer.echo(as_markdown(sheets), nl=False)
        return
    for sheet in sheets:
        _show(sheet)
    harmed = [f"{m.task} under {s.method}" for one in sections for s in one.summaries for m in s.ledger.harmed]
    hint(f"Harmed: {', '.join(harmed)}." if harmed else "No task's interval lies below zero.")


def stats(
    log: Annotated[Path, typer.Argument(help="A usage log, as adapterhub run --log FILE and `UsageLog` write it.")],
    reference: Annotated[
        Path | None, typer.Option(help="A log from when all was well. Default: the first half of LOG.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Calls, latency, abstentions and input drift from a usage log."""
    from adapterhub.evaluation import usage_report
    from adapterhub.model import read_usage

    found, torn = read_usage(log)
    half = len(found) // 2
    old = read_usage(reference)[0] if reference else found[:half]
    counted = usage_report(found)
    shown = replace(counted, drifts=usage_report(found if reference else found[half:], old).drifts)
    if json:
        print_json(_finite(asdict(shown) | {"torn_lines": torn}))
        return
    _show_usage(shown)
    if torn:
        hint(f"{torn} lines of {log} are torn and were left out.")


def _files(runs: list[Path]) -> list[Path]:
    found = [file for run in runs for file in (sorted(run.glob("*.jsonl")) if run.is_dir() else [run])]
    if not found:
        raise InputError(f"A report reads files of JSON lines. Found none in {', '.join(map(str, runs))}. Name a file.")
    return found


def _steps(traces: list[Trace], baseline: str) -> dict[str, list[StepsToTarget]]:
    """By metric, the steps until each run is as good as the baseline ends."""
    from adapterhub.evaluation import better_of, final_values, steps_to_target

    found: dict[str, list[StepsToTarget]] = {}
    for name in sorted({one.name for one in traces if one.task}):
        try:
            better_of(name)
        except InputError:
            continue  # a weight or a rate: nothing to reach
        steps = steps_to_target(traces, name, final_values(traces, name, baseline))
        if steps:
            found[name] = steps
    return found


def _section_dict(section: Section) -> dict[str, object]:
    """A section as plain values, with what its properties say."""
    plain = asdict(section)
    for one, found in zip(section.summaries, plain["summaries"], strict=True):
        gains = zip(one.ledger.gains, found["ledger"]["gains"], strict=True)
        for gain, held in gains:
            held |= {"negative_transfer": gain.negative_transfer, "harmed": gain.harmed, "helped": gain.helped}
        if one.delta is not None:
            found["delta"]["convention"] = one.delta.convention
    return plain


def _show(sheet: Sheet) -> None:
    """A table with its title and notes; what the words say is left to the reader's terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in sheet.columns:
        left = heading in _TEXTS
        table.add_column(heading, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    for row in sheet.rows:
        table.add_row(*(f"[red]{cell}[/]" if cell == "harmed" else cell.replace("[", r"\[") for cell in row))
    out.print(f"[bold]{sheet.title}[/]")
    out.print(table)
    for note in sheet.notes:
        out.print(note, style="dim", markup=False)
    out.print()


def _show_usage(found: UsageReport) -> None:
    from adapterhub.evaluation import Sheet

    rate = "–" if found.abstain_rate is None else f"{found.abstain_rate:.1%}"
    rows = tuple(
        (one.name or "(base alone)", str(one.calls), f"{one.share:.1%}", f"{1000 * one.median_seconds:.1f}",
         f"{1000 * one.p95_seconds:.1f}")
        for one in found.adapters
    )  # fmt: skip
    title = f"{found.calls} texts, {found.routed} of them routed; no adapter fitted {rate} of these"
    _show(Sheet(title, ("adapter", "calls", "share", "median ms", "95 % ms"), rows))
    drifts = tuple(
        (one.signal, one.adapter or "(all)", f"{one.psi:.3f}", f"{one.bound:.3f}", _number(one.z), _number(one.moved),
         "shifted" if one.flagged else "–")
        for one in found.drifts
    )  # fmt: skip
    if not drifts:
        hint("Too few texts to tell drift: 30 are needed in the reference and after it.")
        return
    heads = ("signal", "adapter", "PSI", "bound", "z", "moved, sd", "verdict")
    _show(Sheet("inputs against the reference", heads, drifts))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _finite(value: object) -> object:
    """JSON has no infinities: where a constant signal has moved, z is null."""
    if isinstance(value, dict):
        return {name: _finite(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
