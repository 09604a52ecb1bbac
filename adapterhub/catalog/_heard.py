"""Questions to a SQLite catalogue about its vectors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._ahead import ahead
from adapterhub.catalog._connections import Connections
from adapterhub.catalog._packed import DamagedRowError, empty, fill, is_sound, unpack
from adapterhub.catalog._read import COLUMNS, chunks, record_of
from adapterhub.catalog._records import Ids, TaskRecord, TaskVectors, VectorBlock, VectorChanges
from adapterhub.catalog._scope import hidden
from adapterhub.errors import InputError

__all__ = [
    "Bound",
    "bind",
    "blocks",
    "bound_to",
    "missing",
    "rebind",
    "vector_changes",
    "vectors",
]

_CHUNK = 500
_PIECE = 4096


class Bound(NamedTuple):
    """What a catalogue is bound to.

    Args:
        seq: Number of the newest commit.
        encoder: Fingerprint of the encoder, or None.
        dimension: Width d of its vectors; None while there are none.
        since: Number of the commit that bound it.
        token: Which catalogue it is.
    """

    seq: int
    encoder: str | None
    dimension: int | None
    since: int
    token: str


def bound_to(connection: sqlite3.Connection, url: str, encoder: str | None = None) -> Bound:
    """What the catalogue is bound to.

    Args:
        connection: To the file.
        url: Where the catalogue is, for messages.
        encoder: The encoder that someone asks for, or None.

    Raises:
        InputError: If it is bound to another one.
    """
    bound = Bound(*connection.execute("SELECT seq, encoder, dimension, bound, token FROM meta").fetchone())
    if encoder is not None and bound.encoder not in (None, encoder):
        raise InputError(
            f"The catalogue {url} holds vectors of {bound.encoder}. Found {encoder}. "
            "Encode it again: adapterhub reindex --encoder …"
        )
    return bound


def bind(connection: sqlite3.Connection, url: str, seq: int, encoder: str, vectors: Sequence[TaskVectors]) -> None:
    """Bind the catalogue to the encoder of vectors, unless it is.

    Args:
        connection: In a transaction.
        url: Where the catalogue is, for messages.
        seq: The commit's number.
        encoder: The encoder's fingerprint.
        vectors: Checked vectors, which are of one width.

    Raises:
        InputError: If it is bound to another one, or to vectors of another width.
    """
    bound = bound_to(connection, url, encoder)
    if bound.encoder is None:
        connection.execute("UPDATE meta SET encoder = ?, bound = ?", (encoder, seq))
    width = vectors[0].total.shape[0] if vectors else bound.dimension
    if bound.dimension is None:
        connection.execute("UPDATE meta SET dimension = ?", (width,))
    elif bound.dimension != width:
        raise InputError(
            f"The catalogue {url} holds vectors ({bound.dimension},) of {encoder}. Found ({width},). "
            "An encoder's vectors have one width: give another encoder another fingerprint."
        )
    if None in (bound.encoder, bound.dimension):
        connection.execute("INSERT OR REPLACE INTO binding SELECT one, encoder, dimension FROM meta")


def rebind(connection: sqlite3.Connection, seq: int, encoder: str) -> None:
    """Bind the catalogue to an encoder, and drop the vectors of another.

    Args:
        connection: In a transaction.
        seq: The commit's number.
        encoder: The encoder's fingerprint.
    """
    if bound_to(connection, "").encoder == encoder:
        return
    for table in ("vector", "example"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("UPDATE task SET heard = 0 WHERE heard > 0")
    connection.execute("UPDATE meta SET encoder = ?, dimension = NULL, bound = ?", (encoder, seq))
    connection.execute("INSERT OR REPLACE INTO binding SELECT one, encoder, dimension FROM meta")


def missing(connection: sqlite3.Connection, limit: int | None) -> list[TaskRecord]:
    """Active tasks without vectors, in the names' order.

    Args:
        connection: To the file.
        limit: At most so many; None for all.
    """
    sql = (
        f"SELECT {COLUMNS} WHERE task.id IN (SELECT id FROM task INDEXED BY task_unheard WHERE heard = 0 AND state < 2"
    )
    sql += " ORDER BY name LIMIT ?) ORDER BY task.name"
    return [record_of(row) for row in connection.execute(sql, (-1 if limit is None else limit,))]


def vectors(connection: sqlite3.Connection, dimension: int, ids: Ids | None) -> list[TaskVectors]:
    """Vectors with their examples of active tasks, by name.

    Args:
        connection: To the file, in a transaction.
        dimension: Width d.
        ids: Only those of these numbers; None for all.
    """
    sql = (
        "SELECT name, content, vector.id, count, described, vector.data, vector.crc, example.data, example.crc "
        "FROM vector JOIN task USING (id) LEFT JOIN example USING (id) WHERE state < 2"
    )
    if ids is None:
        rows = connection.execute(sql).fetchall()
    else:
        rows = []
        for part in chunks(dict.fromkeys(ids.tolist()), _CHUNK):
            rows += connection.execute(f"{sql} AND vector.id IN ({','.join('?' * len(part))})", part)
    return [_vectors(dimension, *row) for row in sorted(rows, key=lambda row: str(row[0]))]


def blocks(connections: Connections, url: str, encoder: str, ids: Ids | None, size: int) -> Iterator[VectorBlock]:
    """Narrow rows of routable tasks as arrays, ascending; no connection is held between two blocks.

    Of all tasks a block is read while the one before it is used.

    Args:
        connections: To the file.
        url: Where the catalogue is, for messages.
        encoder: The encoder's fingerprint.
        ids: Only those of these numbers; None for all.
        size: Most tasks in a block.
    """
    found = _blocks(connections, url, encoder, ids, size)
    return ahead(found) if ids is None else found


def _blocks(connections: Connections, url: str, encoder: str, ids: Ids | None, size: int) -> Iterator[VectorBlock]:
    with connections.reading() as connection:
        connection.execute("BEGIN")
        bound_to(connection, url, encoder)
        out = hidden(connection) if ids is None else np.empty(0, dtype=np.int64)
    last, left = 0, None if ids is None else np.unique(ids).tolist()
    while left is None or left:
        with connections.reading() as connection:
            connection.execute("BEGIN")
            dimension = bound_to(connection, url, encoder).dimension or 0
            if left is None:
                sql = "SELECT id, count, described, data, crc FROM vector WHERE id > ? ORDER BY id LIMIT ?"
                found = _block(connection.execute(sql, (last, size)), size, dimension)
            else:
                part, left = left[:size], left[size:]
                found = _block(_among(connection, part), len(part), dimension)
        if left is None:
            if not len(found):
                return
            last = int(found.ids[-1])
            keep = ~np.isin(found.ids, out, assume_unique=True)
            found = found if keep.all() else _where(found, keep)
        if len(found):
            yield found


def _block(rows: Iterable[tuple[int, int, int, bytes, int]], size: int, dimension: int) -> VectorBlock:
    found, length = empty(size, dimension), 0
    for part in chunks(rows, _PIECE):  # a few at a time, so that the block is in memory once, as arrays
        for key, count, described, data, crc in part:
            if crc32(data, 2 * count + described) != crc:
                raise DamagedRowError(f"The row of the vectors of task {key}")
        fill(found, length, [row[:4] for row in part])
        length += len(part)
    return found if length == size else _where(found, slice(length))


def _among(connection: sqlite3.Connection, ids: Sequence[int]) -> Iterator[tuple[int, int, int, bytes, int]]:
    sql = """SELECT vector.id, count, described, data, vector.crc FROM vector JOIN task USING (id)
        WHERE state = 0 AND vector.id IN"""
    for part in chunks(ids, _CHUNK):
        yield from connection.execute(f"{sql} ({','.join('?' * len(part))}) ORDER BY vector.id", part)


def vector_changes(connection: sqlite3.Connection, bound: Bound, since: int) -> VectorChanges:
    """Which rows of an index are out of date.

    Args:
        connection: To the file, in a transaction.
        bound: What the catalogue is bound to.
        since: Number of a commit; 0 for everything.
    """
    if since < bound.since:
        since = 0  # vectors were dropped when it was bound, without a mark on their tasks
    rows = connection.execute(
        "SELECT id, state, heard FROM task INDEXED BY task_seq WHERE seq > ?", (since,)
    ).fetchall()
    sql = "SELECT id, state, heard FROM task INDEXED BY task_heard WHERE heard > seq AND heard > ?"
    rows += connection.execute(sql, (since,))
    deleted = connection.execute("SELECT id, 2, 0 FROM tombstone WHERE seq > ?", (since,)).fetchall()
    found = np.fromiter(chain.from_iterable(rows + deleted), dtype=np.int64).reshape(-1, 3)
    present = (found[:, 1] == 0) & (found[:, 2] > 0)
    return VectorChanges(bound.seq, np.unique(found[present, 0]), np.unique(found[~present, 0]), bound.token)


def _where(block: VectorBlock, rows: slice | NDArray[np.bool_]) -> VectorBlock:
    return VectorBlock(*(getattr(block, field.name)[rows] for field in fields(block)))


def _vectors(
    dimension: int,
    name: str,
    content: str | bytes,
    key: int,
    count: int,
    described: int,
    data: bytes,
    crc: int,
    examples: bytes | None,
    examples_crc: int | None,
) -> TaskVectors:
    if not is_sound(count, described, data, crc, examples, examples_crc):
        raise DamagedRowError(f"The row of the vectors of task {key}")
    digest = content.hex() if isinstance(content, bytes) else content
    return unpack(name, key, digest, dimension, (key, count, described, data), examples)
