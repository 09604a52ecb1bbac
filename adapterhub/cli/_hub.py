"""`push` and `pull`: a task folder to and from the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli._options import RegistryOption, open_registry
from adapterhub.cli._print import err, out

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
    err.print(f"[dim]Next: adapterhub pull {url}[/]")


def pull_command(
    url: Annotated[
        str, typer.Argument(help="hf://org/repo/language/grammar, with @<commit> behind the repo to pin it")
    ],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name here. Default: the path in the repository.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model, to check the adapter against: folder or Hub id.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a new version of a task that exists.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Pull a task from the Hub, check it against the base, and register it."""
    from adapterhub.cli._adopt import checked_adapter, read_loose_card
    from adapterhub.hub import parse_url, pull

    place = parse_url(url)
    tasks = open_registry(registry)
    with tempfile.TemporaryDirectory(prefix="adapterhub-pull-") as temporary:
        folder = Path(temporary) / "task"
        commit = pull(place.repo_id, path_in_repo=place.path, revision=place.revision or "main", into=folder)
        task = read_loose_card(tasks, folder, name or place.path)
        with checked_adapter(tasks, task, folder, base) as sealed:
            stored = tasks.add(task, sealed, replace=replace)
    out.print(stored.name, markup=False)
    err.print(f'[dim]pinned at {commit}. Next: adapterhub run -t {stored.name} "…"[/]')
