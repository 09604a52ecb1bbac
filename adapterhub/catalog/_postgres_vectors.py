"""Questions to a PostgreSQL catalogue about its vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import LiteralString, TypeAlias

import numpy as np
import psycopg
from psycopg.rows import TupleRow

from adapterhub.catalog._packed import block, is_sound, unpack
from adapterhub.catalog._postgres_pool import Connection
from adapterhub.catalog._postgres_read import (
    COLUMNS,
    PACKED,
    ROUTABLE,
    one,
    pipelined,
    record,
    snapshot,
    unpacked,
)
from adapterhub.catalog._records import Ids, TaskRecord, TaskVectors, VectorBlock, VectorChanges
from adapterhub.errors import InputError, IntegrityError

__all__ = ["blocks", "check_encoder", "missing", "vector_changes", "vectors"]

_Cursor: TypeAlias = psycopg.Cursor[TupleRow] | psycopg.ServerCursor[TupleRow]
# Rows are read a few at a time, so that a block is in memory once, as arrays.
_PIECE, _TASKS = 1024, 256
_CHANGED: LiteralString = f"""
WITH touched AS (
    SELECT id FROM task WHERE seq > %(since)s UNION SELECT task_id FROM vector WHERE seq > %(since)s
), written AS (
    SELECT id, {ROUTABLE} AND vector.task_id IS NOT NULL AS present
    FROM touched JOIN task USING (id) LEFT JOIN vector ON vector.task_id = id
), gone AS (
    SELECT id FROM written WHERE NOT present UNION SELECT id FROM tombstone WHERE seq > %(since)s
)
SELECT (SELECT {PACKED} FROM written WHERE present), (SELECT {PACKED} FROM gone)
"""


def check_encoder(shown: str, bound: str | None, encoder: str) -> None:
    """Refuse an encoder that is not the one that the catalogue is bound to.

    Args:
        shown: The catalogue's URL without a password.
        bound: The encoder that it is bound to; None while there is none.
        encoder: The encoder asked for.

    Raises:
        InputError: If they differ.
    """
    if bound is not None and bound != encoder:
        raise InputError(
            f"The catalogue {shown} holds vectors of {bound}. Found {encoder}. "
            "Encode it again: adapterhub reindex --encoder …"
        )


def missing(connection: Connection, shown: str, encoder: str, limit: int | None) -> list[TaskRecord]:
    """Active tasks without vectors, in the names' order.

    Args:
        connection: A connection outside a transaction.
        shown: The catalogue's URL without a password.
        encoder: The encoder's fingerprint.
        limit: At most so many; None for all.
    """
    sql: LiteralString = f"""SELECT {COLUMNS} FROM unheard JOIN task USING (name)
        WHERE status = 'active' ORDER BY unheard.name LIMIT %s::bigint"""
    with pipelined(connection), snapshot(connection):
        bound = connection.execute("SELECT encoder FROM catalog")
        rows = connection.execute(sql, (limit,))
        check_encoder(shown, bound.fetchall()[0][0], encoder)
        return [record(row) for row in rows]


def vectors(connection: Connection, shown: str, encoder: str, ids: Ids | None) -> list[TaskVectors]:
    """Vectors with their examples of active tasks, by name.

    Args:
        connection: A connection outside a transaction.
        shown: The catalogue's URL without a password.
        encoder: The encoder's fingerprint.
        ids: Only those of these numbers; None for all.
    """
    sql: LiteralString = f"""SELECT name, content_hash, id, count, described, vector.data, vector.crc,
        example.data, example.crc FROM task JOIN vector ON task_id = id LEFT JOIN example USING (task_id)
        WHERE status = 'active' {_among(ids)} ORDER BY name"""
    found: list[TaskVectors] = []
    with _streamed(connection, shown, encoder, sql, ids) as (cursor, dimension):
        while rows := cursor.fetchmany(_TASKS):
            found.extend(_task(shown, dimension, *row) for row in rows)
    return found


def blocks(
    streaming: Callable[[], AbstractContextManager[Connection]], shown: str, encoder: str, ids: Ids | None, size: int
) -> Iterator[VectorBlock]:
    """Vectors of routable tasks, ascending by number, from one snapshot.

    Args:
        streaming: Gives a connection outside a transaction, which is held until the last block.
        shown: The catalogue's URL without a password.
        encoder: The encoder's fingerprint.
        ids: Only those of these numbers; None for all.
        size: Most tasks in a block.
    """
    sql: LiteralString = f"""SELECT id, count, described, data FROM task JOIN vector ON task_id = id
        WHERE {ROUTABLE} {_among(ids)} ORDER BY id"""
    with streaming() as connection, _streamed(connection, shown, encoder, sql, ids) as (cursor, dimension):
        while len(found := _block(cursor, size, dimension)):
            yield found


def vector_changes(connection: Connection, shown: str, encoder: str, since: int) -> VectorChanges:
    """Which rows of an index are out of date.

    Args:
        connection: A connection.
        shown: The catalogue's URL without a password.
        encoder: The encoder's fingerprint.
        since: Number of a commit; 0 for everything.
    """
    sql: LiteralString = "SELECT seq, encoder, bound, token FROM catalog"
    seq, named, _, token = one(connection, sql)
    check_encoder(shown, named, encoder)
    if seq <= since:
        return VectorChanges(int(seq), unpacked(b""), unpacked(b""), str(token))
    with snapshot(connection):
        seq, named, bound, token = one(connection, sql)
        check_encoder(shown, named, encoder)
        # Binding drops all vectors without a mark on their tasks, so whoever saw only what was before begins anew.
        present, gone = one(connection, _CHANGED, {"since": 0 if since < bound else since})
    return VectorChanges(int(seq), unpacked(present), unpacked(gone), str(token))


@contextmanager
def _streamed(
    connection: Connection, shown: str, encoder: str, sql: str, ids: Ids | None
) -> Iterator[tuple[_Cursor, int]]:
    values = {} if ids is None else {"ids": [int(number) for number in ids]}
    few = ids is not None and len(ids) <= _PIECE
    with pipelined(connection, few), snapshot(connection):
        catalog = connection.execute("SELECT encoder, dimension FROM catalog")
        with connection.cursor(binary=True) if few else connection.cursor("streamed", binary=True) as cursor:
            cursor.execute(sql, values)
            bound, dimension = catalog.fetchall()[0]
            check_encoder(shown, bound, encoder)
            yield cursor, dimension or 0


def _among(ids: Ids | None) -> LiteralString:
    return "" if ids is None else "AND id = ANY(%(ids)s::bigint[])"


def _block(cursor: _Cursor, size: int, dimension: int) -> VectorBlock:
    # Pages of an array that are never written take no memory, so a few tasks in a block of 65,536 are cheap.
    ids, counts = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    totals, descriptions = (np.empty((size, dimension), dtype=np.float32) for _ in range(2))
    described, end = np.empty(size, dtype=np.bool_), 0
    while end < size and (rows := cursor.fetchmany(min(size - end, _PIECE))):
        piece, part = block(rows, dimension), slice(end, end + len(rows))
        ids[part], counts[part], described[part] = piece.ids, piece.counts, piece.described
        totals[part], descriptions[part] = piece.totals, piece.descriptions
        end = part.stop
    return VectorBlock(ids[:end], counts[:end], totals[:end], descriptions[:end], described[:end])


def _task(
    shown: str,
    dimension: int,
    name: str,
    content: str,
    key: int,
    count: int,
    described: int,
    data: bytes,
    crc: int,
    examples: bytes | None,
    examples_crc: int | None,
) -> TaskVectors:
    if not is_sound(count, described, data, crc, examples, examples_crc):
        raise IntegrityError(f"Vectors of {name} in {shown} do not have their checksum. Encode the task again.")
    return unpack(name, key, content, dimension, (key, count, described, data), examples)
