"""A registry that is a database: its rows are the truth, the adapters' files lie beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapterhub.catalog import SqliteCatalog, TaskRecord, TaskVersion, open_catalog
from adapterhub.durable import durable_folder, sync_folder
from adapterhub.errors import CardError, InputError, TaskNotFoundError
from adapterhub.registry._files import copy_adapter, versions_in
from adapterhub.registry._fsck import database_faults
from adapterhub.registry._history import ARRIVING, put_history
from adapterhub.registry._near import names_near
from adapterhub.registry._place import DERIVED, adapters_beside, cache_folder, derived_folder, sqlite_file
from adapterhub.registry._rows import record_of, size_fault, task_of
from adapterhub.registry._staging import Intent, Staging
from adapterhub.registry._store import Arrival, Status, vectors_of
from adapterhub.task import Task, read_card

__all__ = ["DatabaseStore"]


class DatabaseStore:
    """A `Store` in a database. A card has no group here, so it is stored complete.

    A version of an adapter is immutable: it is copied to its place, and is on the disk, before the row that names it is
    committed.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://…`.
        adapters: Folder of the adapters' files; by default `<stem>.adapters` beside an SQLite file.

    Raises:
        InputError: If the address is of no known kind.
    """

    def __init__(self, url: str, adapters: Path | None) -> None:
        file = sqlite_file(url)
        self.catalog = open_catalog(url)
        self._adapters = adapters_beside(file) if adapters is None and file is not None else adapters
        self._file = file

    @property
    def root(self) -> Path:
        """The folder of adapters; without one, in the user's cache."""
        return cache_folder(self.place) if self._adapters is None else self._adapters

    @property
    def place(self) -> str:
        """The address, without a password."""
        return self.catalog.url

    @property
    def derived(self) -> Path:
        """`.catalog` in the folder of adapters; in the user's cache where that cannot be."""
        if self._adapters is None:
            return cache_folder(self.place)
        return derived_folder(self._adapters)

    @property
    def empty(self) -> bool:
        """Whether there is no file yet."""
        return self._file is not None and not self._file.exists()

    def home(self, name: str) -> Path:
        """The folder of a task among the adapters.

        Raises:
            InputError: If there is no folder of adapters.
        """
        if self._adapters is None:
            raise InputError(
                f"A registry in PostgreSQL keeps adapters' files in a folder of yours. {self.place} has none. "
                "Give Registry(url, adapters=FOLDER), or name the adapter by its place on the Hub, hf://…"
            )
        return self._adapters / name

    def refresh(self) -> int:
        """The rows are the truth."""
        return 0 if self.empty else self.catalog.seq

    def count(self) -> int:
        """Number of the active rows."""
        return 0 if self.empty else self.catalog.count()

    def status(self, name: str) -> Status | None:
        """By its row."""
        record = None if self.empty else self.catalog.get(name)
        return None if record is None or record.source == ARRIVING else record.status

    def task(self, name: str) -> Task:
        """The task of the row."""
        record = self.catalog.get(name)
        if record is None:
            raise TaskNotFoundError(f"No task {name!r} in {self.place}. Another process has just removed it.")
        return task_of(record)

    def near(self, name: str) -> Sequence[str]:
        """Names from the neighbourhood: there may be a million."""
        return [] if self.empty else names_near(self.catalog, name)

    def inherited(self, group: str) -> Mapping[str, object]:
        """Nothing: cards are stored complete."""
        del group
        return {}

    def read_outside(self, name: str, card: Path) -> Task:
        """A card that stands alone."""
        return read_card(None, name, card)

    def history(self, name: str) -> list[TaskVersion]:
        """What the tables say."""
        return self.catalog.versions(name)

    def catch_up(self) -> int:
        """The rows are the truth."""
        return self.catalog.seq

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of this machine, after settling what killed writers have left.

        Raises:
            InputError: If the folder of adapters cannot be written to.
        """
        if self._adapters is not None:
            durable_folder(self._adapters)
            if derived_folder(self._adapters) != self._adapters / DERIVED:
                raise InputError(
                    f"A registry is changed where it can be written to. {self._adapters} cannot. "
                    "Correct its rights, or give another folder with `adapters=`."
                )
        with self.checking():
            yield

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Hold the lock, also where the folder of adapters cannot be written to."""
        with self._staging().writing():
            yield

    def place_all(self, arrivals: Sequence[Arrival], *, encoder: str = "") -> list[TaskRecord]:
        """Copy adapters to their places, then commit all rows and vectors at once."""
        rows = [record_of(arrival.task, status=arrival.status) for arrival in arrivals]
        faults = [f"{row.name}: {fault}" for row in rows if (fault := size_fault(row)) is not None]
        if faults:
            raise CardError(faults)
        staging, asides = self._staging(), []
        try:
            for place, arrival in enumerate(arrivals):
                if arrival.adapters:
                    asides.append(staging.begin(Intent("add", arrival.task.name, tuple(arrival.adapters))))
                    hashes = self._shelve(arrival, asides[-1])
                    task = arrival.task
                    sha256 = hashes.get(task.adapter or "", task.sha256)
                    rows[place] = record_of(dataclasses.replace(task, sha256=sha256), status=arrival.status)
            put_history(self.catalog, rows, arrivals)
            vectors = vectors_of(rows, arrivals)
            self.catalog.put(rows, encoder=encoder if vectors else "", vectors=vectors)  # the commit
        finally:
            for aside in asides:
                staging.settle(aside)
        return rows

    def turn(self, name: str, status: Status) -> None:
        """Change the row's status."""
        (self.catalog.retire if status == "retired" else self.catalog.restore)([name])

    def take(self, name: str) -> None:
        """Delete the row, then the adapter's versions."""
        staging = self._staging()
        entries = tuple(versions_in(self.home(name))) if self._adapters is not None else ()
        aside = staging.begin(Intent("remove", name, entries)) if entries else None
        try:
            self.catalog.delete([name])  # the commit
        finally:
            if aside is not None:
                staging.settle(aside)

    def hear(self, encoder: str) -> None:
        """Refuse another encoder: the vectors of a million tasks are not thrown away in passing.

        Raises:
            InputError: If the catalogue is bound to another one.
        """
        bound = self.catalog.encoder
        if bound not in (None, encoder):
            raise InputError(
                f"A registry is heard by one encoder. {self.place} holds vectors of {bound}. Found {encoder}. "
                "Use that encoder, or encode all tasks again: adapterhub reindex --encoder MODEL"
            )

    def verify(self) -> list[str]:
        """Every fault of rows, adapters and references."""
        return [*self.catalog.verify(), *database_faults(self.catalog, self._adapters, self.derived)]

    def repair(self) -> list[str]:
        """Repair an SQLite file; PostgreSQL repairs itself."""
        return self.catalog.repair() if isinstance(self.catalog, SqliteCatalog) else []

    def _staging(self) -> Staging:
        return Staging(self._adapters or self.derived, self.derived, self._left_over)

    def _left_over(self, intent: Intent, aside: Path) -> Sequence[str]:
        """What no row names: versions that were never committed, or all of a removed task."""
        del aside
        if intent.action == "remove":
            return intent.entries if self.catalog.get(intent.name) is None else ()
        kept = {version.version for version in self.catalog.versions(intent.name)}
        return [entry for entry in intent.entries if entry not in kept]

    def _shelve(self, arrival: Arrival, aside: Path) -> dict[str, str]:
        """Copy an arrival's adapters and move them to their place; returns their content hashes."""
        folder = self.home(arrival.task.name)
        hashes = {version: copy_adapter(source, aside / version) for version, source in arrival.adapters.items()}
        durable_folder(folder)
        for version in hashes:
            (aside / version).replace(folder / version)
        sync_folder(folder)
        return hashes
