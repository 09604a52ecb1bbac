"""The folder of cards, changed so that a task is there whole or not at all, whenever the process dies."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from adapterhub.errors import CardError
from adapterhub.registry._files import copy_adapter, durable_folder, prune, sync_folder, versions_in
from adapterhub.registry._lock import locked
from adapterhub.task import CARD, GROUP, Task, read_card, read_group, write_card

__all__ = ["Shelf"]

_INTENT = "intent.json"
_STAGING = "staging-"


class _Intent(NamedTuple):
    """What a staging folder is for: `add` or `remove`, the task, and its entries beside the card."""

    action: str
    name: str
    entries: tuple[str, ...]


class Shelf:
    """Writes to the tree, one writer at a time.

    A change is written aside in a folder `staging-…` with a note of what it will do. The card's move is the commit: an
    adapter's version is in its place before the card appears, and leaves it after the card is gone. Whatever a killed
    process has left is settled by the next writer from the note.

    Args:
        root: Folder of the tree.
        derived: Folder for the lock and for what is written aside, on the same file system.
    """

    def __init__(self, root: Path, derived: Path) -> None:
        self.root, self.derived = root, derived

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock, after settling what killed writers have left."""
        self.derived.mkdir(parents=True, exist_ok=True)
        with locked(self.derived / "lock"):
            for staging in sorted(self.derived.glob(f"{_STAGING}*")):
                self._settle(staging)
            yield

    def place(self, task: Task, adapter: Path | None) -> Task:
        """Put a task into the tree; call it while `writing`.

        Args:
            task: The task.
            adapter: A sealed adapter folder that becomes the next version, or None to keep what the card says.

        Returns:
            The task as stored, with its adapter and content hash.

        Raises:
            CardError: If a card above is wrong, or a folder on the way is a link; then nothing has changed.
            IntegrityError: If the adapter's folder is not whole; then nothing has changed.
        """
        folder = self.root / task.name
        self._refuse_links(folder)
        version = None if adapter is None else f"v{max((int(v[1:]) for v in versions_in(folder)), default=0) + 1}"
        staging = self._stage("add", task.name, [] if version is None else [version])
        try:
            if adapter is not None and version is not None:
                sha256 = copy_adapter(adapter, staging / version)
                task = dataclasses.replace(task, adapter=version, sha256=sha256)
            write_card(staging / CARD, task, read_group(self.root, task.name))
            if read_card(self.root, task.name, staging / CARD) != task:
                raise CardError([f"{task.name}: a card written below its groups should say the same when it is read."])
            durable_folder(folder)
            if version is not None:
                (staging / version).replace(folder / version)
                sync_folder(folder)
            (staging / CARD).replace(folder / CARD)  # the commit
            sync_folder(folder)
        finally:
            self._settle(staging)
        return task

    def take(self, name: str) -> None:
        """Take a task that is there out of the tree; call it while `writing`.

        Its card, versions and other files go. A group's file and the tasks below stay.

        Args:
            name: The task's name.
        """
        folder = self.root / name
        files = [entry.name for entry in folder.iterdir() if entry.is_file() and entry.name not in (CARD, GROUP)]
        staging = self._stage("remove", name, [*versions_in(folder), *files])
        try:
            (folder / CARD).replace(staging / CARD)  # the commit
            sync_folder(folder)
        finally:
            self._settle(staging)

    def _stage(self, action: str, name: str, entries: Sequence[str]) -> Path:
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.derived))
        with (staging / _INTENT).open("w", encoding="utf-8") as file:
            json.dump([action, name, list(entries)], file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(staging)
        sync_folder(self.derived)
        return staging

    def _settle(self, staging: Path) -> None:
        """Finish or undo one change, by its note and by whether its card has moved; then forget it."""
        intent = _read_intent(staging / _INTENT)
        if intent is not None:
            folder = self.root / intent.name
            # Adding: a card still aside was never committed. Removing: a card aside is committed.
            for entry in intent.entries if (staging / CARD).is_file() else ():
                if intent.action == "remove" or not (staging / entry).exists():
                    _delete(folder / entry)
            prune(folder, self.root)
        shutil.rmtree(staging)

    def _refuse_links(self, folder: Path) -> None:
        for place in (folder, *folder.parents):
            if place == self.root:
                return
            if place.is_symlink():
                raise CardError([f"{place}:1: a tree is made of real folders. Found a link. Move the folder here."])


def _read_intent(path: Path) -> _Intent | None:
    try:
        return _Intent(*json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # killed before the note was whole: nothing had moved yet
        return None


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
