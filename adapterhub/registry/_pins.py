"""What sealed adapters stand on: whether it is still there, with the hash that they name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapterhub.errors import AdapterHubError, InputError, IntegrityError
from adapterhub.registry._files import adapter_faults, hash_of, is_local, stack_in
from adapterhub.registry._hub import pulled_folder
from adapterhub.registry._rows import all_rows, task_of
from adapterhub.registry._store import Store

__all__ = ["pin_faults"]


def pin_faults(store: Store) -> list[str]:
    """Every pin in the seals of the tasks' adapters behind which there is no adapter any more; one line each.

    A pin names a task and a content hash. It holds whatever that task's card names now, as long as the version with
    that hash is there: the newest, an older one, or one on the Hub, which is pulled at its first use.

    Args:
        store: What lies behind the registry; what its own `verify` has told is not told again.
    """
    faults: list[str] = []
    try:
        for fault in _faults(store):
            faults.append(fault)  # what was found before the tables broke off is kept
    except AdapterHubError:
        pass  # tables that cannot be read: the store's own `verify` tells it
    return faults


def _faults(store: Store) -> Iterator[str]:
    known: dict[tuple[str, str], str] = {}
    for name, stack, folder, active in _sealed(store):
        try:
            pinned = stack_in(folder)
        except IntegrityError as error:
            if not adapter_faults(folder, None):  # otherwise the store has told it
                yield " ".join(str(error).splitlines())
            continue
        # Entries of an active card's stack that are no tasks are told by the store.
        told = {other for other in stack if active and store.status(other) is None}
        if tuple(pinned) != stack and not told:
            yield (
                f"{name}: `stack` should be what its adapter was trained on top of: {list(pinned)}. Found "
                f"{list(stack)}. Correct the card."
            )
        for other, sha256 in pinned.items():
            if (other, sha256) not in known:
                known[other, sha256] = _found_instead(store, other, sha256)
            if known[other, sha256] and other not in told:
                yield (
                    f"{name}: its adapter stands on {other} with sha256 {sha256}. Found {known[other, sha256]}. "
                    f"Restore it from a copy, or train {name} again."
                )


def _sealed(store: Store) -> Iterator[tuple[str, tuple[str, ...], Path, bool]]:
    """Of every task whose adapter is here: name, the card's stack, the adapter's folder, and whether it is active."""
    for record in all_rows(store.catalog):
        folder = None if record.version is None else _place(store, record.name, record.version)
        if folder is None or not folder.is_dir():
            continue
        try:
            stack = task_of(record).stack
        except (ValueError, TypeError, KeyError):
            continue  # a broken row is told by the store
        yield record.name, stack, folder, record.status == "active"


def _place(store: Store, name: str, version: str) -> Path | None:
    """Where a version lies once it is here; None in a registry without adapters, or for no place on the Hub."""
    try:
        return store.home(name) / version if is_local(version) else pulled_folder(version, store.derived)
    except InputError:
        return None


def _found_instead(store: Store, name: str, sha256: str) -> str:
    """What is there in the place of a pinned adapter; empty where it is the one."""
    if store.status(name) is None:
        return f"no task {name}"
    try:
        history, wrong = store.history(name), ""
    except IntegrityError as error:  # a version that is not whole
        return " ".join(str(error).splitlines()).rstrip(".")
    for item in history:
        folder = _place(store, name, item.version) if item.sha256 == sha256 else None
        if folder is None:
            continue
        if not folder.is_dir():
            if not is_local(item.version):
                return ""
            wrong = wrong or f"no folder {folder}"
            continue
        try:
            found = hash_of(folder)
        except IntegrityError as error:
            wrong = " ".join(str(error).splitlines()).rstrip(".")
            continue
        if found == sha256:
            return ""
        wrong = f"{found} in {folder}"
    return wrong or f"{', '.join(item.version for item in history) or 'no version'} with others"
