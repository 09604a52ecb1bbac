"""Every fault of a database's rows and of the adapters beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from adapterhub.catalog import Catalog, TaskRecord
from adapterhub.errors import AdapterHubError
from adapterhub.registry._files import adapter_faults, is_local, versions_in
from adapterhub.registry._near import names_near
from adapterhub.registry._rows import all_rows, record_of, task_of
from adapterhub.registry._verify import hub_faults, stack_faults
from adapterhub.task import fields_faults

__all__ = ["database_faults"]


def database_faults(catalog: Catalog, adapters: Path | None, derived: Path) -> Iterator[str]:
    """Every fault found; call it while no one else writes.

    Args:
        catalog: The tables, which can be read.
        adapters: Folder of the adapters' files, or None.
        derived: Folder of what was pulled.
    """

    def stack_of(name: str) -> tuple[str, ...] | None:
        other = catalog.get(name)
        return task_of(other).stack if other is not None and other.status == "active" else None

    try:
        for record in all_rows(catalog):
            wrong = _row_faults(record)
            yield from (f"{record.name}: {fault}" for fault in wrong)
            if wrong:
                continue
            task = task_of(record)
            if task.stack and record.status == "active":
                yield from stack_faults(task, stack_of, lambda: names_near(catalog, ""))
            yield from _adapter_faults(record, catalog, adapters, derived)
    except AdapterHubError as error:
        yield str(error)
        return
    if adapters is not None and adapters.is_dir():
        yield from _orphans(catalog, adapters)


def _row_faults(record: TaskRecord) -> list[str]:
    try:
        fields = dict(json.loads(record.card))
    except (ValueError, TypeError):
        return ["its card should be a JSON object. Found something else. Add the task again with `--replace`."]
    faults = fields_faults(record.name, fields)
    if faults:
        return faults
    meant = record_of(task_of(record))
    differing = [
        column
        for column in ("version", "sha256", "content_hash", "base_model", "tags")
        if getattr(meant, column) != getattr(record, column)
    ]
    text = "Add the task again with `--replace`, or run the import again that was interrupted."
    return [f"its row should say what its card says. Found another {column}. {text}" for column in differing]


def _adapter_faults(record: TaskRecord, catalog: Catalog, adapters: Path | None, derived: Path) -> Iterator[str]:
    version = record.version
    if version is None:
        return
    if not is_local(version):
        yield from hub_faults(version, record.sha256, derived, record.name)
    if record.sha256 is None:
        yield f"{record.name}: a card states the `sha256` of its adapter. Found none. Register the adapter again."
    if adapters is None:
        if is_local(version):
            yield f"{record.name}: its adapter is {version}, a folder. Found no folder of adapters. Give `adapters=`."
        return
    folder = adapters / record.name
    there = versions_in(folder)
    known = {item.version: item.sha256 for item in catalog.versions(record.name)} if there else {}
    if is_local(version) and version not in there:
        yield f"{folder / version}: {record.name} names this adapter. Found none. Restore the folder from a copy."
    for other in there:
        if other in known:
            yield from adapter_faults(folder / other, known[other])


def _orphans(catalog: Catalog, adapters: Path) -> Iterator[str]:
    for place, folders, _ in os.walk(adapters):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        versions = versions_in(folder)
        if versions:
            name = folder.relative_to(adapters).as_posix()
            known = {version.version for version in catalog.versions(name)}
            yield from (
                f"{folder / version}: a version belongs to a task. Found none that has had it. Delete it."
                for version in versions
                if version not in known
            )
        folders[:] = [name for name in folders if name not in versions]
