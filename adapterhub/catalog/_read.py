"""Rows read from the tables of a SQLite catalogue."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

from adapterhub.catalog._packed import DamagedRowError
from adapterhub.catalog._records import Changes, TaskRecord, TaskVersion

__all__ = ["COLUMNS", "changes", "chunks", "crc_of", "fetch", "listed", "record_of", "short", "versions"]

# The columns of a record, in the order of its fields.
COLUMNS = (
    "task.name, version, sha256, card, content, source, base, base_model.name, tags, seq, state, task.id, task.crc "
    "FROM task LEFT JOIN base_model ON base_model.id = base"
)
_CHUNK = 500
_Item = TypeVar("_Item")


def fetch(connection: sqlite3.Connection, column: str, keys: Sequence[object]) -> list[TaskRecord]:
    """Rows by a column with an index.

    Args:
        connection: To the file.
        column: Such as `task.name`.
        keys: Its values.
    """
    found = []
    for part in chunks(keys, _CHUNK):
        marks = ",".join("?" * len(part))
        found += [record_of(row) for row in connection.execute(f"SELECT {COLUMNS} WHERE {column} IN ({marks})", part)]
    return found


def listed(
    connection: sqlite3.Connection, ranges: Sequence[tuple[str, str]], limit: int | None, *, retired: bool = False
) -> list[TaskRecord]:
    """Rows of tasks, in the names' order.

    Args:
        connection: To the file.
        ranges: Half-open ranges of names.
        limit: At most so many; None for all.
        retired: Those of the retired tasks instead of the active ones.
    """
    which = "state > 0 AND state = 2" if retired else "state < 2"  # the first as the partial index says it
    sql = f"SELECT {COLUMNS} WHERE {which} AND task.name >= ? AND task.name < ? ORDER BY task.name LIMIT ?"
    found: list[TaskRecord] = []
    for bounds in ranges:
        left = -1 if limit is None else limit - len(found)
        found += [record_of(row) for row in connection.execute(sql, (*bounds, left))]
    return found


def versions(connection: sqlite3.Connection, name: str) -> list[TaskVersion]:
    """Every adapter a task has had, oldest first.

    Args:
        connection: To the file.
        name: The task's name.
    """
    sql = """SELECT version.version, version.sha256, version.seq FROM version WHERE id =
        (SELECT id FROM task WHERE name = ?) ORDER BY seq, version"""
    return [TaskVersion(version, _long(digest), seq) for version, digest, seq in connection.execute(sql, (name,))]


def changes(connection: sqlite3.Connection, since: int) -> Changes:
    """Rows and tombstones of all commits after a given one.

    Args:
        connection: To the file, in a transaction.
        since: Number of a commit; 0 for everything.
    """
    found = connection.execute(f"SELECT {COLUMNS} WHERE seq > ? ORDER BY seq, task.name", (since,))
    records = tuple(record_of(row) for row in found)
    gone = connection.execute(
        """SELECT name FROM tombstone WHERE seq > ? AND NOT EXISTS (SELECT 1 FROM task WHERE task.name = tombstone.name)
        ORDER BY seq, name""",
        (since,),
    )
    seq = int(connection.execute("SELECT seq FROM meta").fetchone()[0])
    # A name that was deleted twice counts at its last time.
    deleted = tuple(reversed(dict.fromkeys(str(name) for (name,) in reversed(gone.fetchall()))))
    return Changes(seq, records, deleted)


def record_of(row: Sequence[Any]) -> TaskRecord:
    """A row of `COLUMNS` as a record.

    Args:
        row: Its values.

    Raises:
        DamagedRowError: If the values are not those that were written.
    """
    name, version, sha256, card, content, source, base, model, tags, seq, state, key, crc = row
    sha256, content = _long(sha256), _long(content)
    if crc != crc_of(name, version, sha256, card, content, source, base, tags, state == 2):
        raise DamagedRowError(f"The row of task {key}")
    if base is not None and model is None:
        raise DamagedRowError(f"The base model of task {key}")
    status: Literal["active", "retired"] = "retired" if state == 2 else "active"
    words = tuple(json.loads(tags)) if tags else ()
    return TaskRecord(name, version, sha256, card, content, source, model or "", words, seq, status, key)


def short(digest: str | None) -> str | bytes | None:
    """A hex sha256 as its 32 bytes; any other text as it is.

    Args:
        digest: The text.
    """
    if digest is not None and len(digest) == 64:
        try:
            packed = bytes.fromhex(digest)
        except ValueError:
            return digest
        return packed if packed.hex() == digest else digest
    return digest


def chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of at most `size` items.

    Args:
        items: All of them.
        size: Most in a list.
    """
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _long(digest: str | bytes | None) -> Any:
    return digest.hex() if isinstance(digest, bytes) else digest


def crc_of(*parts: object) -> int:
    """Checksum of a row's values.

    Args:
        parts: The values.
    """
    return zlib.crc32("\0".join(map(str, parts)).encode())
