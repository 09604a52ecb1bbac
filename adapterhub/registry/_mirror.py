"""The catalogue kept equal to the folder: only cards whose files have changed are read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapterhub.catalog import Catalog, TaskRecord
from adapterhub.registry._rows import active_rows, record_of
from adapterhub.task import RETIRED, Task, card_files, read_cards, scan_tree

__all__ = ["Difference", "differences", "mirror", "row_of"]


@dataclass(frozen=True)
class Difference:
    """What differs between a folder and its catalogue.

    Args:
        states: State of the files of each task that is new or changed, by name.
        cards: Where their cards lie, by name.
        gone: Names of the tasks that are gone.
        faults: Faults of the tree itself.
    """

    states: dict[str, str]
    cards: dict[str, Path]
    gone: list[str]
    faults: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.states or self.gone)


def differences(root: Path, catalog: Catalog) -> Difference:
    """What differs between the folder and the catalogue.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.
    """
    known = {record.name: record.source for record in active_rows(catalog)}
    tree = scan_tree(root)
    active = list(known)
    for name in tree.retired:
        record = catalog.get(name)
        known |= {name: record.source} if record is not None else {}
    files = {**tree.tasks, **tree.retired}
    states = {name: _state(root, paths) for name, paths in files.items()}
    new = {name: state for name, state in states.items() if known.get(name) != state}
    gone = [name for name in active if name not in states]
    return Difference(new, {name: files[name][0] for name in new}, gone, tree.faults)


def mirror(root: Path, catalog: Catalog) -> tuple[str, ...]:
    """Bring the catalogue up to the folder's state.

    Args:
        root: Folder of the tree.
        catalog: The catalogue.

    Returns:
        Every fault of every card that is wrong; a wrong card's row stays as it was.
    """
    found = differences(root, catalog)
    tasks, wrong = read_cards(root, found.cards)
    if tasks:
        catalog.put([record_of(task, found.states[name], _status(found.cards[name])) for name, task in tasks.items()])
    if found.gone:
        catalog.delete(found.gone)
    return (*found.faults, *wrong)


def row_of(root: Path, task: Task, card: str) -> TaskRecord:
    """The row of one task that has just been stored.

    Args:
        root: Folder of the tree.
        task: The task, as its card says.
        card: Name of the card's file.
    """
    files = card_files(root, task.name)
    return record_of(task, _state(root, (files[0].with_name(card), *files[1:])), _status(files[0].with_name(card)))


def _status(card: Path) -> Literal["active", "retired"]:
    return "retired" if card.name == RETIRED else "active"


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
