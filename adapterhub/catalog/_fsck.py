"""Faults of a SQLite catalogue: found, and repaired as far as they can be."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._packed import DamagedRowError, checksum, narrow_size
from adapterhub.catalog._read import COLUMNS, crc_of, record_of
from adapterhub.catalog._rules import RULES
from adapterhub.catalog._write import next_seq
from adapterhub.durable import sync_folder
from adapterhub.errors import CardError, InputError
from adapterhub.task import check_name

__all__ = ["copy", "faults_of", "mend"]

_SHOWN = 5


def faults_of(connection: sqlite3.Connection) -> list[str]:
    """What is wrong with the rows.

    Args:
        connection: To the file, in a transaction.
    """
    found = []
    for rule in RULES:
        wrong = [row[0] for row in connection.execute(rule.wrong)]
        if wrong:
            found.append(f"{rule.text}. Found {_listed(wrong)} that break it. Run `adapterhub fsck`.")
    damaged = chain(_wrong_bases(connection), _wrong_tasks(connection), _wrong_vectors(connection))
    return found + [f"{fault} Run `adapterhub fsck`." for _, fault in damaged]


def copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copy a file as it is at this moment, while others read and write.

    Args:
        connection: To the file.
        path: The new file.

    Raises:
        InputError: If it is there already.
    """
    if path.exists():
        raise InputError(f"A copy is a new file. Found {path}. Give another name, or delete it.")
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as target:
            connection.backup(target)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        part.replace(path)
        sync_folder(path.parent)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            part.with_name(part.name + suffix).unlink(missing_ok=True)


def mend(connection: sqlite3.Connection, lost: Path) -> list[str]:
    """Make every rule hold.

    Args:
        connection: In a transaction.
        lost: File that rows which cannot be kept are appended to, as JSON lines.

    Returns:
        What was done, and what could not be kept.
    """
    seq, report = next_seq(connection), []
    vectors = list(_wrong_vectors(connection))
    connection.executemany("DELETE FROM vector WHERE id = ?", ((key,) for key, _ in vectors))
    report += [f"{fault} They were removed, and are encoded again." for _, fault in vectors]
    for key, fault in list(_wrong_bases(connection)):
        name = f"unknown-{key}"
        connection.execute("INSERT OR REPLACE INTO base_model VALUES (?, ?, ?)", (key, name, crc_of(name)))
        report.append(f"{fault} It is {name!r} now. Register its tasks again.")
    for key, fault in list(_wrong_tasks(connection)):
        where = _keep(connection, key, lost)
        connection.execute("DELETE FROM task WHERE id = ?", (key,))
        report.append(f"{fault} What was left of it is in {where}. Register the task again.")
    for rule in RULES:
        wrong = [row[0] for row in connection.execute(rule.wrong)]
        if wrong:
            for statement in rule.repair:
                connection.execute(statement, {"seq": seq} if ":seq" in statement else {})
            report.append(f"{rule.text}. Found {_listed(wrong)} that broke it: {rule.done}.")
    if not report:
        connection.execute("UPDATE meta SET seq = seq - 1")  # nothing was changed: no commit
    return report


def _wrong_tasks(connection: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    for row in connection.execute(f"SELECT {COLUMNS}"):
        key, base, model = row[-2], row[6], row[7]
        if base is not None and model is None:
            continue  # told once, not for each of its tasks
        try:
            record = record_of(row)
            check_name(record.name)
        except DamagedRowError:
            yield key, f"The row of task {row[0]!r} (number {key}) is not as it was written."
        except CardError as error:
            yield key, f"Task number {key}: {error}"


def _wrong_bases(connection: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    for key, name, crc in connection.execute("SELECT id, name, crc FROM base_model"):
        if crc != crc_of(name):
            yield key, f"The name of base model {key}, {name!r}, is not as it was written."
    sql = "SELECT DISTINCT base FROM task WHERE base IS NOT NULL AND base NOT IN (SELECT id FROM base_model)"
    for (key,) in connection.execute(sql):
        yield key, f"The name of base model {key} is lost."


def _wrong_vectors(connection: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    dimension = connection.execute("SELECT dimension FROM meta").fetchone()[0] or 0
    sql = """SELECT vector.id, count, described, vector.data, vector.crc, example.data, example.crc
        FROM vector LEFT JOIN example USING (id)"""
    for key, count, described, data, crc, examples, examples_crc in connection.execute(sql):
        if not _whole(dimension, count, described, data, crc, examples, examples_crc):
            yield key, f"The vectors of task number {key} are not as they were written."


def _whole(dimension: int, count: Any, described: Any, data: Any, crc: Any, examples: Any, examples_crc: Any) -> bool:
    if not isinstance(data, bytes) or not isinstance(count, int) or described not in (0, 1) or count < 0:
        return False
    if crc != checksum(count, described, data) or len(data) != narrow_size(count, described, dimension):
        return False
    split = 2 * dimension * min(count, 2)
    total = np.frombuffer(data[:split], dtype="<f4" if count >= 2 else "<f2").astype(np.float32)
    finite = bool(np.isfinite(total).all() and np.isfinite(np.frombuffer(data[split:], dtype="<f2")).all())
    if count < 2 or examples is None:
        return finite  # that examples are lost is found by a rule of the tables
    return finite and _sums_up(dimension, count, total, examples, examples_crc)


def _sums_up(dimension: int, count: int, total: NDArray[np.float32], examples: Any, crc: Any) -> bool:
    if not isinstance(examples, bytes) or zlib.crc32(examples) != crc or len(examples) != 2 * count * dimension:
        return False
    rows = np.frombuffer(examples, dtype="<f2").reshape(count, dimension)
    return bool(np.array_equal(rows.sum(axis=0, dtype=np.float64).astype(np.float32), total))


def _keep(connection: sqlite3.Connection, key: int, lost: Path) -> Path:
    cursor = connection.execute("SELECT * FROM task WHERE id = ?", (key,))
    values = dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
    shown: Callable[[object], str] = repr
    with lost.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(values, default=shown) + "\n")
    return lost


def _listed(items: list[Any]) -> str:
    items = list(Counter(items))
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(map(repr, items[:_SHOWN])) + more
