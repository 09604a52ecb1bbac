"""The registry: the API over a folder of cards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from adapterhub.catalog import SqliteCatalog, TaskRecord, TaskVectors
from adapterhub.encoder import Encoder
from adapterhub.errors import CardError, InputError, IntegrityError, TaskNotFoundError, did_you_mean
from adapterhub.registry._files import adapter_faults, durable_folder, hash_of, versions_in
from adapterhub.registry._hub import resolve
from adapterhub.registry._lock import locked
from adapterhub.registry._mirror import changes, mirror, put_one, task_of
from adapterhub.registry._place import DERIVED, derived_folder
from adapterhub.registry._shelf import Shelf
from adapterhub.registry._vectors import fill_vectors
from adapterhub.registry._verify import stack_faults, verify
from adapterhub.task import CARD, Task, check_name, read_card, scan_tree

__all__ = ["Registry"]


class Registry:
    """A tree of tasks in a folder of cards.

    The cards are the truth. A catalogue in `.catalog/` beside them is derived from them and may be deleted at any time
    that no one writes; where the folder cannot be written to it lies in the user's cache. Reading one task reads its
    card; whatever asks for several brings the catalogue up to date first.

    Args:
        root: The folder. It is made by the first `add` if it is not there.

    Raises:
        InputError: If it is not a folder.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise InputError(f"A registry is a folder of cards. Found {str(root)!r}. Give the path of a folder.")
        self.root = Path(root)
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"A registry is a folder. Found the file {self.root}. Give the folder with the cards.")

    def __repr__(self) -> str:
        return f"Registry({str(self.root)!r})"

    def __getitem__(self, name: str) -> Task:
        """The task of that name.

        Args:
            name: A task's name.

        Raises:
            TaskNotFoundError: If there is none; the message names the nearest one.
            CardError: If the name breaks its rule or the card is wrong.
        """
        self._find(name)
        return read_card(self.root, name)

    def __contains__(self, name: object) -> bool:
        try:
            return (self.root / check_name(str(name)) / CARD).is_file()
        except CardError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter([record.name for record in self._records()])

    def __len__(self) -> int:
        return len(self._records())

    def __bool__(self) -> bool:
        return True  # an empty registry is still one: `registry or default` keeps it

    def under(self, prefix: str) -> list[Task]:
        """The tasks at and below a branch, in the names' order.

        Args:
            prefix: The branch's name; the empty string is the whole tree.

        Raises:
            TaskNotFoundError: If there is no such branch; the message names the nearest one.
            CardError: If any card is wrong; the message lists every fault.
        """
        records = self._records(prefix and check_name(prefix))
        if prefix and not records:
            branches = {name.rsplit("/", cut)[0] for name in self for cut in range(1 + name.count("/"))}
            near = did_you_mean(prefix, sorted(branches))
            raise TaskNotFoundError(f"No branch {prefix!r} in {self.root}.{near} See `adapterhub ls`.")
        return [task_of(record) for record in records]

    def add(self, task: Task, adapter: str | Path | None = None, *, replace: bool = False) -> Task:
        """Store a task; it is there whole, and lasts through a loss of power, or nothing has changed.

        Args:
            task: The task. What its card inherits from the groups above is not written again.
            adapter: A sealed adapter folder, copied as the task's next version. Without it the card keeps the
                adapter that it names: a version that is there, a pinned place on the Hub, or none.
            replace: Whether a task of that name may be there already. Its older versions stay.

        Returns:
            The task as stored, with its adapter and content hash.

        Raises:
            InputError: If the task is there and `replace` is not set, or the folder cannot be written to.
            CardError: If the card, a group's file above it or its stack is wrong.
            IntegrityError: If the adapter's files are not whole, or not those that the card states.
            HubError: If an adapter on the Hub cannot be pulled.
        """
        if adapter is None and task.adapter is not None and task.adapter.startswith("hf://") and task.sha256 is None:
            task = self._stated(task, resolve(task.adapter, self._derived(), None))
        shelf = self._shelf()
        with shelf.writing():
            self._check_addition(task, replace=replace)
            if adapter is None and task.adapter is not None and not task.adapter.startswith("hf://"):
                task = self._stated(task, self.root / task.name / task.adapter)
            catalog = self._catalog()
            catalog.get(task.name)  # a damaged catalogue is told before anything changes
            stored = shelf.place(task, None if adapter is None else Path(adapter))
            put_one(self.root, catalog, stored)
        return stored

    def remove(self, name: str) -> None:
        """Remove a task with all its versions; tasks below it and its group's file stay.

        Args:
            name: The task's name.

        Raises:
            TaskNotFoundError: If there is none.
            InputError: If the folder cannot be written to.
        """
        self._find(name)
        shelf = self._shelf()
        with shelf.writing():
            self._find(name)  # another process may have been faster
            shelf.take(name)
            catalog = self._catalog()
            if catalog.get(name) is not None:
                catalog.delete([name])

    def versions(self, name: str) -> list[str]:
        """The versions of a task's adapter in the folder, oldest first.

        Args:
            name: The task's name.

        Raises:
            TaskNotFoundError: If there is none.
        """
        return versions_in(self._find(name))

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
        if task.adapter.startswith("hf://"):
            return resolve(task.adapter, self._derived(), task.sha256)
        folder = self.root / name / task.adapter
        if not folder.is_dir():
            there = ", ".join(self.versions(name)) or "no version"
            raise IntegrityError(
                f"{name}: its card names the adapter {task.adapter}. Found {there}. Restore the folder."
            )
        return folder

    def base_path(self, name: str) -> str:
        """A task's base model: a folder of this registry such as `_base`, or else what the card says.

        Args:
            name: The task's name.

        Raises:
            TaskNotFoundError: If there is no such task.
        """
        base = self[name].base_model
        inside = self.root / base
        is_ours = bool(base) and ".." not in Path(base).parts and inside.is_dir()
        return str(inside) if is_ours else base

    def verify(self) -> list[str]:
        """Every fault found: cards, adapters' bytes, orphans, stacks, the catalogue. Nothing is raised.

        What interrupted writes have left is settled first.
        """
        if not self.root.is_dir():
            return [f"{self.root}: a registry is a folder. Found none. Check the path."]
        derived = self._derived()
        with Shelf(self.root, derived).writing():
            return verify(self.root, self._catalog(), derived)

    def vectors(self, encoder: Encoder) -> list[TaskVectors]:
        """What an encoder hears of each task, in the names' order.

        Only contents that this encoder has not heard yet are encoded; the catalogue keeps the rest.

        Args:
            encoder: The encoder.

        Raises:
            CardError: If any card is wrong; the message lists every fault.
            InputError: If the encoder's rows do not have the shape and unit length that it promises.
        """
        if not self.root.is_dir():
            return []
        self.refresh()
        catalog = self._catalog()
        fill_vectors(catalog, encoder)
        return catalog.vectors(encoder.fingerprint)

    def refresh(self) -> int:
        """Bring the catalogue up to the cards; only those whose files have changed are read.

        Returns:
            The number of the catalogue's newest commit: unchanged where nothing has changed.

        Raises:
            CardError: If any card is wrong, after all others have been mirrored; the message lists every fault.
        """
        derived = self._derived()
        catalog = self._catalog()
        new, gone, faults = changes(self.root, catalog)
        if new or gone:
            with locked(derived / "lock"):
                faults = mirror(self.root, catalog)
        if faults:
            raise CardError(faults)
        return catalog.seq

    def _derived(self) -> Path:
        return derived_folder(self.root)

    def _catalog(self) -> SqliteCatalog:
        return SqliteCatalog(self._derived() / "catalog.sqlite")

    def _records(self, prefix: str = "") -> list[TaskRecord]:
        if not self.root.is_dir():
            return []
        self.refresh()
        return self._catalog().records(prefix)

    def _find(self, name: str) -> Path:
        folder = self.root / check_name(name)
        if not (folder / CARD).is_file():
            names, _ = scan_tree(self.root)
            near = did_you_mean(name, names)
            hint = name.rpartition("/")[0]
            more = f" See `adapterhub ls{' ' + hint if hint else ''}`."
            raise TaskNotFoundError(f"No task {name!r} in {self.root} ({len(names):,} tasks).{near}{more}")
        return folder

    def _shelf(self) -> Shelf:
        durable_folder(self.root)
        derived = self._derived()
        if derived != self.root / DERIVED:
            raise InputError(
                f"A registry is changed where it can be written to. {self.root} cannot. Copy it elsewhere."
            )
        return Shelf(self.root, derived)

    def _check_addition(self, task: Task, *, replace: bool) -> None:
        if task.name in self and not replace:
            raise InputError(
                f"A task is added once. {task.name!r} is in {self.root} already. Replace it with "
                "`replace=True` (`adapterhub add --replace`), or choose another name."
            )
        catalog = self._catalog()
        if task.stack:
            mirror(self.root, catalog)
        stacks = {record.name: task_of(record).stack for record in catalog.records()} if task.stack else {}
        faults = stack_faults(task, stacks)
        if faults:
            raise CardError(faults)

    def _stated(self, task: Task, folder: Path) -> Task:
        """The task with the content hash of an adapter that is there, which must be the one stated if one is."""
        faults = adapter_faults(folder, task.sha256)
        if faults:
            raise IntegrityError(f"{task.name}: its adapter is not what the card states. {' '.join(faults)}")
        return dataclasses.replace(task, sha256=hash_of(folder))
