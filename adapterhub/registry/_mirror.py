"""The catalogue kept equal to the folder: only cards whose files have changed are read again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from adapterhub.catalog import Catalog, TaskRecord
from adapterhub.task import Task, card_files, read_cards, scan_tree

__all__ = ["card_json", "mirror", "put_one", "task_of"]


def mirror(root: Path, catalog: Catalog) -> tuple[str, ...]:
    """Bring the catalogue up to the folder's state.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.

    Returns:
        Every fault of every card that is wrong; a wrong card's row stays as it was.
    """
    new, gone, faults = changes(root, catalog)
    tasks, wrong = read_cards(root, new)
    if tasks:
        catalog.put([_record(task, new[name]) for name, task in tasks.items()])
    if gone:
        catalog.delete(gone)
    return (*faults, *wrong)


def changes(root: Path, catalog: Catalog) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
    """What differs between the folder and the catalogue.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.

    Returns:
        The state of the files of each task that is new or changed, the names of those that are gone, and the faults
        of the tree itself.
    """
    known = {record.name: record.source for record in catalog.records()}
    files, faults = scan_tree(root)
    states = {name: _state(root, paths) for name, paths in files.items()}
    new = {name: state for name, state in states.items() if known.get(name) != state}
    return new, [name for name in known if name not in states], faults


def put_one(root: Path, catalog: Catalog, task: Task) -> None:
    """Write the row of one task that has just been stored.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.
        task: The task, as its card says.
    """
    catalog.put([_record(task, _state(root, card_files(root, task.name)))])


def task_of(record: TaskRecord) -> Task:
    """The task of a row.

    Args:
        record: A row that was written here.
    """
    return Task.from_dict(record.name, json.loads(record.card))


def card_json(task: Task) -> str:
    """A card as canonical JSON.

    Args:
        task: The task.
    """
    return json.dumps(task.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _record(task: Task, state: str) -> TaskRecord:
    return TaskRecord(task.name, task.adapter, task.sha256, card_json(task), task.content_hash, state)


def _state(root: Path, paths: Iterable[Path]) -> str:
    # Every write here is a rename, so it gives the file a new inode: two edits within one tick of the clock differ too.
    parts = []
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # gone since the folder was listed; the next look will see it
        where = path.relative_to(root).as_posix()
        parts.append(f"{where}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}")
    return "|".join(parts)
