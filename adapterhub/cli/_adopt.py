"""Cards and adapters that come from outside: read, put on a base of this registry, checked against it, sealed."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adapterhub.errors import InputError
from adapterhub.registry import Registry
from adapterhub.task import CARD, Task, check_name

__all__ = ["checked_adapter", "new_card", "on_base", "read_loose_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json")


def read_loose_card(registry: Registry, path: Path, name: str) -> Task:
    """Read a card that lies outside the registry as if it stood there under `name`, groups included.

    Args:
        registry: Where the task will go.
        path: The card, or a folder that holds a `task.yaml`.
        name: Name of the task in the registry.

    Returns:
        The task, without an adapter in the folder that the card came from; a pinned place on the Hub stays.

    Raises:
        InputError: If there is no card.
        CardError: If the name or the card breaks its rules.
    """
    check_name(name)
    card = path / CARD if path.is_dir() else path
    if not card.is_file():
        raise InputError(f"A task comes with a card. Found no file {card}. Write one with: adapterhub new")
    task = registry.read_outside(name, card)
    pinned = task.adapter is not None and task.adapter.startswith("hf://")
    return task if pinned else replace(task, adapter=None, sha256=None)


def new_card(registry: Registry, name: str, fields: Mapping[str, object]) -> Task:
    """A task of the fields given and of those of its groups that fit its head.

    Args:
        registry: Where the task will go.
        name: Its name.
        fields: What its card says.

    Raises:
        CardError: If the name, a field or a group's file breaks its rules; every fault is listed.
    """
    given = Task.from_dict(name, fields)
    inherited = {key: value for key, value in registry.inherited(given.group).items() if key not in fields}
    if not given.is_generation:
        inherited.pop("max_new_tokens", None)
    if given.head not in ("classification", "token-classification"):
        inherited.pop("labels", None)
    return Task.from_dict(name, {**inherited, **fields})


def on_base(registry: Registry, task: Task, base: str | None) -> Task:
    """The task on a base that this registry can load.

    A card from elsewhere may call by its id the very base that lies in a folder of this registry: then it is that one.

    Args:
        registry: Where the task will go.
        task: Its card.
        base: Folder or Hub id of the base; by default what the card names.

    Raises:
        CardError: If a group's file above the task is wrong.
        InputError: If `base` is neither a folder nor an id.
    """
    own = str(registry.inherited(task.group).get("base_model", ""))
    if base is not None:
        return replace(task, base_model=_in_registry(registry, base))
    if own and task.base_model != own:
        from adapterhub.training import base_id

        if task.base_model in ("", base_id(registry.place_of_base(own))):
            return replace(task, base_model=own)
    return task


@contextmanager
def checked_adapter(registry: Registry, task: Task, folder: Path | None) -> Iterator[Path | None]:
    """A copy of an adapter that fits the task's base, sealed and ready to register.

    Args:
        registry: Where the task will go.
        task: Its card, which names the base.
        folder: PEFT folder of the adapter, or None.

    Raises:
        InputError: If the card names no base, or the base does not load.
        IncompatibleAdapterError: If the adapter does not fit the base; every mismatch is listed.
        IntegrityError: If its bytes are missing, damaged, or not what its note says.
    """
    if folder is None:
        yield None
        return
    if not task.base_model:
        raise InputError(f"An adapter is checked against its base model. {task.name} names none. Give --base.")
    from adapterhub.adapter import describe_base, read_adapter, seal, sealed_stack
    from adapterhub.model import check_head, load_base
    from adapterhub.training import base_id

    place = registry.place_of_base(task.base_model)
    signature = describe_base(load_base(place)[0], base_id(place))
    adapter = read_adapter(folder, signature, adopt=not (folder / "adapterhub.json").is_file())
    check_head(task, adapter.head, adapter.source)
    with tempfile.TemporaryDirectory(prefix="adapterhub-adapter-") as temporary:
        copy = Path(temporary) / "adapter"
        copy.mkdir()
        for file in ADAPTER_FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, copy / file)
        seal(copy, signature, sealed_stack(copy))  # an adapter of a stack stays one
        yield copy


def _in_registry(registry: Registry, base: str) -> str:
    """How a card names a base: relative to the registry if it lies there, absolute for another folder, or a Hub id."""
    inside = registry.root / base
    if ".." not in Path(base).parts and not Path(base).is_absolute() and inside.is_dir():
        return base
    if not Path(base).is_dir():
        if not _HUB_ID.fullmatch(base):
            raise InputError(f"A base model is a folder or a Hub id. Found {base!r}, which is neither. Check the path.")
        return base
    folder, root = Path(base).resolve(), registry.root.resolve()
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)
