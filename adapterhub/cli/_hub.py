"""`push` and `pull`: a task folder to and from the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli._options import RegistryOption, open_registry
from adapterhub.cli._print import hint, out
from adapterhub.errors import InputError

__all__ = ["pull_command", "push_command"]


def push_command(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: org/name")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Push a task to the Hub: its adapter as plain PEFT files, its card, a model card."""
    from adapterhub.registry import push_task

    url = push_task(open_registry(registry), name, repo_id, private=private)
    out.print(url, markup=False, soft_wrap=True)
    hint(f"Next: adapterhub pull {url}")


def pull_command(
    url: Annotated[
        str, typer.Argument(help="hf://org/repo/language/grammar, with @<commit> behind the repo to pin it")
    ],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name here. Default: the path in the repository.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hub id. Default: what the card or the group names.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a new version of a task that exists.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Pull a task from the Hub, check it against the base, and register it."""
    from adapterhub.cli._adopt import checked_adapter, on_base, read_loose_card
    from adapterhub.hub import parse_url, pull
    from adapterhub.task import check_name

    place = parse_url(url)
    if not (name or place.path):
        raise InputError(f"A task has a name. Found no path in {url} to take it from. Give --name GROUP/TASK.")
    check_name(name or place.path)
    tasks = open_registry(registry)
    with tempfile.TemporaryDirectory(prefix="adapterhub-pull-") as temporary:
        folder = Path(temporary) / "task"
        commit = pull(place.repo_id, path_in_repo=place.path, revision=place.revision or "main", into=folder)
        task = on_base(tasks, read_loose_card(tasks, folder, name or place.path), base)
        with checked_adapter(tasks, task, folder) as sealed:
            stored = tasks.add(task, sealed, replace=replace)
    out.print(stored.name, markup=False)
    hint(f'Pinned at {commit}. Next: adapterhub run -t {stored.name} "…"')
