"""The folder of cards, changed so that a task is there whole or not at all, whenever the process dies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapterhub.durable import durable_folder, sync_folder
from adapterhub.errors import CardError
from adapterhub.registry._files import copy_adapter, versions_in
from adapterhub.registry._staging import Intent, Staging
from adapterhub.task import CARD, GROUP, RETIRED, Task, read_card, read_group, write_card

__all__ = ["Shelf"]


class Shelf:
    """Writes to the tree; each call while `staging.writing()`.

    A change is written aside first. The card's move is the commit: an adapter's version is in its place before the card
    appears, and leaves it after the card is gone.

    Args:
        root: Folder of the tree.
        derived: Folder for the lock and for what is written aside, on the same file system.
    """

    def __init__(self, root: Path, derived: Path) -> None:
        self.root = root
        self.staging = Staging(root, derived, self._left_over)

    def place(self, task: Task, adapters: Mapping[str, Path], *, retired: bool = False) -> Task:
        """Put a task into the tree.

        Args:
            task: The task.
            adapters: Sealed adapter folders by the version that each of them becomes.
            retired: Whether it is put there as a retired task.

        Returns:
            The task as stored, with the content hash of its adapter if that came along.

        Raises:
            CardError: If a card above is wrong, or a folder on the way is a link; then nothing has changed.
            IntegrityError: If an adapter's folder is not whole; then nothing has changed.
        """
        folder = self.root / task.name
        self._refuse_links(folder)
        aside = self.staging.begin(Intent("retire" if retired else "add", task.name, tuple(adapters)))
        try:
            for version, source in adapters.items():
                sha256 = copy_adapter(source, aside / version)
                task = dataclasses.replace(task, sha256=sha256) if version == task.adapter else task
            self._write(aside / CARD, task)
            durable_folder(folder)
            for version in adapters:
                (aside / version).replace(folder / version)
            if adapters:
                sync_folder(folder)
            (aside / CARD).replace(folder / (RETIRED if retired else CARD))  # the commit
            sync_folder(folder)
        finally:
            self.staging.settle(aside)
        return task

    def take(self, name: str) -> None:
        """Take a task out of the tree: its card, versions and other files; a group's file and the tasks below stay.

        Args:
            name: Name of a task that is there, active or retired.
        """
        folder = self.root / name
        cards = [card for card in (CARD, RETIRED) if (folder / card).is_file()]
        others = [entry.name for entry in folder.iterdir() if entry.is_file() and entry.name not in (*cards, GROUP)]
        aside = self.staging.begin(Intent("remove", name, (*cards[1:], *versions_in(folder), *others)))
        try:
            (folder / cards[0]).replace(aside / CARD)  # the commit
            sync_folder(folder)
        finally:
            self.staging.settle(aside)

    def turn(self, name: str, *, retired: bool) -> None:
        """Retire an active task, or make a retired one active again.

        Args:
            name: The task's name.
            retired: What it shall be.
        """
        folder = self.root / name
        before, after = (CARD, RETIRED) if retired else (RETIRED, CARD)
        (folder / before).replace(folder / after)  # the commit
        sync_folder(folder)

    def _write(self, path: Path, task: Task) -> None:
        write_card(path, task, read_group(self.root, task.name))
        if read_card(self.root, task.name, path) != task:
            raise CardError([f"{task.name}: a card written below its groups should say the same when it is read."])

    def _refuse_links(self, folder: Path) -> None:
        for place in (folder, *folder.parents):
            if place == self.root:
                return
            if place.is_symlink():
                raise CardError([f"{place}:1: a tree is made of real folders. Found a link. Move the folder here."])

    def _left_over(self, intent: Intent, aside: Path) -> Sequence[str]:
        """Adding: a card still aside was never committed. Removing: a card aside is committed."""
        card_aside = (aside / CARD).is_file()
        if intent.action == "remove" or card_aside:
            return intent.entries if card_aside else ()
        new, old = (RETIRED, CARD) if intent.action == "retire" else (CARD, RETIRED)
        # The card of the other kind is out of date once the new one is in its place.
        return (old,) if (self.root / intent.name / new).is_file() else ()
