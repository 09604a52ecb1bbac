"""Reading the tree: each file checked by itself, then each card with what it inherits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from adapterhub.errors import CardError
from adapterhub.task._card import Task
from adapterhub.task._fields import FIELDS, Fault, applies, field_faults
from adapterhub.task._names import check_name, name_fault
from adapterhub.task._rules import card_faults
from adapterhub.task._yaml import CardFile, read_file

__all__ = [
    "CARD",
    "GROUP",
    "RETIRED",
    "Scan",
    "card_files",
    "describe_group",
    "merge",
    "read_card",
    "read_cards",
    "read_group",
    "read_tree",
    "scan_tree",
]

CARD = "task.yaml"
RETIRED = "retired.yaml"  # the card of a task that is kept, but neither listed nor routed to
GROUP = "_group.yaml"

_VERSION = re.compile(r"v[0-9]+")


class Scan(NamedTuple):
    """What lies in a tree, unread.

    Args:
        tasks: For each task, in the names' order, the files that make its card: its own, then the groups' from the
            root down.
        retired: The same of the retired tasks.
        faults: Cards at a place that is no task's name, links instead of folders, tasks both active and retired.
    """

    tasks: dict[str, tuple[Path, ...]]
    retired: dict[str, tuple[Path, ...]]
    faults: tuple[str, ...]


def read_card(root: Path | None, name: str, path: Path | None = None) -> Task:
    """Read one card with what it inherits from the groups above it.

    Args:
        root: Folder of the tree; None for a card that stands alone, and then `path` says where.
        name: The task's name.
        path: Where the card lies, if it is not at its place in the tree yet.

    Raises:
        CardError: If the card or a group's file above it is wrong; the message lists every fault.
    """
    check_name(name)
    reader = _Reader(None if root is None else Path(root))
    task = reader.task(name, path)
    if task is None:
        raise CardError(reader.faults)
    return task


def read_tree(root: Path) -> dict[str, Task]:
    """Read every card below a folder.

    Args:
        root: Folder of the tree.

    Returns:
        The tasks by name, in the names' order. Folders whose name begins with `_` or `.` are skipped.

    Raises:
        CardError: If any file is wrong; the message lists every fault of every file.
    """
    found = scan_tree(root)
    tasks, faults = read_cards(root, {name: files[0] for name, files in found.tasks.items()})
    if found.faults or faults:
        raise CardError([*found.faults, *faults])
    return tasks


def read_cards(root: Path, cards: Mapping[str, Path]) -> tuple[dict[str, Task], tuple[str, ...]]:
    """Read some cards, each group's file once.

    Args:
        root: Folder of the tree.
        cards: Where the card of each task lies, by name.

    Returns:
        The tasks whose cards are right, by name, and every fault of the others.
    """
    reader = _Reader(Path(root))
    tasks = {name: reader.task(check_name(name), path) for name, path in cards.items()}
    return {name: task for name, task in tasks.items() if task is not None}, tuple(reader.faults)


def scan_tree(root: Path) -> Scan:
    """Find the cards below a folder without reading them.

    Args:
        root: Folder of the tree.
    """
    reader = _Reader(Path(root))
    found = sorted(reader.walk(Path(root), ""))
    files = {kind: [name for name, card in found if card == kind] for kind in (CARD, RETIRED)}
    reader.faults += [
        f"{Path(root, name, RETIRED)}:1: a task is active or retired. Found `{CARD}` beside it. Delete one of them."
        for name in sorted(set(files[CARD]).intersection(files[RETIRED]))
    ]
    tasks, retired = (
        {name: (Path(root, name, card), *reader.groups(name)) for name in names} for card, names in files.items()
    )
    return Scan(tasks, {name: paths for name, paths in retired.items() if name not in tasks}, tuple(reader.faults))


def read_group(root: Path, name: str) -> dict[str, object]:
    """The defaults of a group, with those of the groups above it; the nearest one counts.

    Args:
        root: Folder of the tree.
        name: The group's name; the empty string is the root.

    Raises:
        CardError: If a group's file is wrong; the message lists every fault.
    """
    reader = _Reader(Path(root))
    fields = reader.inherited(name and check_name(name))
    if reader.faults:
        raise CardError(reader.faults)
    return fields


def describe_group(root: Path, name: str) -> str:
    """What a group says of itself: its own description, which its tasks do not inherit.

    Args:
        root: Folder of the tree.
        name: The group's name; the empty string is the root.

    Raises:
        CardError: If the group's file is wrong; the message lists every fault.
    """
    reader = _Reader(Path(root))
    path = Path(root, name and check_name(name), GROUP)
    description = str(reader.group(path).fields.get("description", "")) if path.is_file() else ""
    if reader.faults:
        raise CardError(reader.faults)
    return description


def card_files(root: Path, name: str) -> tuple[Path, ...]:
    """The files that make one card: its own, then those of the groups above from the root down.

    Args:
        root: Folder of the tree.
        name: The task's name.
    """
    return (Path(root, check_name(name), CARD), *_Reader(Path(root)).groups(name))


class _Reader:
    """One pass over a tree; files of groups are read once."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.faults: list[str] = []
        self._groups: dict[Path, CardFile] = {}
        self._there: dict[Path, bool] = {}

    def walk(self, folder: Path, name: str) -> Iterator[tuple[str, str]]:
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
        for entry in there:
            if entry.name in (CARD, RETIRED) and name:
                fault = name_fault(name)
                if fault is None:
                    yield name, entry.name
                else:
                    self.faults.append(f"{entry.path}:1: {fault}")
            elif entry.name[0] not in "._" and entry.is_dir() and not _VERSION.fullmatch(entry.name):
                if entry.is_symlink():
                    text = "a tree is made of real folders. Found a link. Move the folder here."
                    self.faults.append(f"{entry.path}:1: {text}")
                else:
                    yield from self.walk(Path(entry.path), f"{name}/{entry.name}" if name else entry.name)

    def groups(self, name: str) -> list[Path]:
        if self.root is None:
            return []
        folders = [self.root]
        for part in name.split("/") if name else []:
            folders.append(folders[-1] / part)
        paths = [folder / GROUP for folder in folders]
        for path in paths:
            if path not in self._there:
                self._there[path] = path.is_file()
        return [path for path in paths if self._there[path]]

    def group(self, path: Path) -> CardFile:
        if path not in self._groups:
            self._groups[path] = read_file(path)
            own = {key: FIELDS[key] for key in self._groups[path].fields if key in FIELDS}
            faults = [
                Fault(key, None, f"`{key}` belongs to one task, not to a group. Move it into a `{CARD}`.")
                for key, field in own.items()
                if not field.inherited and key != "description"
            ]
            self._check(self._groups[path], faults)
        return self._groups[path]

    def inherited(self, name: str) -> dict[str, object]:
        merged: dict[str, object] = {}
        for path in self.groups(name):
            fields = self.group(path).fields
            merged.update({key: value for key, value in fields.items() if key in FIELDS and FIELDS[key].inherited})
        return merged

    def task(self, name: str, path: Path | None = None) -> Task | None:
        groups = [self.group(group) for group in self.groups(name)]
        inherited = self.inherited(name)
        before = len(self.faults)
        card = read_file(path or Path(self.root or "", name, CARD))
        own = self._check(card, [])
        faulty = {fault.field for group in groups for fault in field_faults(group.fields)} | own
        if not card.faults:
            fields = merge(name, inherited, card.fields)
            found = card_faults(fields, faulty)
            if name in _items(fields.get("stack")):
                found.append(Fault("stack", None, f"`stack` names other tasks. Found {name!r} itself. Remove it."))
            self.faults += map(card.locate, found)
        self.faults[before:] = sorted(self.faults[before:], key=lambda text: _line(card, text))
        broken = len(self.faults) > before or faulty or any(group.faults for group in groups)
        return None if broken else Task.from_dict(name, fields, str(card.path))

    def _check(self, card: CardFile, more: list[Fault]) -> set[str]:
        faults = [*field_faults(card.fields), *more]
        self.faults += sorted([*card.faults, *map(card.locate, faults)], key=lambda text: _line(card, text))
        return {fault.field for fault in faults}


def _line(card: CardFile, fault: str) -> int:
    return int(fault.removeprefix(f"{card.path}:").partition(":")[0])


def merge(name: str, inherited: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """A card's own fields over the inherited ones that mean something for it.

    A group's default that does not fit the card's head is no contradiction, it is left out: `max_new_tokens` for a
    classifying task. So is the task's own name in an inherited `stack`.

    Args:
        name: The task's name.
        inherited: Defaults of the groups above.
        own: The fields of the card's file.
    """
    fields = {**inherited, **own}
    head = str(fields.get("head", FIELDS["head"].default))
    fields = {key: value for key, value in fields.items() if key in own or applies(key, head)}
    if "stack" in fields and "stack" not in own:
        fields["stack"] = [task for task in _items(fields["stack"]) if task != name]
    return fields


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
