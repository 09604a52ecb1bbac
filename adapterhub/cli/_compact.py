"""`prune`: an adapter with smaller ranks, or as int8, and what that costs."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import hint, out, print_json
from adapterhub.cli._run import Told
from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.adapter import Quantisation, Truncation
    from adapterhub.evaluation import EvaluationRow, TaskReport
    from adapterhub.registry import Registry

__all__ = ["prune"]


def prune(
    name: Annotated[str, typer.Argument(help="Name of a task whose adapter is LoRA.")],
    rank: Annotated[int | None, typer.Option(help="The largest rank at every module.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead of a rank: the share of ‖ΔW‖² to keep at every module, up to 1.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write it as int8, for readers here; with --out, and with or without ranks.")
    ] = False,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Rows to measure on, before and after.")] = None,
    limit: Annotated[int | None, typer.Option(help="Measure on at most so many rows.")] = None,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to make, instead of a new version of the task.")
    ] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Cut an adapter's ranks by singular values and register it as a new version; say what is saved and lost."""
    _check(rank, energy, int8, data, target)
    tasks = open_registry(registry)
    task, folder = tasks[name], tasks.adapter_path(name)
    if folder is None:
        raise InputError(f"What is pruned is an adapter. {name} has none. Train it: adapterhub train {name}")

    from adapterhub.adapter import describe_base, quantise, truncate_rank
    from adapterhub.model import load_base
    from adapterhub.training import base_id

    place = tasks.base_path(name)
    base = describe_base(load_base(place)[0], base_id(place))
    rows = _rows(tasks, name, data, limit)
    kept = rank if rank is not None else energy
    before = after = None
    with tempfile.TemporaryDirectory(prefix="adapterhub-prune-") as temporary:
        cut, made = folder, None
        if kept is not None:
            cut = Path(temporary) / "cut" if int8 or target is None else target
            made = truncate_rank(folder, base, cut, rank=kept)
        small = quantise(cut, base, target) if int8 and target is not None else None
        if target is None:
            before = _measure(tasks, name, rows)
            tasks.add(replace(task, adapter=None, sha256=None, metrics={}), cut, replace=True)
            after = _measure(tasks, name, rows)
            if after is not None:
                tasks.add(replace(tasks[name], metrics=dict(after.metrics)), replace=True)
    where = str(target) if target is not None else str(tasks.adapter_path(name))
    _tell(name, where, made, small, (before, after), json=json)
    if target is not None:
        hint(f"Next: adapterhub add CARD --name {name} -a {target} --replace")
    elif after is None:
        hint(f"What was measured of the older version no longer stands. Next: adapterhub eval {name}")


def _check(rank: int | None, energy: float | None, int8: bool, data: Path | None, target: Path | None) -> None:
    faults = []
    if rank is not None and energy is not None:
        faults.append("A rank or a share of energy is kept. Found both. Give --rank 4 or --energy 0.99.")
    if rank is None and energy is None and not int8:
        faults.append("A rank or a share of energy is kept. Found neither. Give --rank 4 or --energy 0.99.")
    if int8 and target is None:
        faults.append("int8 is a form for sending and keeping, which PEFT does not load. Give --out FOLDER.")
    if data is not None and target is not None:
        faults.append("A task is measured with its versions. Found --data with --out. Leave one of them out.")
    if faults:
        raise InputError("\n".join(faults))


def _rows(tasks: Registry, name: str, data: Path | None, limit: int | None) -> list[EvaluationRow]:
    if data is None:
        return []
    from adapterhub.evaluation import read_evaluation_rows

    rows = read_evaluation_rows(data, tasks[name], limit)
    if not rows:
        raise InputError(f"A task is measured on rows that are no examples of its card. Found none in {data}.")
    return rows


def _measure(tasks: Registry, name: str, rows: list[EvaluationRow]) -> TaskReport | None:
    if not rows:
        return None
    from adapterhub.evaluation import evaluate
    from adapterhub.model import RoutedModel

    model = RoutedModel.from_pretrained(tasks.base_path(name), tasks, router=Told(name))
    return evaluate(model, {name: rows})[0]


def _tell(
    name: str,
    where: str,
    made: Truncation | None,
    small: Quantisation | None,
    measured: tuple[TaskReport | None, TaskReport | None],
    *,
    json: bool,
) -> None:
    first, last = made or small, small or made
    assert first is not None
    assert last is not None
    before, after = measured
    if json:
        fields: dict[str, object] = {"task": name, "folder": where, "sha256": last.sha256}
        fields |= {"bytes_before": first.before, "bytes_after": last.after}
        if made is not None:
            modules = {module: asdict(loss) for module, loss in made.modules.items()}
            fields |= {"rank": made.rank, "error": made.error, "modules": modules}
        if small is not None:
            fields["int8_error"] = small.error
        if before is not None and after is not None:
            fields |= {"metric": before.metric, "rows": before.rows, "before": before.own, "after": after.own}
        print_json(fields)
    else:
        out.print(where, markup=False, soft_wrap=True)
    hint(f"{first.before:,} bytes before, {last.after:,} now: {last.after / first.before:.0%}")
    if made is not None:
        worst, loss = max(made.modules.items(), key=lambda item: item[1].lost)
        hint(f"rank {made.rank}: {made.error:.2%} of ΔW is lost, most at {worst} (rank {loss.before} to {loss.rank})")
    if small is not None:
        hint(f"int8: the values are {small.error:.2%} off")
    if before is not None and after is not None:
        hint(f"{before.metric} {before.own:.3f} before, {after.own:.3f} now, on {before.rows} rows")
