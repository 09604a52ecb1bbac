"""Rows written to the tables, inside a transaction that someone else begins and ends."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from adapterhub.catalog._packed import Packed
from adapterhub.catalog._read import chunks, crc_of, fetch, short
from adapterhub.catalog._records import TaskRecord
from adapterhub.errors import TaskNotFoundError, did_you_mean

__all__ = ["hear", "known", "next_seq", "remove", "set_status", "write"]

_CHUNK = 500
_NEAR = 1000


class _Known(NamedTuple):
    """A row that is there already: what has to go when it is replaced."""

    id: int
    state: int
    content: str | bytes
    tags: str
    heard: int


def next_seq(connection: sqlite3.Connection) -> int:
    """Number of this commit; taken while the write lock is held, so numbers grow in the order of the commits.

    Args:
        connection: In a transaction.
    """
    connection.execute("UPDATE meta SET seq = seq + 1")
    return int(connection.execute("SELECT seq FROM meta").fetchone()[0])


def write(
    connection: sqlite3.Connection, seq: int, records: Sequence[TaskRecord], packed: Mapping[str, Packed]
) -> None:
    """Write rows, replacing rows of the same names, and vectors of some of them.

    Vectors of a row whose content is another one now go.

    Args:
        connection: In a transaction.
        seq: The commit's number.
        records: Checked rows of different names.
        packed: Vectors by the task's name.
    """
    found = {row[0]: _Known(*row[1:]) for row in _old(connection, [record.name for record in records])}
    fresh = iter(range(*_reserve(connection, len(records) - len(found))))
    ids = {record.name: found[record.name].id if record.name in found else next(fresh) for record in records}
    bases = _bases(connection, {record.base_model for record in records})
    deaf = [
        row.id
        for record in records
        if (row := found.get(record.name)) and row.content != short(record.content_hash) and row.heard
    ]
    _drop_vectors(connection, deaf)
    _drop_tags(connection, found.values())
    gone = set(deaf)
    rows = []
    for record in records:
        key = ids[record.name]
        kept = found[record.name].heard if record.name in found and key not in gone else 0
        rows.append(_row(record, key, bases[record.base_model], seq, seq if record.name in packed else kept))
    connection.executemany("INSERT OR REPLACE INTO task VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.executemany(
        "INSERT INTO tag VALUES (?, ?, ?)",
        ((tag, _state(record), ids[record.name]) for record in records for tag in sorted(set(record.tags))),
    )
    connection.executemany(
        "INSERT INTO version VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET sha256 = excluded.sha256",
        ((ids[one.name], one.version, short(one.sha256), seq) for one in records if one.version is not None),
    )
    _put_vectors(connection, [(ids[name], item) for name, item in packed.items()])


def hear(connection: sqlite3.Connection, seq: int, packed: Mapping[str, tuple[str, Packed]]) -> None:
    """Write vectors of those tasks whose content is the one that was encoded.

    Args:
        connection: In a transaction.
        seq: The commit's number.
        packed: The content's hash and the vectors, by the task's name.
    """
    rows = [(row[1], packed[row[0]][1]) for row in _old(connection, list(packed)) if row[3] == short(packed[row[0]][0])]
    connection.executemany("UPDATE task SET heard = ? WHERE id = ?", ((seq, key) for key, _ in rows))
    _put_vectors(connection, rows)


def set_status(
    connection: sqlite3.Connection, seq: int, names: Collection[str], status: Literal["active", "retired"]
) -> None:
    """Retire tasks or make them active again.

    Args:
        connection: In a transaction.
        seq: The commit's number.
        names: Their names.
        status: `active` or `retired`.

    Raises:
        TaskNotFoundError: If one of them is not there.
    """
    known(connection, names)
    records = fetch(connection, "task.name", sorted(set(names)))
    write(connection, seq, [dataclasses.replace(record, status=status) for record in records], {})


def remove(connection: sqlite3.Connection, seq: int, names: Collection[str]) -> None:
    """Delete rows and all that belongs to them, leaving tombstones.

    Args:
        connection: In a transaction.
        seq: The commit's number.
        names: Their names.

    Raises:
        TaskNotFoundError: If one of them is not there.
    """
    found = known(connection, names)
    ids = [row.id for row in found.values()]
    _drop_vectors(connection, ids)
    _drop_tags(connection, found.values())
    for table in ("task", "version"):
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", ((key,) for key in ids))
    rows = ((row.id, name, seq) for name, row in found.items())
    connection.executemany("INSERT INTO tombstone VALUES (?, ?, ?)", rows)


def known(connection: sqlite3.Connection, names: Collection[str]) -> dict[str, _Known]:
    """What is there of some names.

    Args:
        connection: In a transaction.
        names: Their names.

    Raises:
        TaskNotFoundError: If one of them is not there; the message lists up to five, and the nearest name.
    """
    found = {row[0]: _Known(*row[1:]) for row in _old(connection, sorted(set(names)))}
    lacking = [name for name in names if name not in found]
    if lacking:
        # A name is mistyped within its branch, or in its first part; all names could be a million.
        sql = "SELECT name FROM task INDEXED BY task_name WHERE name >= ? AND name < ? LIMIT ?"
        near: list[str] = []
        for start in (lacking[0].rpartition("/")[0], lacking[0][:1]):
            near += [str(name) for (name,) in connection.execute(sql, (start, start + "~", _NEAR))]
        shown = ", ".join(repr(name) for name in lacking[:5])
        raise TaskNotFoundError(f"No task {shown} in the catalogue.{did_you_mean(lacking[0], near)}")
    return found


def _state(record: TaskRecord) -> int:
    if record.status == "retired":
        return 2
    return int(record.version is None)


def _row(record: TaskRecord, key: int, base: int | None, seq: int, heard: int) -> tuple[object, ...]:
    one = record
    tags = json.dumps(one.tags) if one.tags else ""
    retired = one.status == "retired"
    crc = crc_of(one.name, one.version, one.sha256, one.card, one.content_hash, one.source, base, tags, retired)
    sha256, content = short(one.sha256), short(one.content_hash)
    state = _state(one)
    return key, one.name, state, base, seq, heard, one.version, sha256, content, tags, one.source, one.card, crc


def _old(connection: sqlite3.Connection, names: Sequence[str]) -> Iterator[Sequence[Any]]:
    for part in chunks(names, _CHUNK):
        marks = ",".join("?" * len(part))
        sql = f"SELECT name, id, state, content, tags, heard FROM task INDEXED BY task_name WHERE name IN ({marks})"
        yield from connection.execute(sql, part)


def _reserve(connection: sqlite3.Connection, count: int) -> tuple[int, int]:
    # Kept in a counter, not taken from the highest row: the number of a deleted task is never given again.
    connection.execute("UPDATE meta SET last = last + ?", (count,))
    last = int(connection.execute("SELECT last FROM meta").fetchone()[0])
    return last - count + 1, last + 1


def _bases(connection: sqlite3.Connection, names: Collection[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {"": None}
    for name in sorted(set(names) - {""}):
        connection.execute("INSERT OR IGNORE INTO base_model (name, crc) VALUES (?, ?)", (name, crc_of(name)))
        found[name] = connection.execute("SELECT id FROM base_model WHERE name = ?", (name,)).fetchone()[0]
    return found


def _drop_vectors(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    for table in ("vector", "example"):
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", ((key,) for key in ids))


def _drop_tags(connection: sqlite3.Connection, rows: Iterable[_Known]) -> None:
    connection.executemany(
        "DELETE FROM tag WHERE tag = ? AND state = ? AND id = ?",
        ((tag, row.state, row.id) for row in rows if row.tags for tag in set(json.loads(row.tags))),
    )


def _put_vectors(connection: sqlite3.Connection, rows: Sequence[tuple[int, Packed]]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO vector VALUES (?, ?, ?, ?, ?)",
        ((key, item.count, item.described, item.data, item.crc) for key, item in rows),
    )
    alone = [(key,) for key, item in rows if item.examples is None]
    connection.executemany("DELETE FROM example WHERE id = ?", alone)
    connection.executemany(
        "INSERT OR REPLACE INTO example VALUES (?, ?, ?)",
        ((key, item.examples, zlib.crc32(item.examples)) for key, item in rows if item.examples is not None),
    )
