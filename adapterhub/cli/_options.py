"""Options that several commands share, and what they open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["JsonOption", "MaxStealOption", "RegistryOption", "YesOption", "new_registry", "open_registry"]

RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        "-r",
        envvar="ADAPTERHUB_REGISTRY",
        help="Folder of cards, sqlite:///FILE or postgresql://…. Default: ./registry if it holds cards, else the "
        "bundled registry.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
MaxStealOption = Annotated[
    float,
    typer.Option(
        "--max-steal",
        min=0,
        max=1,
        help="Refuse a task that would take more than this share of another one's texts; 1 does not look.",
    ),
]

_SQLITE = "sqlite:///"


def open_registry(place: str | None) -> Registry:
    """The registry that the options name.

    Raises:
        InputError: If there is none.
    """
    from adapterhub.registry import bundled_registry

    if place is None:
        local = Path("registry")
        place = str(local if _has_cards(local) else bundled_registry())
    create = "Give --registry, or create it with: adapterhub new GROUP/TASK --registry"
    if place.startswith(_SQLITE) and not Path(place.removeprefix(_SQLITE)).is_file():
        raise InputError(
            f"A registry is made before it is read. Found no file {place.removeprefix(_SQLITE)!r}. {create} {place}"
        )
    if "://" not in place and not Path(place).is_dir():
        raise InputError(f"A registry is a folder of cards. Found no folder {os.fspath(place)!r}. {create} FOLDER")
    return new_registry(place)


def new_registry(place: str | None) -> Registry:
    """The registry that the options name, which may not be there yet; by default `./registry`."""
    from adapterhub.registry import Registry

    return Registry(place or "registry")


def _has_cards(folder: Path) -> bool:
    """Whether a folder is a registry: a group's file at its root, or a card anywhere below."""
    return (folder / "_group.yaml").is_file() or next(folder.rglob("task.yaml"), None) is not None
