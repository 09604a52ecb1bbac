"""Faults in the tables of a PostgreSQL catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString
from zlib import crc32

import numpy as np

from adapterhub.catalog._packed import checksum, narrow_size
from adapterhub.catalog._postgres_pool import Connection
from adapterhub.catalog._postgres_read import one, snapshot

__all__ = ["verify"]

_SHOWN = 20
# Each question finds names or numbers that should not be there.
_QUESTIONS: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("task {}: its number is larger than the last one given", "SELECT name FROM task, catalog WHERE id > last_id"),
    ("task {}: its commit is newer than the newest one", "SELECT name FROM task, catalog WHERE task.seq > catalog.seq"),
    (
        "task {}: its adapter is not in its history",
        """SELECT name FROM task WHERE version IS NOT NULL AND NOT EXISTS (SELECT 1 FROM version
        WHERE task_id = id AND version.version = task.version AND version.sha256 IS NOT DISTINCT FROM task.sha256)""",
    ),
    (
        "the history of task number {} is of no task",
        "SELECT DISTINCT task_id FROM version WHERE NOT EXISTS (SELECT 1 FROM task WHERE id = task_id)",
    ),
    (
        "the vectors of task number {} are of no task",
        "SELECT task_id FROM vector WHERE NOT EXISTS (SELECT 1 FROM task WHERE id = task_id)",
    ),
    (
        "the examples of task number {} are without their sum",
        "SELECT task_id FROM example WHERE NOT EXISTS (SELECT 1 FROM vector WHERE vector.task_id = example.task_id)",
    ),
    ("the vectors of task number {} are of no encoder", "SELECT task_id FROM vector, catalog WHERE encoder IS NULL"),
    ("task number {} is both there and deleted", "SELECT id FROM task JOIN tombstone USING (id)"),
)
_ROWS: LiteralString = """SELECT vector.task_id, count, described, vector.data, vector.crc, example.data, example.crc
    FROM vector LEFT JOIN example USING (task_id) ORDER BY task_id"""


def verify(connection: Connection) -> list[str]:
    """Every fault found: counters, orphans, and vectors whose bytes are not those that were written.

    Args:
        connection: A connection outside a transaction.
    """
    faults: list[str] = []
    with snapshot(connection):
        for text, question in _QUESTIONS:
            found = [row[0] for row in connection.execute(question)]
            faults += [f"{text.format(item)}." for item in found[:_SHOWN]]
            if len(found) > _SHOWN:
                faults.append(f"… and {len(found) - _SHOWN} more of these.")
        return faults + list(_vector_faults(connection))


def _vector_faults(connection: Connection) -> Iterator[str]:
    dimension = one(connection, "SELECT dimension FROM catalog")[0] or 0
    with connection.cursor(name="verified", binary=True) as cursor:
        cursor.itersize = 256
        cursor.execute(_ROWS)
        for key, *row in cursor:
            fault = _fault(dimension, *row)
            if fault:
                yield f"the vectors of task number {key} {fault}. Encode it again."


def _fault(
    dimension: int, count: int, described: int, data: bytes, crc: int, examples: bytes | None, examples_crc: int | None
) -> str:
    if len(data) != narrow_size(count, described, dimension) or checksum(count, described, data) != crc:
        return "do not have their checksum"
    if count < 2:
        return "" if examples is None else "have examples that they should not have"
    if examples is None or len(examples) != 2 * count * dimension or crc32(examples) != examples_crc:
        return "do not have their examples, or these not their checksum"
    total = np.frombuffer(examples, dtype="<f2").reshape(count, dimension).sum(axis=0, dtype=np.float64)
    same = total.astype("<f4").tobytes() == data[: 4 * dimension]
    return "" if same else "are not the sum of their examples"
