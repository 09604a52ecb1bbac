"""Changes written aside, with a note of what each will do, so that a killed process leaves nothing half done."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from adapterhub.durable import sync_folder
from adapterhub.lock import locked
from adapterhub.registry._files import prune, remove

__all__ = ["Intent", "Staging"]

_INTENT = "intent.json"
_PREFIX = "staging-"


class Intent(NamedTuple):
    """What a folder aside is for.

    Args:
        action: `add`, `retire` (added as a retired task) or `remove`.
        name: The task.
        entries: Its entries beside the card that come or go.
    """

    action: str
    name: str
    entries: tuple[str, ...]


class Staging:
    """The folders aside of one registry. One writer at a time; the next one settles what a killed one has left.

    Args:
        home: Where the folders of the tasks lie.
        derived: Folder for the lock and for what is written aside, on the same file system.
        left_over: Says, of a change that was cut short or is done, which of its entries in the task's folder shall go.
    """

    def __init__(self, home: Path, derived: Path, left_over: Callable[[Intent, Path], Sequence[str]]) -> None:
        self.home, self.derived = home, derived
        self._left_over = left_over

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock, after settling what killed writers have left."""
        self.derived.mkdir(parents=True, exist_ok=True)
        with locked(self.derived / "lock"):
            for aside in sorted(self.derived.glob(f"{_PREFIX}*")):
                self.settle(aside)
            yield

    def leftovers(self) -> list[Path]:
        """What killed writers have left and no one has settled yet."""
        return sorted(self.derived.glob(f"{_PREFIX}*")) if self.derived.is_dir() else []

    def begin(self, intent: Intent) -> Path:
        """Make a folder aside; its note has reached the disk when this returns.

        Args:
            intent: What it is for.
        """
        aside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.derived))
        try:
            with (aside / _INTENT).open("w", encoding="utf-8") as file:
                json.dump(intent, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk
            shutil.rmtree(aside)
            raise
        sync_folder(aside)
        sync_folder(self.derived)
        return aside

    def settle(self, aside: Path) -> None:
        """Finish or undo one change, by its note and by what was committed; then forget it.

        Args:
            aside: A folder that `begin` gave, now or in a process that is dead.
        """
        intent = _read(aside / _INTENT)
        if intent is not None:
            folder = self.home / intent.name
            for entry in self._left_over(intent, aside):
                if intent.action == "remove" or not (aside / entry).exists():
                    remove(folder / entry)
            prune(folder, self.home)
        shutil.rmtree(aside)


def _read(path: Path) -> Intent | None:
    try:
        action, name, entries = json.loads(path.read_bytes())
        return Intent(action, name, tuple(entries))
    except (FileNotFoundError, ValueError, TypeError):  # killed before the note was whole: nothing had moved yet
        return None
