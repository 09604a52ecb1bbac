"""Rows of the catalogue: a task as canonical JSON and back, and walks over many of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from adapterhub.catalog import Catalog, TaskRecord
from adapterhub.task import Task

__all__ = ["active_names", "active_rows", "all_rows", "card_json", "record_of", "size_fault", "task_of"]

_PAGE = 1_000
_LARGEST = 1 << 20


def task_of(record: TaskRecord) -> Task:
    """The task of a row.

    Args:
        record: A row that was written here.
    """
    return Task.stored(record.name, json.loads(record.card))


def card_json(task: Task) -> str:
    """A card as canonical JSON.

    Args:
        task: The task.
    """
    return json.dumps(task.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def record_of(task: Task, source: str = "", status: Literal["active", "retired"] = "active") -> TaskRecord:
    """The row of a task.

    Args:
        task: The task.
        source: State of the files that its card was read from.
        status: Whether it is listed and routed to.
    """
    return TaskRecord(
        task.name,
        task.adapter,
        task.sha256,
        card_json(task),
        task.content_hash,
        source,
        base_model=task.base_model,
        tags=task.tags,
        status=status,
    )


def size_fault(record: TaskRecord) -> str | None:
    """What is wrong with the size of a row's card, or None: the same limit holds as for a card's file.

    Args:
        record: The row.
    """
    if len(record.card) <= _LARGEST // 4 or len(record.card.encode()) <= _LARGEST:
        return None
    found = len(record.card.encode())
    return f"a card has at most {_LARGEST:,} bytes. Found {found:,}. Leave some of its examples out."


def active_rows(catalog: Catalog, under: str = "", *, retired: bool = False) -> Iterator[TaskRecord]:
    """The active tasks at and below a branch in the names' order, never more than a page of them in memory.

    Args:
        catalog: The catalogue.
        under: The branch; empty for the whole tree.
        retired: The retired tasks instead.
    """
    after = ""
    while page := catalog.records(under, after=after, limit=_PAGE, retired=retired):
        yield from page
        after = page[-1].name


def active_names(catalog: Catalog) -> Iterator[str]:
    """Names of the active tasks in their order, never more than a page of them in memory.

    Args:
        catalog: The catalogue.
    """
    after = ""
    while page := catalog.names(after=after, limit=_PAGE):
        yield from page
        after = page[-1]


def all_rows(catalog: Catalog) -> Iterator[TaskRecord]:
    """Every task, the active ones first, each kind in the names' order.

    Args:
        catalog: The catalogue.
    """
    yield from active_rows(catalog)
    yield from active_rows(catalog, retired=True)
