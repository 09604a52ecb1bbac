"""Adding and changing one task: what must hold before anything is written, and what is said when the disk refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from adapterhub.errors import AdapterHubError, CardError, InputError, IntegrityError
from adapterhub.registry._files import adapter_faults, hash_of, is_local, stack_in, versions_in
from adapterhub.registry._hub import resolve
from adapterhub.registry._near import no_task
from adapterhub.registry._rows import task_of
from adapterhub.registry._store import Arrival, Status, Store
from adapterhub.registry._verify import stack_faults
from adapterhub.task import Task, check_name

__all__ = ["add", "add_example", "find", "label_fault", "stack_of", "told", "turn", "writing"]


@contextmanager
def writing(lock: AbstractContextManager[None], place: str) -> Iterator[None]:
    """Be the one writer, and tell what the disk refuses.

    Args:
        lock: The store's lock.
        place: The registry, for messages.

    Raises:
        IntegrityError: If the disk is full, or a folder or file cannot be written to.
    """
    with told(place), lock:
        yield


@contextmanager
def told(place: str) -> Iterator[None]:
    """Make one error of ours of a full disk, or of a folder without rights.

    Args:
        place: What is written, for the message.

    Raises:
        IntegrityError: If the disk is full, or a folder or file cannot be written to.
    """
    try:
        yield
    except AdapterHubError:
        raise
    except OSError as error:
        text = "What was not acknowledged has not been changed. Free space or correct the rights, then try again."
        raise IntegrityError(f"{place} cannot be written to: {error.strerror or error}. {text}") from error


def find(store: Store, name: str, *, retired: bool = True) -> Status:
    """See to it that a task is there.

    Args:
        store: What lies behind the registry.
        name: The task's name.
        retired: Whether a retired one will do.

    Raises:
        TaskNotFoundError: If it is not; the message names the nearest one.
        CardError: If the name breaks its rule.
    """
    status = store.status(check_name(name))
    if status is None or (status == "retired" and not retired):
        names = store.near(name)
        count = store.count()
        raise no_task(name, store.place, count, names, retired=status == "retired")
    return status


def add(store: Store, task: Task, adapter: Path | None, *, replace: bool) -> Task:
    """Store a task; the arguments and errors are those of `Registry.add`.

    Args:
        store: What lies behind the registry.
        task: The task.
        adapter: A sealed adapter folder, or None.
        replace: Whether it may be there already.
    """
    if adapter is None and task.adapter is not None and not is_local(task.adapter) and task.sha256 is None:
        task = _stated(task, resolve(task.adapter, store.derived, None))
    with writing(store.writing(), store.place):
        before = _before(store, task, replace=replace)
        adapters = {}
        if adapter is not None:
            task = dataclasses.replace(task, adapter=_next_version(store, task.name), sha256=None)
            adapters = {str(task.adapter): adapter}
        elif task.adapter is not None and is_local(task.adapter):
            task = _stated(task, store.home(task.name) / task.adapter)
        local = task.adapter if adapter is None and is_local(task.adapter) else None
        folder = adapter if local is None else store.home(task.name) / local
        faults = _stack_faults(store, task, folder) + ([] if before is None else label_fault(before, task))
        if faults:
            raise CardError(faults)
        (row,) = store.place_all([Arrival(task, adapters)])
    return task_of(row)


def add_example(store: Store, name: str, text: str) -> Task:
    """Store one more example with a task; the arguments and errors are those of `Registry.add_example`.

    Args:
        store: What lies behind the registry.
        name: The task's name.
        text: The example.
    """
    with writing(store.writing(), store.place):
        find(store, name, retired=False)
        task = store.task(name)
        if text in task.examples:
            return task
        (row,) = store.place_all([Arrival(dataclasses.replace(task, examples=(*task.examples, text)))])
    return task_of(row)


def turn(store: Store, name: str, status: Status) -> None:
    """Retire a task, or make it active again.

    Args:
        store: What lies behind the registry.
        name: The task's name.
        status: What it shall be.
    """
    find(store, name)
    with writing(store.writing(), store.place):
        if find(store, name) != status:
            store.turn(name, status)


def label_fault(before: Task, task: Task) -> list[str]:
    """What is wrong where a card with the same adapter as before has other labels: a list of at most one sentence.

    The head's outputs are in the order of the labels it was trained with, and only the card knows it.

    Args:
        before: The task as it is stored.
        task: The task as it shall be.
    """
    same = task.adapter is not None and (before.adapter, before.sha256) == (task.adapter, task.sha256)
    if not same or not task.is_classification or before.labels == task.labels:
        return []
    return [
        f"{task.name}: `labels` should be in the order of the outputs of the adapter {task.adapter}: "
        f"{', '.join(before.labels)}. Found {', '.join(task.labels)}. Keep their order, or register another adapter."
    ]


def stack_of(store: Store, name: str) -> tuple[str, ...] | None:
    """The stack of an active task, or None where there is no such task.

    Args:
        store: What lies behind the registry; its catalogue is up to date.
        name: The task's name.
    """
    record = store.catalog.get(name)
    return task_of(record).stack if record is not None and record.status == "active" else None


def _before(store: Store, task: Task, *, replace: bool) -> Task | None:
    status = store.status(task.name)
    if status is None:
        return None
    if not replace:
        state = "already" if status == "active" else "as a retired task: restore it"
        raise InputError(
            f"A task is added once. {task.name!r} is in {store.place} {state}. Replace it with "
            "`replace=True` (`adapterhub add --replace`), or choose another name."
        )
    try:
        return store.task(task.name) if status == "active" else None
    except CardError:  # a broken card is what is to be replaced
        return None


def _stack_faults(store: Store, task: Task, folder: Path | None) -> list[str]:
    pinned = {} if folder is None else stack_in(folder)
    if folder is not None and tuple(pinned) != task.stack:
        return [
            f"{task.name}: `stack` should be what its adapter was trained on top of: {list(pinned)}. Found "
            f"{list(task.stack)}. Correct the card, or seal the adapter with its stack."
        ]
    if not task.stack:
        return []
    store.catch_up()
    faults = stack_faults(task, lambda name: stack_of(store, name), lambda: list(store.near(task.stack[0])))
    return faults or [
        f"{task.name}: its adapter was trained on top of {name} with sha256 {sha256}. Found "
        f"{', '.join(item.version for item in store.history(name)) or 'no adapter'} with others. Add that one first."
        for name, sha256 in pinned.items()
        if sha256 not in {item.sha256 for item in store.history(name)}
    ]


def _next_version(store: Store, name: str) -> str:
    known = [version.version for version in store.catalog.versions(name)] + versions_in(store.home(name))
    return f"v{1 + max((int(version[1:]) for version in known if is_local(version)), default=0)}"


def _stated(task: Task, folder: Path) -> Task:
    """The task with the content hash of an adapter that is there, which must be the one stated if one is."""
    faults = adapter_faults(folder, task.sha256)
    if faults:
        raise IntegrityError(f"{task.name}: its adapter is not what the card states. {' '.join(faults)}")
    return dataclasses.replace(task, sha256=hash_of(folder))
