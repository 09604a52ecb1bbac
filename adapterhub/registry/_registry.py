"""The registry: the API over a folder of cards or a database."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from adapterhub.catalog import Catalog, TaskVectors, index_faults
from adapterhub.encoder import Encoder
from adapterhub.registry import _changes as changes
from adapterhub.registry._folder import FolderStore
from adapterhub.registry._pins import pin_faults
from adapterhub.registry._reading import Reading
from adapterhub.registry._vectors import fill_vectors
from adapterhub.task import Task

__all__ = ["Registry"]


class Registry(Reading):
    """A tree of tasks, in a folder of cards or in a database.

    **A folder**: the cards are the truth, reviewed in git. A catalogue in `.catalog/` beside them is derived and may be
    deleted at any time that no one writes; where the folder cannot be written to it lies in the user's cache. Reading
    one task reads its card; whatever asks for several brings the catalogue up to date first.

    **A database**: the rows are the truth, for up to a million tasks. Cards are stored complete, for there are no files
    of groups. The adapters' files lie in folders beside it.

    Args:
        place: A folder, made by the first `add` if it is not there; or `sqlite:///relative.db`,
            `sqlite:////absolute.db`, `postgresql://user@host/database`.
        adapters: For a database, the folder of the adapters' files. By default `<stem>.adapters` beside an SQLite file;
            a registry in PostgreSQL without it takes only adapters on the Hub.

    Raises:
        InputError: If it is neither a folder nor an address, or `adapters` was given for a folder.
        MissingExtraError: If it needs PostgreSQL's client, which is not installed.
    """

    def __init__(self, place: str | Path, *, adapters: str | Path | None = None) -> None:
        super().__init__(place, adapters=adapters)
        self._heard: tuple[str, int] | None = None

    def add(self, task: Task, adapter: str | Path | None = None, *, replace: bool = False) -> Task:
        """Store a task; it is there whole, and lasts through a loss of power, or nothing has changed.

        Args:
            task: The task. In a folder, what its card inherits from the groups above is not written again.
            adapter: A sealed adapter folder, copied as the task's next version. Without it the card keeps the
                adapter that it names: a version that is there, a pinned place on the Hub, or none.
            replace: Whether a task of that name may be there already. Its older versions stay.

        Returns:
            The task as stored, with its adapter and content hash.

        Raises:
            InputError: If the task is there and `replace` is not set, or the place cannot be written to.
            CardError: If the card, a group's file above it or its stack is wrong, or its labels are not in the order of
                the adapter's head.
            IntegrityError: If the adapter's files are not whole, or not those that the card states; or the disk is
                full.
            HubError: If an adapter on the Hub cannot be pulled.
        """
        return changes.add(self.store, task, None if adapter is None else Path(adapter), replace=replace)

    def add_example(self, name: str, text: str) -> Task:
        """Store one more example with a task, durably; the router hears it at its next call.

        Args:
            name: The task's name.
            text: An input that belongs to the task; nothing changes if it is among the examples already.

        Returns:
            The task as stored.

        Raises:
            TaskNotFoundError: If there is no such task.
            CardError: If the card would break its rules, for instance with too many examples.
        """
        return changes.add_example(self.store, name, text)

    def remove(self, name: str) -> None:
        """Remove a task with all its versions; tasks below it and its group's file stay.

        Args:
            name: The name of a task, active or retired.

        Raises:
            TaskNotFoundError: If there is none.
            InputError: If the place cannot be written to.
        """
        changes.find(self.store, name)
        with changes.writing(self.store.writing(), self.place):
            changes.find(self.store, name)  # another process may have been faster
            self.store.take(name)

    def retire(self, name: str) -> None:
        """Keep a task, but neither list it nor route to it any more.

        Args:
            name: The task's name; nothing changes if it is retired already.

        Raises:
            TaskNotFoundError: If there is none.
        """
        changes.turn(self.store, name, "retired")

    def restore(self, name: str) -> None:
        """Make a retired task active again.

        Args:
            name: The task's name; nothing changes if it is active already.

        Raises:
            TaskNotFoundError: If there is none.
        """
        changes.turn(self.store, name, "active")

    def verify(self) -> list[str]:
        """Every fault found: cards or rows, adapters' bytes, orphans, stacks and what they pin, the catalogue.

        Nothing is raised. What interrupted writes have left is settled first.
        """
        return self._checked(self._faults)

    def repair(self) -> list[str]:
        """Repair what can be repaired: what killed writers left, a damaged catalogue or database.

        Returns:
            A sentence for each thing done. What stays wrong is what `verify` finds afterwards.
        """
        return self._checked(self._repair)

    def vectors(self, encoder: Encoder) -> list[TaskVectors]:
        """What an encoder hears of each task, in the names' order.

        Args:
            encoder: The encoder.

        Raises:
            CardError: If any card is wrong; the message lists every fault.
            InputError: As `heard` does.
        """
        return self.heard(encoder).vectors(encoder.fingerprint) if self.refresh() else []

    def heard(self, encoder: Encoder) -> Catalog:
        """The catalogue, up to date, with the vectors of every active task by this encoder.

        Only contents that it has not heard yet are encoded; the catalogue keeps the rest. A folder's catalogue follows
        whatever encoder is asked for.

        Args:
            encoder: The encoder.

        Raises:
            CardError: If any card is wrong; the message lists every fault.
            InputError: If a database holds the vectors of another encoder, or the encoder's rows do not have the shape
                and unit length that it promises.
        """
        seq, catalog = self.refresh(), self.store.catalog
        # A folder's catalogue may have been deleted and made again: then it is bound to none.
        if (encoder.fingerprint, seq) != self._heard or catalog.encoder != encoder.fingerprint:
            self.store.hear(encoder.fingerprint)
            self._heard = (encoder.fingerprint, fill_vectors(catalog, encoder))
        return catalog

    def reindex(self, encoder: Encoder, progress: Callable[[int], None] | None = None) -> int:
        """Bind the catalogue to an encoder and encode every task with it; killed, it goes on where it was.

        Args:
            encoder: The encoder.
            progress: Told the number of tasks of each batch that was encoded and kept.

        Returns:
            The number of tasks.
        """
        catalog = self.catalog
        if catalog.encoder != encoder.fingerprint:
            catalog.bind(encoder.fingerprint)
        self._heard = (encoder.fingerprint, fill_vectors(catalog, encoder, progress))
        return catalog.count()

    def _faults(self) -> list[str]:
        return [*self.store.verify(), *pin_faults(self.store), *index_faults(self._indexes()).values()]

    def _repair(self) -> list[str]:
        done = self.store.repair()
        for folder, fault in index_faults(self._indexes()).items():
            shutil.rmtree(folder, ignore_errors=True)
            done.append(f"{fault} It was deleted.")
        return done

    def _indexes(self) -> Path:
        return self.store.derived / "index"

    def _checked(self, look: Callable[[], list[str]]) -> list[str]:
        if isinstance(self.store, FolderStore) and not self.root.is_dir():
            return [f"{self.root}: a registry is a folder. Found none. Check the path."]
        if self.store.empty:
            return []
        with changes.writing(self.store.checking(), self.place):
            return look()
