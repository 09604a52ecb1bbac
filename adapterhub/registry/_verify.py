"""Every fault of a registry: cards, bytes, leftovers, references, the catalogue."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from adapterhub.catalog import Catalog
from adapterhub.errors import AdapterHubError, InputError, did_you_mean
from adapterhub.registry._files import adapter_faults, versions_in
from adapterhub.registry._hub import pulled_folder
from adapterhub.registry._mirror import card_json, mirror
from adapterhub.task import CARD, Task, read_cards, scan_tree

__all__ = ["stack_faults", "verify"]


def verify(root: Path, catalog: Catalog, derived: Path) -> list[str]:
    """Every fault found; call it while no one writes.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.
        derived: Folder of what is written aside and what was pulled.
    """
    names, misplaced = scan_tree(root)
    tasks, wrong = read_cards(root, names)
    faults = [*misplaced, *wrong]
    for name, task in tasks.items():
        faults += _adapter_faults(root / name, task, derived)
        faults += stack_faults(task, {other: tasks[other].stack if other in tasks else () for other in names})
    faults += _orphans(root)
    faults += [f"{left}: left behind by an interrupted write. Delete it." for left in sorted(derived.glob("staging-*"))]
    return [*faults, *_catalog_faults(root, catalog, tasks)]


def stack_faults(task: Task, stacks: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Entries of a task's stack that are no tasks, and stacks that come back to the task.

    Args:
        task: The task.
        stacks: The stack of every task, by name.
    """
    others = stacks.keys() - {task.name}
    faults = [
        f"{task.name}: `stack` should name tasks of the registry. Found {other!r}.{did_you_mean(other, others)} "
        "Add that task first or remove the entry."
        for other in task.stack
        if other not in stacks
    ]
    seen: set[str] = set()
    waiting = list(task.stack)
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += stacks.get(other, ())
    if task.name in seen:
        faults.append(
            f"{task.name}: `stack` should not lead back to the task. Found a circle. Remove one of its entries."
        )
    return faults


def _adapter_faults(folder: Path, task: Task, derived: Path) -> Iterator[str]:
    for version in versions_in(folder):
        if version != task.adapter:
            yield from adapter_faults(folder / version, None)
    if task.adapter is None:
        return
    try:
        hub = task.adapter.startswith("hf://")
        place = pulled_folder(task.adapter, derived) if hub else folder / task.adapter
    except InputError as error:
        yield f"{folder / CARD}:1: {error}"
        return
    if place.is_dir() or not hub:
        yield from adapter_faults(place, task.sha256)
    if task.sha256 is None:
        text = "Found none, so changed bytes would pass unseen. Register the adapter again with `add`."
        yield f"{folder / CARD}:1: a card states the `sha256` of its adapter. {text}"


def _orphans(root: Path) -> Iterator[str]:
    for place, folders, files in os.walk(root):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        versions = versions_in(folder)
        if CARD not in files:
            yield from (
                f"{folder / version}: a version lies beside a card. Found none. Delete it." for version in versions
            )
        folders[:] = [name for name in folders if name not in versions]


def _catalog_faults(root: Path, catalog: Catalog, tasks: Mapping[str, Task]) -> list[str]:
    try:
        mirror(root, catalog)
        rows = {record.name: record for record in catalog.records()}
    except AdapterHubError as error:
        return [str(error)]
    drifted = [name for name, task in tasks.items() if name not in rows or rows[name].card != card_json(task)]
    return [f"{name}: the catalogue differs from the card. Delete `.catalog`; it is made again." for name in drifted]
