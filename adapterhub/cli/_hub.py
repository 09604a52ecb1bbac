"""`push` and `pull`: a task folder to and from the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import hint, out, print_json
from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.adapter import Quantisation
    from adapterhub.registry import Registry

__all__ = ["pull_command", "push_command"]


def push_command(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: org/name")],
    dtype: Annotated[
        Literal["int8"] | None,
        typer.Option(
            "--dtype",
            help="int8: a quarter to a third of the bytes, for `adapterhub pull`; PEFT refuses it. Default: as it is.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Push a task to the Hub: its adapter as plain PEFT files or as int8, its card, a model card."""
    from adapterhub.hub import check_repo_id
    from adapterhub.registry import push_task

    tasks = open_registry(registry)
    check_repo_id(repo_id)  # before the seconds that int8 takes
    with tempfile.TemporaryDirectory(prefix="adapterhub-int8-") as temporary:
        small, folder = None, None
        if dtype is not None:
            folder = Path(temporary) / "adapter"
            small = _quantised(tasks, name, folder)
        url = push_task(tasks, name, repo_id, adapter=folder, private=private)
    if json:
        fields: dict[str, object] = {"task": name, "url": url, "dtype": dtype}
        if small is not None:
            fields |= {"sha256": small.sha256, "bytes_before": small.before, "bytes_after": small.after}
            fields["int8_error"] = small.error
        print_json(fields)
    else:
        out.print(url, markup=False, soft_wrap=True)
    _say(tasks, name, repo_id, url, small)


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
    json: JsonOption = False,
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
    if json:
        print_json(
            {"task": stored.name, "commit": commit, "adapter": stored.adapter, "sha256": stored.sha256,
             "stack": list(stored.stack)}
        )  # fmt: skip
    else:
        out.print(stored.name, markup=False)
    hint(f'Pinned at {commit}. Next: adapterhub run -t {stored.name} "…"')


def _quantised(tasks: Registry, name: str, folder: Path) -> Quantisation:
    """A task's adapter as int8 in a new folder."""
    from adapterhub.adapter import describe_base, quantise
    from adapterhub.model import load_base
    from adapterhub.training import base_id

    own = tasks.adapter_path(name)
    if own is None:
        raise InputError(f"What is pushed is an adapter. {name!r} has none. Train it: adapterhub train {name}")
    place = tasks.base_path(name)
    return quantise(own, describe_base(load_base(place)[0], base_id(place)), folder)


def _say(tasks: Registry, name: str, repo_id: str, url: str, small: Quantisation | None) -> None:
    """What int8 saves and costs, what has to travel too, and what to do next."""
    task = tasks[name]
    if small is not None:
        share = small.after / small.before
        hint(f"{small.before:,} bytes before, {small.after:,} now: {share:.0%}; the values are {small.error:.2%} off")
        hint("PEFT refuses int8 files, adapterhub reads them. What was measured before is left out of the card.")
    for below in task.stack:
        hint(f"It stands on {below}, which has to be there first: adapterhub push {below} {repo_id}")
    hint(f"Next: adapterhub pull {url}")
