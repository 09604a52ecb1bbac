"""A whole registry as a file of JSON lines, or as a folder of cards."""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from adapterhub.catalog import TaskRecord
from adapterhub.durable import durable_folder, sync_folder
from adapterhub.errors import InputError
from adapterhub.registry._bases import copy_bases
from adapterhub.registry._changes import told, writing
from adapterhub.registry._files import copy_adapter, hash_of, versions_in
from adapterhub.registry._folder import FolderStore
from adapterhub.registry._history import ARRIVING
from adapterhub.registry._lines import written
from adapterhub.registry._place import adapters_beside
from adapterhub.registry._registry import Registry
from adapterhub.registry._rows import all_rows, task_of
from adapterhub.registry._store import Arrival, Store
from adapterhub.registry._vector_file import content_key, write_vectors
from adapterhub.task import GROUP

__all__ = ["Exported", "export_tasks"]

_CARDS = 500


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Args:
        tasks: Number of tasks, retired ones among them.
        adapters: Number of adapters' folders copied.
        heard: Number of tasks whose vectors were written.
    """

    tasks: int
    adapters: int
    heard: int


def export_tasks(
    registry: Registry,
    target: str | Path,
    *,
    vectors: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write all tasks of a registry, with their versions and the retired ones, as `import_tasks` reads them.

    Args:
        registry: The registry.
        target: A file `….jsonl`, which is replaced in one step, with the adapters' files in `<stem>.adapters` beside
            it; or a new folder, which becomes a folder of cards.
        vectors: Also write what the bound encoder hears of each line into this safetensors file.
        progress: Told the number of tasks of each batch.

    Raises:
        InputError: If the folder is not empty, or vectors are asked for and there are none.
        CardError: If any card is wrong; the message lists every fault.
        IntegrityError: If the disk is full.
    """
    with told(str(target)):
        return _export(registry, Path(target), None if vectors is None else Path(vectors), progress)


def _export(registry: Registry, target: Path, vectors: Path | None, progress: Callable[[int], None] | None) -> Exported:
    there = registry.refresh() > 0
    encoder = registry.store.catalog.encoder if there else None
    if vectors is not None and encoder is None:
        raise InputError(
            f"Vectors are exported once they are there. {registry.place} has none. Run adapterhub reindex."
        )
    records = (row for row in all_rows(registry.store.catalog) if row.source != ARRIVING) if there else iter(())
    if target.suffix not in (".jsonl", ".json"):
        if vectors is not None:
            raise InputError(f"Vectors go with lines. Found the folder {target}. Export to a file …jsonl beside them.")
        return _to_folder(registry.store, target, records, progress)
    ids, contents = array("q"), array("Q")
    tasks, copied = _to_file(registry.store, target, records, ids, contents, progress)
    heard = 0
    if vectors is not None and encoder is not None:
        numbers, keys = np.array(ids, dtype=np.int64), np.array(contents, dtype=np.uint64)
        heard = write_vectors(vectors, registry.store.catalog, encoder, numbers, keys)
    return Exported(tasks, copied, heard)


def _to_file(
    store: Store,
    target: Path,
    records: Iterator[TaskRecord],
    ids: array[int],
    contents: array[int],
    progress: Callable[[int], None] | None,
) -> tuple[int, int]:
    adapters, copied = adapters_beside(target), 0
    bases = dict[str, None]()
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            while batch := list(islice(records, _CARDS)):
                for record in batch:
                    file.write(written(record, store.history(record.name)) + "\n")
                    copied += _copy(_versions(store, record.name), adapters / record.name)
                    ids.append(record.id)
                    contents.append(content_key(record.content_hash))
                    bases[record.base_model] = None
                if progress is not None:
                    progress(len(batch))
            file.flush()
            os.fsync(file.fileno())
        copy_bases(bases, store.root, adapters)
        aside.replace(target)
        sync_folder(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return len(ids), copied


def _to_folder(
    store: Store, target: Path, records: Iterator[TaskRecord], progress: Callable[[int], None] | None
) -> Exported:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"An export goes into a new or an empty folder. Found {target}, which is not. Name another.")
    copy, tasks, copied = FolderStore(target), 0, 0
    bases = dict[str, None]()
    if isinstance(store, FolderStore):
        _copy_groups(store.root, target)
    while batch := list(islice(records, _CARDS)):
        arrivals = []
        for record in batch:
            adapters = _versions(store, record.name)
            bases[record.base_model] = None
            copied += len(adapters)
            history = tuple(store.history(record.name))
            arrivals.append(Arrival(task_of(record), adapters, history, record.status))
        with writing(copy.writing(), copy.place):
            copy.place_all(arrivals)
        tasks += len(batch)
        if progress is not None:
            progress(len(batch))
    copy_bases(bases, store.root, target)
    return Exported(tasks, copied, 0)


def _versions(store: Store, name: str) -> dict[str, Path]:
    try:
        folder = store.home(name)
    except InputError:  # a database without a folder of adapters
        return {}
    return {version: folder / version for version in versions_in(folder)}


def _copy(versions: dict[str, Path], folder: Path) -> int:
    """Copy adapters beside the lines; those that are there already, the same, are left alone."""
    copied = 0
    for version, source in versions.items():
        there = folder / version
        if there.is_dir() and (there.samefile(source) or hash_of(there) == hash_of(source)):
            continue
        if there.is_dir():
            raise InputError(f"A version never changes. Found another {version} in {folder}. Export to another place.")
        durable_folder(folder)
        aside = folder / f".{version}.{os.getpid()}"
        try:
            copy_adapter(source, aside)
            aside.replace(there)
            sync_folder(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        copied += 1
    return copied


def _copy_groups(root: Path, target: Path) -> None:
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name[0] not in "._"]
        if GROUP in files:
            folder = target / Path(place).relative_to(root)
            durable_folder(folder)
            shutil.copyfile(Path(place, GROUP), folder / GROUP)
