"""`import`, `export`, `reindex`, `fsck`: a registry as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapterhub.cli._options import JsonOption, MaxStealOption, RegistryOption, new_registry, open_registry
from adapterhub.cli._print import err, hint, out, print_json
from adapterhub.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from adapterhub.registry import Registry
    from adapterhub.task import Task

__all__ = ["export_command", "fsck", "import_command", "reindex"]

VectorsOption = Annotated[
    Path | None, typer.Option(help="safetensors file with what an encoder hears of each line, row i for line i.")
]


def import_command(
    tasks: Annotated[Path, typer.Argument(help="One JSON object a line: name, the card's fields.")],
    into: Annotated[
        str | None, typer.Option("--into", help="The registry, as -r; it is made if it is not there.")
    ] = None,
    vectors: VectorsOption = None,
    adapters: Annotated[
        Path | None, typer.Option(help="Folder with <task>/v<N>. Default: <stem>.adapters beside the file.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace tasks that are there with another card.")] = False,
    guard: Annotated[
        bool, typer.Option("--guard", help="Hold every task against those that are there, as add does; slow.")
    ] = False,
    max_steal: MaxStealOption = 0.02,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Import many tasks: all lines are checked first, and nothing is imported if one is wrong."""
    from adapterhub.registry import import_tasks

    if not tasks.is_file():
        raise InputError(f"Tasks are imported from a file. Found no file {tasks}. Check the path.")
    target = new_registry(into or registry)
    look = _look(target, max_steal) if guard else None
    with _bar() as progress:
        bars = {
            "check": progress.add_task("checking", total=None),
            "import": progress.add_task("importing", total=None, start=False),
        }

        def step(what: str, done: int, size: int) -> None:
            progress.start_task(bars[what])
            progress.update(bars[what], advance=done / 1e6, total=size / 1e6)

        done = import_tasks(
            target, tasks, vectors=vectors, adapters=adapters, replace=replace, progress=step, guard=look
        )
    if json:
        print_json({"registry": target.place, **asdict(done)})
    else:
        out.print(f"{done.added:,} added, {done.replaced:,} replaced, {done.same:,} there already", markup=False)
    hint(f"Next: adapterhub ls -r {target.place}")


def export_command(
    target: Annotated[Path, typer.Argument(help="A file …jsonl, or a new folder for cards.")],
    vectors: VectorsOption = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Export all tasks with their versions and adapters, the retired ones among them."""
    from adapterhub.registry import export_tasks

    tasks = open_registry(registry)
    with _bar() as progress:
        bar = progress.add_task("exporting", total=len(tasks))
        done = export_tasks(tasks, target, vectors=vectors, progress=lambda count: progress.advance(bar, count))
    if json:
        print_json({"target": str(target), **asdict(done)})
    else:
        out.print(str(target), markup=False, soft_wrap=True)
    heard = f", {done.heard:,} of them with vectors" if vectors is not None else ""
    hint(f"{done.tasks:,} tasks{heard}; {done.adapters:,} adapters copied")
    command = f"ls -r {target}" if target.is_dir() else f"import {target} --into sqlite:///tasks.db"
    hint(f"Next: adapterhub {command}")


def reindex(
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="Folder or id of a sentence-transformers model. Default: all-MiniLM."),
    ] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Encode every task with an encoder; interrupted, the same command goes on where it was."""
    tasks = open_registry(registry)
    from adapterhub.encoder import SentenceEncoder

    chosen = SentenceEncoder() if encoder is None else SentenceEncoder(encoder)
    with _bar() as progress:
        total = len(tasks)
        bar = progress.add_task("encoding", total=total)
        count = tasks.reindex(chosen, lambda done: progress.advance(bar, done))
    if json:
        print_json({"registry": tasks.place, "encoder": chosen.fingerprint, "tasks": count})
    else:
        out.print(chosen.fingerprint, markup=False, soft_wrap=True)
    hint(f"{count:,} tasks are heard by this encoder. Next: adapterhub route TEXT -r {tasks.place}")


def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Look for every fault of cards, rows, adapters and indexes; repair what can be repaired, name the rest."""
    tasks = open_registry(registry)
    done = tasks.repair() if repair else []
    faults = tasks.verify()
    if json:
        print_json({"registry": tasks.place, "repaired": done, "faults": faults})
    else:
        for line in done:
            hint(f"repaired: {line}")
        for line in faults:
            out.print(line, markup=False, soft_wrap=True)
    if faults:
        remedy = "Mend or remove what is named." if repair else "See what `adapterhub fsck --repair` can do."
        raise IntegrityError(f"A registry has no faults. Found {len(faults):,}, listed above. {remedy}")
    hint(f"{len(tasks):,} tasks, no faults")


def _look(registry: Registry, max_steal: float) -> Callable[[Sequence[Task]], None]:
    from adapterhub.cli._guard import Guard

    one = Guard(registry, max_steal)

    def look(tasks: Sequence[Task]) -> None:
        for task in tasks:
            one.look(task)

    return look


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
