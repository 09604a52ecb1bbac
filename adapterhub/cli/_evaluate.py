"""`eval`: base, own adapter and routed, for every task."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import err, hint, out, print_json
from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.evaluation import EvaluationRow, Outcome, TaskReport
    from adapterhub.model import RoutedModel
    from adapterhub.registry import Registry
    from adapterhub.task import Task

__all__ = ["evaluate_command"]

_BATCH = 32


def evaluate_command(
    tasks: Annotated[list[str] | None, typer.Argument(help="Names of tasks. Default: all that have rows.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with <task>/test.jsonl. Default: eval.jsonl beside each card.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many rows a task.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="File of outcomes to append the own adapters' rows to, for adapterhub report.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="With --record: how they were trained; single-task is what others are held to.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --record: seed of the training run.")] = 0,
    left_out: Annotated[
        str | None, typer.Option(help="With --record: the task whose rows the training run did without.")
    ] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Measure every task: bare base, own adapter, routed; routing accuracy; negative transfer."""
    from adapterhub.evaluation import evaluate, write_records
    from adapterhub.model import RoutedModel

    if (record is None) != (method is None):
        raise InputError("An outcome is recorded under its method. Found one of --record and --method. Give both.")
    known = open_registry(registry)
    rows = _rows(known, tasks or [], data, limit)
    model = RoutedModel.from_pretrained(registry=known)
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("rows", total=sum(map(len, rows.values())))
        reports = evaluate(model, rows, lambda done: progress.advance(bar, done))
    if record is not None and method is not None:
        found = [_outcome(model, known[name], rows[name], method, seed, left_out) for name in sorted(rows)]
        write_records(record, found, append=True)
    _show(reports, json=json)
    if record is not None:
        hint(f"{len(rows)} outcomes under {method}, seed {seed}. Next: adapterhub report {record}")


def _rows(known: Registry, names: list[str], data: Path | None, limit: int | None) -> dict[str, list[EvaluationRow]]:
    """The rows of each task; of the named ones all must be there."""
    from adapterhub.evaluation import read_evaluation_rows

    found, missing = {}, []
    for name in names or sorted(known):
        path = data / name / "test.jsonl" if data else known.root / name / "eval.jsonl"
        task = known[name]
        ready = path.is_file() and task.adapter is not None
        rows = read_evaluation_rows(path, task, limit) if ready else []
        if rows:
            found[name] = rows
        elif names or ready:
            reason = "no row that is no example" if ready else "no adapter" if path.is_file() else f"no file {path}"
            missing.append(f"{name}: {reason}")
    if missing or not found:
        listed = "; ".join(missing) or "none"
        raise InputError(
            f"A task is evaluated on rows of its own and has an adapter. Found {listed}. Give --data FOLDER."
        )
    return found


def _outcome(
    model: RoutedModel, task: Task, rows: list[EvaluationRow], method: str, seed: int, left_out: str | None
) -> Outcome:
    """What the task's own adapter gives, row by row."""
    from adapterhub.evaluation import MAIN_METRIC, Outcome, aligned_tags, row_scores

    answers: list[object] = []
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        told = model.predictions([row.text for row in batch], [task.name] * len(batch))
        for row, one in zip(batch, told, strict=True):
            tags = task.head == "token-classification"
            answers.append(aligned_tags(row, one.predictions) if tags else one.predictions[0])
    numbers, weights = row_scores(task.head, answers, [row.reference for row in rows])
    total = math.fsum(weights)
    value = math.fsum(numbers) / total if total else 0.0
    return Outcome(task.name, method, seed, MAIN_METRIC[task.head], value, numbers, weights, left_out=left_out)


def _show(reports: list[TaskReport], *, json: bool) -> None:
    total = sum(r.rows for r in reports)
    routing = sum(r.routing * r.rows for r in reports) / total
    if json:
        print_json(
            {"tasks": [asdict(r) | {"margin": r.margin} for r in reports], "routing_accuracy": routing, "rows": total}
        )
        return
    out.print(_table(reports))
    out.print(f"routing accuracy {routing:.1%} on {total} inputs that are not among the cards' examples")


def _table(reports: list[TaskReport]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "rows", "metric", "base", "own", "margin", "routed", "routing", "negative transfer"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right", no_wrap=True)
    for r in reports:
        margin = f"[{'green' if r.margin > 0 else 'red'}]{r.margin:+.3f}[/]"
        cells = (r.task, str(r.rows), r.metric, f"{r.base:.3f}", f"{r.own:.3f}", margin, f"{r.routed:.3f}")
        table.add_row(*cells, f"{r.routing:.1%}", f"{r.negative_transfer:.1%}")
    return table
