"""Every fault of a folder of cards: cards, bytes, leftovers, references, the catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adapterhub.catalog import Catalog
from adapterhub.errors import AdapterHubError, InputError, did_you_mean
from adapterhub.registry._files import adapter_faults, versions_in
from adapterhub.registry._hub import pulled_folder
from adapterhub.registry._mirror import mirror
from adapterhub.registry._rows import active_rows, card_json
from adapterhub.task import CARD, RETIRED, Task, read_cards, scan_tree

__all__ = ["catalog_faults", "hub_faults", "stack_faults", "verify"]


def verify(root: Path, catalog: Catalog, derived: Path) -> list[str]:
    """Every fault found; call it while no one else writes.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.
        derived: Folder of what is written aside and what was pulled.
    """
    tree = scan_tree(root)
    tasks, wrong = read_cards(root, {name: files[0] for name, files in tree.tasks.items()})
    retired, wrong_too = read_cards(root, {name: files[0] for name, files in tree.retired.items()})
    faults = [*tree.faults, *wrong, *wrong_too]

    def stack_of(name: str) -> tuple[str, ...] | None:
        return tasks[name].stack if name in tasks else (() if name in tree.tasks else None)

    for name, task in (*tasks.items(), *retired.items()):
        faults += _adapter_faults(root / name, task, derived)
    for task in tasks.values():
        faults += stack_faults(task, stack_of, lambda: list(tree.tasks))
    return [*faults, *_orphans(root), *catalog_faults(root, catalog, tasks)]


def stack_faults(
    task: Task, stack_of: Callable[[str], tuple[str, ...] | None], near: Callable[[], list[str]]
) -> list[str]:
    """Entries of a task's stack that are no tasks, and stacks that come back to the task.

    Args:
        task: The task.
        stack_of: The stack of a task by its name, or None where there is no such task.
        near: Names that may be meant; asked for where one is wrong.
    """
    faults = [
        f"{task.name}: `stack` should name tasks of the registry. Found {other!r}."
        f"{did_you_mean(other, set(near()) - {task.name})} Add that task first or remove the entry."
        for other in task.stack
        if stack_of(other) is None
    ]
    seen: set[str] = set()
    waiting = list(task.stack)
    while waiting:
        other = waiting.pop()
        if other not in seen and other != task.name:
            waiting += stack_of(other) or ()
        seen.add(other)
    if task.name in seen:
        faults.append(
            f"{task.name}: `stack` should not lead back to the task. Found a circle. Remove one of its entries."
        )
    return faults


def hub_faults(url: str, sha256: str | None, derived: Path, where: str) -> Iterator[str]:
    """What is wrong with a card's pinned place on the Hub, or with what was pulled from there.

    Args:
        url: `hf://org/repo@<commit>/path`.
        sha256: The content hash that the card states.
        derived: Folder of what was pulled.
        where: The card, for messages.
    """
    try:
        place = pulled_folder(url, derived)
    except InputError as error:
        yield f"{where}: {error}"
        return
    if place.is_dir():
        yield from adapter_faults(place, sha256)


def _adapter_faults(folder: Path, task: Task, derived: Path) -> Iterator[str]:
    for version in versions_in(folder):
        if version != task.adapter:
            yield from adapter_faults(folder / version, None)
    if task.adapter is None:
        return
    card = folder / (CARD if (folder / CARD).is_file() else RETIRED)
    if task.adapter.startswith("hf://"):
        yield from hub_faults(task.adapter, task.sha256, derived, f"{card}:1")
    else:
        yield from adapter_faults(folder / task.adapter, task.sha256)
    if task.sha256 is None:
        text = "Found none, so changed bytes would pass unseen. Register the adapter again with `add`."
        yield f"{card}:1: a card states the `sha256` of its adapter. {text}"


def _orphans(root: Path) -> Iterator[str]:
    for place, folders, files in os.walk(root):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        versions = versions_in(folder)
        if CARD not in files and RETIRED not in files:
            yield from (
                f"{folder / version}: a version lies beside a card. Found none. Delete it." for version in versions
            )
        folders[:] = [name for name in folders if name not in versions]


def catalog_faults(root: Path, catalog: Catalog, tasks: Mapping[str, Task]) -> list[str]:
    """Rows that differ from the cards, after the catalogue was brought up to them.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.
        tasks: The active tasks whose cards are right, by name.
    """
    try:
        mirror(root, catalog)
        rows = {record.name: record.card for record in active_rows(catalog)}
    except AdapterHubError as error:
        return [str(error)]
    drifted = [name for name, task in tasks.items() if rows.get(name) != card_json(task)]
    return [
        f"{name}: the catalogue differs from the card. Delete `.catalog`, or run `adapterhub fsck --repair`; "
        "it is made again."
        for name in drifted
    ]
