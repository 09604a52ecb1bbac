"""What can be asked of a registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from adapterhub.catalog import Catalog, Scope, TaskVersion
from adapterhub.errors import CardError, InputError, IntegrityError
from adapterhub.registry._below import Below
from adapterhub.registry._changes import find
from adapterhub.registry._database import DatabaseStore
from adapterhub.registry._files import is_local, stack_in, versions_in
from adapterhub.registry._folder import FolderStore
from adapterhub.registry._hub import resolve
from adapterhub.registry._near import no_branch
from adapterhub.registry._place import is_url
from adapterhub.registry._rows import active_names, active_rows, task_of
from adapterhub.registry._store import Store
from adapterhub.task import Task, check_name

__all__ = ["Reading"]


class Reading:
    """The half of a `Registry` that changes nothing.

    Args:
        place: A folder or a database's address.
        adapters: For a database, the folder of the adapters' files.

    Raises:
        InputError: If it is neither a folder nor an address, or `adapters` was given for a folder.
        MissingExtraError: If it needs PostgreSQL's client, which is not installed.
    """

    def __init__(self, place: str | Path, *, adapters: str | Path | None = None) -> None:
        self.store: Store
        if is_url(place):
            self.store = DatabaseStore(str(place), None if adapters is None else Path(adapters))
        elif adapters is None:
            self.store = FolderStore(Path(place))
        else:
            raise InputError(
                f"Adapters lie beside their cards in a folder. Found `adapters` for {place}. Leave it out."
            )

    def __repr__(self) -> str:
        return f"Registry({self.place!r})"

    @property
    def place(self) -> str:
        """The folder, or the address without a password."""
        return self.store.place

    @property
    def root(self) -> Path:
        """The folder that a base model such as `_base` lies in: that of the cards, or a database's of the adapters."""
        return self.store.root

    @property
    def catalog(self) -> Catalog:
        """The tables, brought up to date."""
        self.refresh()
        return self.store.catalog

    @property
    def index_folder(self) -> Path | None:
        """The folder for vector indexes, which are derived; None while there is nothing to index."""
        return None if self.store.empty else self.store.derived / "index"

    def __getitem__(self, name: str) -> Task:
        """The task of that name.

        Args:
            name: A task's name.

        Raises:
            TaskNotFoundError: If there is none; the message names the nearest one.
            CardError: If the name breaks its rule or the card is wrong.
        """
        find(self.store, name, retired=False)
        return self.store.task(name)

    def __contains__(self, name: object) -> bool:
        try:
            return self.store.status(check_name(str(name))) == "active"
        except CardError:
            return False

    def __iter__(self) -> Iterator[str]:
        return active_names(self.store.catalog) if self.refresh() else iter(())

    def __len__(self) -> int:
        return self.store.catalog.count() if self.refresh() else 0

    def __bool__(self) -> bool:
        return True  # an empty registry is still one: `registry or default` keeps it

    def tasks(self, prefix: str = "") -> Iterator[Task]:
        """The tasks at and below a branch, in the names' order, one after another: a million need no memory.

        Args:
            prefix: The branch's name; the empty string is the whole tree.

        Raises:
            TaskNotFoundError: If there is no such branch; the message names the nearest one.
            CardError: If any card is wrong; the message lists every fault.
        """
        check_name(prefix or "x")
        there = self.refresh() > 0
        if prefix and not (there and self.store.catalog.names(prefix, limit=1)):
            raise no_branch(prefix, self.place, self.store.near(prefix))
        return map(task_of, active_rows(self.store.catalog, prefix)) if there else iter(())

    def under(self, prefix: str) -> list[Task]:
        """The tasks at and below a branch, in the names' order, as a list; arguments and errors are as of `tasks`."""
        return list(self.tasks(prefix))

    def groups(self, prefix: str = "") -> list[tuple[str, int]]:
        """The next level below a branch: each full name with its number of tasks at and below it.

        Args:
            prefix: The branch's name; the empty string is the root.
        """
        check_name(prefix or "x")
        return self.store.catalog.children(prefix) if self.refresh() else []

    def versions(self, name: str) -> list[str]:
        """The versions of a task's adapter whose files are here, oldest first.

        Args:
            name: The name of a task, active or retired.

        Raises:
            TaskNotFoundError: If there is none.
        """
        find(self.store, name)
        try:
            return versions_in(self.store.home(name))
        except InputError:  # a database without a folder of adapters
            return []

    def history(self, name: str) -> list[TaskVersion]:
        """Every adapter that a task is known to have had, oldest first, places on the Hub among them.

        Args:
            name: The name of a task, active or retired.

        Raises:
            TaskNotFoundError: If there is none.
        """
        find(self.store, name)
        self.refresh()
        return self.store.history(name)

    def adapter_path(self, name: str) -> Path | None:
        """The folder of a task's adapter, or None if the task has none yet.

        An adapter on the Hub is pulled at the first use and held against the card's content hash.

        Args:
            name: The task's name.

        Raises:
            TaskNotFoundError: If there is no such task.
            IntegrityError: If the folder is missing, or is not what the card states.
            HubError: If it cannot be pulled.
        """
        task = self[name]
        if task.adapter is None:
            return None
        if not is_local(task.adapter):
            return resolve(task.adapter, self.store.derived, task.sha256)
        folder = self.store.home(name) / task.adapter
        if not folder.is_dir():
            there = ", ".join(self.versions(name)) or "no version"
            raise IntegrityError(
                f"{name}: its card names the adapter {task.adapter}. Found {there}. Restore the folder."
            )
        return folder

    def below(self, name: str) -> tuple[Below, ...]:
        """The adapters that a task's adapter stands on, in the versions that it was trained on, from the lowest up.

        Args:
            name: The task's name.

        Raises:
            TaskNotFoundError: If there is no such task.
            IntegrityError: If one of them is no longer there.
            HubError: If one cannot be pulled.
        """
        folder = self.adapter_path(name)
        stack = {} if folder is None else stack_in(folder)
        return tuple(Below(other, sha256, self.pinned_path(other, sha256)) for other, sha256 in stack.items())

    def pinned_path(self, name: str, sha256: str) -> Path:
        """The folder of the adapter of a task that has this content hash, be it the newest or an older version.

        Args:
            name: The task's name.
            sha256: The content hash.

        Raises:
            TaskNotFoundError: If there is no such task.
            IntegrityError: If none of its adapters has that hash.
            HubError: If it cannot be pulled.
        """
        for item in self.history(name):
            if item.sha256 == sha256 and not is_local(item.version):
                return resolve(item.version, self.store.derived, sha256)
            if item.sha256 == sha256 and (folder := self.store.home(name) / item.version).is_dir():
                return folder
        there = ", ".join(item.version for item in self.history(name)) or "no version"
        raise IntegrityError(
            f"{name}: another adapter stands on the one with sha256 {sha256}. Found {there}, none with that hash. "
            "Restore its folder, or train what stands on it again."
        )

    def base_path(self, name: str) -> str:
        """A task's base model: a folder of this registry such as `_base`, or else what the card says.

        Args:
            name: The task's name.

        Raises:
            TaskNotFoundError: If there is no such task.
        """
        return self.place_of_base(self[name].base_model)

    def bases(self) -> list[str]:
        """The base models of all tasks that have an adapter, each as `base_path` gives it, sorted."""
        if not self.refresh():
            return []
        catalog, found, seen = self.store.catalog, set[str](), 0
        total = len(catalog.ids(Scope()))
        for record in active_rows(catalog) if total else ():
            if record.version is not None and record.base_model not in found:
                found.add(record.base_model)
                seen += len(catalog.ids(Scope(base_model=record.base_model)))
            if seen == total:  # usually after the first task, however many there are
                break
        return sorted({self.place_of_base(base) for base in found})

    def inherited(self, group: str) -> Mapping[str, object]:
        """The defaults that a group has for its tasks, with those of the groups above it; none in a database.

        Args:
            group: The group's name; the empty string is the root.

        Raises:
            CardError: If a group's file is wrong; the message lists every fault.
        """
        return self.store.inherited(group and check_name(group))

    def read_outside(self, name: str, card: Path) -> Task:
        """Read a card that lies elsewhere as if it stood here under a name.

        Args:
            name: The task's name here.
            card: The file.

        Raises:
            CardError: If the name, the card or a group's file above it is wrong; the message lists every fault.
        """
        return self.store.read_outside(check_name(name), card)

    def refresh(self) -> int:
        """Bring the catalogue up to the cards; only those whose files have changed are read.

        Returns:
            The number of the catalogue's newest commit: unchanged where nothing has changed.

        Raises:
            CardError: If any card is wrong, after all others have been mirrored; the message lists every fault.
        """
        return self.store.refresh()

    def place_of_base(self, base: str) -> str:
        """Where a base model lies: a folder of this registry such as `_base`, or else what the card says.

        Args:
            base: What a card says.
        """
        inside = self.root / base
        is_ours = bool(base) and ".." not in Path(base).parts and inside.is_dir()
        return str(inside) if is_ours else base
