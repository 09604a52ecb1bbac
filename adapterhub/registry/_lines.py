"""One task a line: JSON with the task's name, its card's fields, and where there is more to say its past."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from adapterhub.catalog import TaskRecord, TaskVersion
from adapterhub.registry._rows import record_of, size_fault
from adapterhub.registry._store import Status
from adapterhub.task import Task, fields_faults

__all__ = ["Line", "digest_of", "key_of", "parse", "raw_key", "written"]

_LONGEST = 4 << 20


@dataclass(frozen=True)
class Line:
    """What one line says.

    Args:
        task: The task.
        status: Whether it is listed and routed to.
        history: The adapters it has had, oldest first; empty where the line does not say.
    """

    task: Task
    status: Status
    history: tuple[TaskVersion, ...]

    @cached_property
    def record(self) -> TaskRecord:
        """The row that it will be."""
        return record_of(self.task, status=self.status)


def parse(raw: bytes, *, checked: bool = False) -> tuple[Line | None, list[str]]:
    """Read a line.

    Args:
        raw: The line's bytes.
        checked: Whether the same bytes have been read before without a fault.

    Returns:
        What it says, or None, and every fault.
    """
    if len(raw) > _LONGEST:
        return None, [f"a line has at most {_LONGEST:,} bytes. Found {len(raw):,}. Shorten the task's card."]
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return None, [f"a line is a JSON object. Found: {error}. Correct the line."]
    if not isinstance(fields, dict):
        return None, [f'a line is a JSON object. Found {type(fields).__name__}. Write {{"name": …}}.']
    name, status, versions = fields.pop("name", None), fields.pop("status", "active"), fields.pop("versions", ())
    if not checked:
        faults = [*fields_faults(name, fields), *_status_faults(status), *_version_faults(versions, fields)]
        if faults:
            return None, faults
    task = Task.stored(name, fields)
    history = tuple(TaskVersion(item["version"], item["sha256"], 0) for item in versions)
    line = Line(task, status, history)
    fault = None if checked else size_fault(line.record)
    return (line, []) if fault is None else (None, [fault])


def written(record: TaskRecord, history: Sequence[TaskVersion]) -> str:
    """A row as a line, without the line break.

    Args:
        record: The row.
        history: Its versions, oldest first.
    """
    more: dict[str, object] = {}
    if [(version.version, version.sha256) for version in history] not in ([], [(record.version, record.sha256)]):
        more["versions"] = [{"version": version.version, "sha256": version.sha256} for version in history]
    if record.status == "retired":
        more["status"] = "retired"
    # The card is canonical JSON already: an object that is never empty, for it has a description.
    tail = "" if not more else "," + json.dumps(more, separators=(",", ":"))[1:-1]
    return f'{{"name":{json.dumps(record.name)},{record.card[1:-1]}{tail}}}'


def key_of(name: str) -> int:
    """A number of 64 bits for a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def digest_of(record: TaskRecord) -> int:
    """A number of 64 bits for all that a row says of its task."""
    return int.from_bytes(hashlib.blake2b(f"{record.status}\n{record.card}".encode(), digest_size=8).digest())


def raw_key(raw: bytes) -> int:
    """A number of 64 bits for a line as it stands in its file."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest())


def _status_faults(status: object) -> list[str]:
    if status in ("active", "retired"):
        return []
    return [f"`status` should be active or retired. Found {status!r}. Leave it out for an active task."]


def _version_faults(versions: object, fields: Mapping[str, object]) -> list[str]:
    rule = '`versions` should be a list of {"version": …, "sha256": …}'
    if not isinstance(versions, list | tuple):
        return [f"{rule}. Found {type(versions).__name__}. Correct it."]
    faults = []
    for place, item in enumerate(versions):
        if not isinstance(item, dict) or set(item) != {"version", "sha256"} or item["version"] is None:
            faults.append(f"{rule}. Found {str(item)[:80]} as item {place + 1}. Correct it.")
            continue
        card = {"description": "x", "adapter": item["version"]}
        card |= {} if item["sha256"] is None else {"sha256": item["sha256"]}
        faults += [f"`versions` item {place + 1}: {fault}" for fault in fields_faults("x", card)]
    if faults:
        return faults
    named = [item["version"] for item in versions]
    if len(set(named)) < len(named):
        faults.append("`versions` should name each adapter once. Found one twice. Remove it.")
    if named and fields.get("adapter") is not None and fields["adapter"] not in named:
        faults.append(f"`versions` should have the card's adapter among them. Found no {fields['adapter']}. Add it.")
    return faults
