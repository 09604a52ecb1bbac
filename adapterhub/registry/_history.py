"""The adapters that a task has had, put into the tables in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adapterhub.catalog import Catalog, TaskRecord
from adapterhub.registry._store import Arrival

__all__ = ["ARRIVING", "put_history"]

ARRIVING = "arriving"  # the source of a row whose arrival is not finished


def put_history(catalog: Catalog, rows: Sequence[TaskRecord], arrivals: Sequence[Arrival]) -> None:
    """Commit the older versions, oldest first; a task that is not there yet is not seen before its own row comes.

    Args:
        catalog: The tables.
        rows: The rows that will be committed next.
        arrivals: Where they come from.
    """
    waiting = []
    for row, arrival in zip(rows, arrivals, strict=True):
        history = list(arrival.history)
        if history and history[-1].version == row.version:
            history.pop()  # the row itself will be that one
        waiting.append((row, history))
    while waiting := [(row, history) for row, history in waiting if history]:
        older = []
        for row, history in waiting:
            version = history.pop(0)
            if version.version in {known.version for known in catalog.versions(row.name)}:
                continue
            before = catalog.get(row.name)
            # Killed in between, the mark lets the import go on as if the task were not there.
            if before is None or before.source == ARRIVING:
                before = dataclasses.replace(row, status="retired", source=ARRIVING)
            older.append(dataclasses.replace(before, version=version.version, sha256=version.sha256))
        if older:
            catalog.put(older)
