"""Options that several commands share, and what they open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["JsonOption", "RegistryOption", "YesOption", "open_registry"]

RegistryOption = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        "-r",
        envvar="ADAPTERHUB_REGISTRY",
        help="Folder of cards. Default: ./registry if it holds cards, else the bundled registry.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_registry(folder: Path | None) -> Registry:
    """The registry that the options name.

    Raises:
        InputError: If the folder does not exist.
    """
    from adapterhub.registry import Registry, bundled_registry

    if folder is None:
        local = Path("registry")
        folder = local if _has_cards(local) else bundled_registry()
    if not folder.is_dir():
        raise InputError(
            f"A registry is a folder of cards. Found no folder {os.fspath(folder)!r}. "
            "Give --registry, or create it with: adapterhub new GROUP/TASK --registry FOLDER"
        )
    return Registry(folder)


def _has_cards(folder: Path) -> bool:
    """Whether a folder is a registry: a group's file at its root, or a card anywhere below."""
    return (folder / "_group.yaml").is_file() or next(folder.rglob("task.yaml"), None) is not None
