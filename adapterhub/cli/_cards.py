"""`ls`, `info`, `new`, `check`, `add`, `retire`, `restore`, `rm`: the tasks of a registry, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

from adapterhub.cli._guard import guard
from adapterhub.cli._options import (
    JsonOption,
    MaxStealOption,
    RegistryOption,
    YesOption,
    new_registry,
    open_registry,
)
from adapterhub.cli._print import err, hint, out, print_json, print_rows
from adapterhub.cli._tree import MANY, group_tree, task_tree
from adapterhub.errors import CardError, InputError, IntegrityError, TaskNotFoundError

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["add", "check", "info", "ls", "new", "restore", "retire", "rm"]

Name = Annotated[str, typer.Argument(help="Name of a task: language/grammar")]


def ls(
    prefix: Annotated[str, typer.Argument(help="Only tasks below this group.")] = "",
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="Only groups with their counts, so many levels. Default: 1 for a large registry."),
    ] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """List the tasks as a tree; of a large registry the groups with the number of their tasks."""
    tasks = open_registry(registry)
    found = tasks.tasks(prefix)  # an unknown branch is told first
    if json and depth is None:
        print_rows({"name": t.name, "head": t.head, "adapter": t.adapter} for t in found)
        return
    if json:
        print_rows({"name": name, "tasks": count} for name, count in tasks.groups(prefix))
        return
    many = tasks.catalog.count(prefix) > MANY if len(tasks) > MANY else False
    out.print(group_tree(tasks, prefix, depth or 1) if many or depth else task_tree(tasks, prefix))
    if many and not depth:
        hint("Next: adapterhub ls GROUP, or --depth 2; --json lists every task")


def info(name: Name, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """Show a task: its card, its versions, what was measured."""
    tasks = open_registry(registry)
    task = tasks[name]
    fields = {"name": task.name, **task.to_dict(), "versions": tasks.versions(name)}
    if json:
        print_json(fields)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in fields.items():
        shown = "\n".join(f"{v}" for v in value) if isinstance(value, (list, tuple)) else f"{value}"
        table.add_row(key, escape(shown))
    out.print(table)


def new(
    name: Name,
    description: Annotated[str, typer.Option("--description", "-d", help="What the task does, in one sentence.")],
    example: Annotated[
        list[str] | None, typer.Option("--example", "-e", help="An input it should answer; repeat it.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Template of the input; {text} stands for the text.")] = "{text}\n=>",
    head: Annotated[
        str, typer.Option(help="generation, classification, token-classification or regression.")
    ] = "generation",
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="A label of a classifying head; repeat it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hub id. Default: what the group names.")
    ] = None,
    max_steal: MaxStealOption = 0.02,
    registry: RegistryOption = None,
) -> None:
    """Write the card of a new task."""
    from adapterhub.cli._adopt import new_card, on_base

    tasks = new_registry(registry)
    fields: dict[str, object] = {"description": description, "prompt": prompt, "head": head}
    fields |= {"examples": example} if example else {}
    fields |= {"labels": label} if label else {}
    task = on_base(tasks, new_card(tasks, name, fields), base)
    if name not in tasks:
        guard(tasks, task, max_steal)
    task = tasks.add(task)
    database = "://" in tasks.place
    out.print(name if database else str(tasks.root / name / "task.yaml"), markup=False, soft_wrap=True)
    if not task.base_model:
        where = "give --base" if database else f"`base_model` in the card or in {tasks.root / '_group.yaml'}"
        hint(f"Its base model is still to be named: {where}.")
    hint(f"Next: adapterhub train {name} --data rows.jsonl")


def check(
    registry: RegistryOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a card and stop.")] = False,
    json: JsonOption = False,
) -> None:
    """Check every card, every adapter's hash and what stacks stand on; list all faults."""
    if schema:
        from adapterhub.task import card_schema

        print_json(card_schema())
        return
    tasks = open_registry(registry)
    faults = tasks.verify()
    if json:
        print_json({"registry": tasks.place, "faults": faults})
    elif faults:
        out.print("\n".join(faults), markup=False, soft_wrap=True)
    if faults:
        raise IntegrityError(
            f"A registry has no faults. Found {len(faults)}, listed above. Mend or remove what is named."
        )
    hint(f"{len(tasks)} tasks, no faults")


def add(
    card: Annotated[Path, typer.Argument(help="A task.yaml, or a folder that holds one.")],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the task: language/grammar")],
    adapter: Annotated[Path | None, typer.Option("--adapter", "-a", help="PEFT folder of the adapter.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hub id. Default: what the card or the group names.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a new version of a task that exists.")] = False,
    max_steal: MaxStealOption = 0.02,
    registry: RegistryOption = None,
) -> None:
    """Register a task from its card and, if there is one, its adapter."""
    from adapterhub.cli._adopt import checked_adapter, on_base, read_loose_card

    tasks = open_registry(registry)
    task = on_base(tasks, read_loose_card(tasks, card, name), base)
    with checked_adapter(tasks, task, adapter) as sealed:
        if replace or name not in tasks:
            guard(tasks, task, max_steal)
        stored = tasks.add(task, sealed, replace=replace)
    out.print(stored.name, markup=False)
    hint(
        f'Next: adapterhub run -t {name} "…"' if stored.adapter else f"Next: adapterhub train {name} --data rows.jsonl"
    )


def retire(name: Name, registry: RegistryOption = None) -> None:
    """Keep a task with all its versions, but neither list it nor route to it any more."""
    open_registry(registry).retire(name)
    hint(f"retired {name}. Undo: adapterhub restore {name}")


def restore(name: Name, registry: RegistryOption = None) -> None:
    """Make a retired task active again."""
    open_registry(registry).restore(name)
    hint(f'restored {name}. Next: adapterhub run -t {name} "…"')


def rm(name: Name, registry: RegistryOption = None, yes: YesOption = False) -> None:
    """Remove a task, its card and all versions of its adapter."""
    tasks = open_registry(registry)
    versions = tasks.versions(name)
    standing = _standing_on(tasks, name)
    if standing:
        shown = ", ".join(standing[:5]) + (", …" if len(standing) > 5 else "")
        said = f"{len(standing)} task(s) stand on its adapter and do not answer without it: {shown}"
        err.print(said, markup=False, soft_wrap=True)
    if not yes:
        err.print(f"This removes {name} with {len(versions)} adapter version(s) from {tasks.place}.", markup=False)
        if not Confirm.ask("Remove it?", console=err, default=False):
            raise InputError(f"{name} was not removed. Give -y to remove without asking.")
    tasks.remove(name)
    hint(f"removed {name}")


def _standing_on(tasks: Registry, name: str) -> list[str]:
    """The tasks below a group that were trained on top of its adapter."""
    try:
        return [task.name for task in tasks.tasks(name) if name in task.stack]
    except (TaskNotFoundError, CardError):  # a retired task with nothing below it, or a wrong card, which may go too
        return []
