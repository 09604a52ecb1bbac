"""Cards and adapters that come from outside: read, checked against the base, sealed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterhub.errors import InputError
from adapterhub.registry import Registry
from adapterhub.task import CARD, Task, read_card

__all__ = ["checked_adapter", "read_loose_card"]

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json")


def read_loose_card(registry: Registry, path: Path, name: str) -> Task:
    """Read a card that lies outside the registry as if it stood there under `name`, groups included.

    Args:
        registry: Where the task will go.
        path: The card, or a folder that holds a `task.yaml`.
        name: Name of the task in the registry.

    Raises:
        InputError: If there is no card.
        CardError: If the card breaks its rules.
    """
    card = path / CARD if path.is_dir() else path
    if not card.is_file():
        raise InputError(f"A task comes with a card. Found no file {card}. Write one with: adapterhub new")
    with tempfile.TemporaryDirectory(prefix="adapterhub-card-") as temporary:
        root = Path(temporary)
        for group in (registry.root, *(registry.root / part for part in _parents(name))):
            if (group / "_group.yaml").is_file():
                copy = root / group.relative_to(registry.root) / "_group.yaml"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(group / "_group.yaml", copy)
        target = root / name / CARD
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(card, target)
        task = read_card(root, name)
    # The place and the hash of an adapter belong to the registry that the card came from.
    return Task.from_dict(name, {k: v for k, v in task.to_dict().items() if k not in ("adapter", "sha256")})


@contextmanager
def checked_adapter(registry: Registry, task: Task, folder: Path | None, base: str | None) -> Iterator[Path | None]:
    """A copy of an adapter that fits the task's base, sealed and ready to register.

    Args:
        registry: Where the task will go.
        task: Its card.
        folder: PEFT folder of the adapter, or None.
        base: Base model, by default the card's.

    Raises:
        IncompatibleAdapterError: If the adapter does not fit the base; every mismatch is listed.
        IntegrityError: If its bytes are not what its note says.
    """
    if folder is None:
        yield None
        return
    from adapterhub.adapter import describe_base, read_adapter, seal
    from adapterhub.model import load_base
    from adapterhub.training import base_id

    place = base or _base_of(registry, task)
    model, _ = load_base(place)
    signature = describe_base(model, base_id(place))
    read_adapter(folder, signature, adopt=not (folder / "adapterhub.json").is_file())
    with tempfile.TemporaryDirectory(prefix="adapterhub-adapter-") as temporary:
        copy = Path(temporary) / "adapter"
        copy.mkdir()
        for file in ADAPTER_FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, copy / file)
        seal(copy, signature)
        yield copy


def _base_of(registry: Registry, task: Task) -> str:
    """The base that a card names, a folder beside the registry's root first."""
    if not task.base_model:
        raise InputError(f"An adapter is checked against its base model. {task.name} names none. Give --base.")
    beside = registry.root / task.base_model
    return str(beside) if beside.is_dir() else task.base_model


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
