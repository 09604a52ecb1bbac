"""A registry that is a folder of cards; its catalogue is derived."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from adapterhub.catalog import SqliteCatalog, TaskRecord, TaskVersion
from adapterhub.durable import durable_folder
from adapterhub.errors import CardError, InputError, IntegrityError
from adapterhub.lock import locked
from adapterhub.registry._files import hash_of, versions_in
from adapterhub.registry._history import put_history
from adapterhub.registry._mirror import differences, mirror, row_of
from adapterhub.registry._place import DERIVED, cache_folder, derived_folder
from adapterhub.registry._shelf import Shelf
from adapterhub.registry._store import Arrival, Status, vectors_of
from adapterhub.registry._verify import catalog_faults, verify
from adapterhub.task import CARD, RETIRED, Task, read_card, read_cards, read_group, scan_tree

__all__ = ["FolderStore"]

_LOG = logging.getLogger("adapterhub.registry")
_T = TypeVar("_T")


class FolderStore:
    """A `Store` in a folder. The cards are the truth; the catalogue beside them may be deleted at any time.

    Args:
        root: The folder. It is made by the first write if it is not there.

    Raises:
        InputError: If it is not a folder.
    """

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise InputError(f"A registry is a folder. Found the file {root}. Give the folder with the cards.")
        self.root = root
        self._catalog: SqliteCatalog | None = None

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def catalog(self) -> SqliteCatalog:
        """The derived tables; they are not up to date before `refresh`."""
        # Its place is settled once: whoever keeps the object sees what is added to an empty folder later.
        if self._catalog is None:
            self._catalog = SqliteCatalog(self.derived / "catalog.sqlite", derived=True)
        elif not self._catalog.path.parent.is_dir():
            durable_folder(self.derived)
            durable_folder(self._catalog.path.parent)
        return self._catalog

    @property
    def derived(self) -> Path:
        """`.catalog` beside the cards; in the user's cache where that cannot be, or there are no cards."""
        return cache_folder(str(self.root.resolve())) if self.empty else derived_folder(self.root)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to derive from: then nothing is left in the folder either."""
        if (self.root / DERIVED).is_dir():
            return False
        return all(next(self.root.rglob(card), None) is None for card in (CARD, RETIRED))

    def home(self, name: str) -> Path:
        """The folder of a task."""
        return self.root / name

    def refresh(self) -> int:
        """Bring the catalogue up to the cards; only those whose files have changed are read.

        Raises:
            CardError: If any card is wrong, after all others have been mirrored; the message lists every fault.
        """
        return 0 if self.empty else self._mended(self._mirror)

    def count(self) -> int:
        """Number of the active cards."""
        return len(scan_tree(self.root).tasks)

    def status(self, name: str) -> Status | None:
        """By the file that is there."""
        folder = self.root / name
        if (folder / CARD).is_file():
            return "active"
        return "retired" if (folder / RETIRED).is_file() else None

    def task(self, name: str) -> Task:
        """The task as its card says now."""
        return read_card(self.root, name)

    def near(self, name: str) -> Sequence[str]:
        """All names, for a folder has not so many."""
        del name
        return list(scan_tree(self.root).tasks)

    def inherited(self, group: str) -> Mapping[str, object]:
        """What the groups' files say."""
        return read_group(self.root, group)

    def read_outside(self, name: str, card: Path) -> Task:
        """A card with what it would inherit here."""
        return read_card(self.root, name, card)

    def history(self, name: str) -> list[TaskVersion]:
        """What the catalogue has seen, and versions that lie in the folder all the same."""
        seen = self.catalog.versions(name)
        known = {version.version for version in seen}
        older = [version for version in versions_in(self.home(name)) if version not in known]
        return [*(TaskVersion(version, hash_of(self.home(name) / version), 0) for version in older), *seen]

    def catch_up(self) -> int:
        """Mirror what others have changed by hand."""
        mirror(self.root, self.catalog)
        return self.catalog.seq

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the folder, after settling what killed writers have left.

        Raises:
            InputError: If the folder cannot be written to.
        """
        durable_folder(self.root)
        if derived_folder(self.root) != self.root / DERIVED:
            raise InputError(
                f"A registry is changed where it can be written to. {self.root} cannot. Copy it elsewhere."
            )
        with self.checking():
            self._mended(lambda: self.catalog.seq)  # a damaged catalogue is made again before anything changes
            yield

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Hold the lock, also where the folder cannot be written to."""
        with self._shelf().staging.writing():
            yield

    def place_all(self, arrivals: Sequence[Arrival], *, encoder: str = "") -> list[TaskRecord]:
        """Write cards one by one, then their rows and vectors in one commit."""
        shelf, rows = self._shelf(), []
        try:
            for arrival in arrivals:
                retired = arrival.status == "retired"
                task = shelf.place(arrival.task, arrival.adapters, retired=retired)
                rows.append(row_of(self.root, task, RETIRED if retired else CARD))
        finally:
            if rows:
                self._mended(lambda: self._put(rows, arrivals[: len(rows)], encoder))
        return rows

    def turn(self, name: str, status: Status) -> None:
        """Rename the card."""
        self._shelf().turn(name, retired=status == "retired")
        mirror(self.root, self.catalog)

    def take(self, name: str) -> None:
        """Delete the card, then what lies beside it."""
        self._shelf().take(name)
        catalog = self.catalog
        if catalog.get(name) is not None:
            catalog.delete([name])

    def hear(self, encoder: str) -> None:
        """Bind the catalogue, which is derived, to whatever encoder is asked for."""
        self._mended(lambda: self._bind(encoder))

    def verify(self) -> list[str]:
        """Every fault of cards, adapters, references and the catalogue."""
        return verify(self.root, self.catalog, self.derived)

    def repair(self) -> list[str]:
        """Make a damaged or differing catalogue again."""
        tasks, _ = read_cards(self.root, {name: files[0] for name, files in scan_tree(self.root).tasks.items()})
        faults = [*self.catalog.verify(), *catalog_faults(self.root, self.catalog, tasks)]
        if not faults:
            return []
        self.catalog.discard()
        shutil.rmtree(self.derived / "index", ignore_errors=True)  # it knows tasks by their numbers in the old file
        mirror(self.root, self.catalog)
        return [f"{fault} Done: it was made again from the cards." for fault in faults]

    def _put(self, rows: Sequence[TaskRecord], arrivals: Sequence[Arrival], encoder: str) -> None:
        put_history(self.catalog, rows, arrivals)
        vectors = vectors_of(rows, arrivals)
        self.catalog.put(rows, encoder=encoder if vectors else "", vectors=vectors)

    def _bind(self, encoder: str) -> None:
        catalog = self.catalog
        if catalog.encoder not in (None, encoder):
            catalog.bind(encoder)

    def _shelf(self) -> Shelf:
        return Shelf(self.root, self.derived)

    def _mirror(self) -> int:
        catalog = self.catalog
        found = differences(self.root, catalog)
        faults = found.faults
        if found:
            with locked(self.derived / "lock"):
                faults = mirror(self.root, catalog)
        if faults:
            raise CardError(faults)
        return catalog.seq

    def _mended(self, call: Callable[[], _T]) -> _T:
        """Call; where the catalogue proves damaged it is deleted: say so, and call once more if need be."""
        before = self._file()
        try:
            return call()
        except IntegrityError as error:
            if not _is_damage(error):
                raise
            return call()
        finally:
            if before not in (None, self._file()):
                _LOG.warning("The catalogue in %s was damaged, or of another version. It is made again.", self.derived)
                # Indexes know tasks by their numbers, and a new catalogue gives new ones.
                shutil.rmtree(self.derived / "index", ignore_errors=True)

    def _file(self) -> int | None:
        """Which file the catalogue is."""
        try:
            return self.catalog.path.stat().st_ino
        except FileNotFoundError:
            return None


def _is_damage(error: IntegrityError) -> bool:
    """Whether SQLite found its file damaged, and not only the disk full or the file locked."""
    code = getattr(error.__cause__, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
