"""The card index in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._records import Changes, TaskRecord, TaskVectors
from adapterhub.errors import InputError, IntegrityError, TaskNotFoundError, did_you_mean

__all__ = ["SqliteCatalog"]

_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS task (
    name TEXT PRIMARY KEY, version TEXT, sha256 TEXT, card TEXT NOT NULL, content_hash TEXT NOT NULL,
    source TEXT NOT NULL, seq INTEGER NOT NULL, status TEXT NOT NULL CHECK (status IN ('active', 'retired'))
);
CREATE INDEX IF NOT EXISTS task_seq ON task (seq);
CREATE TABLE IF NOT EXISTS version (
    name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT, seq INTEGER NOT NULL, PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tombstone (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vector (
    encoder TEXT NOT NULL, content_hash TEXT NOT NULL, count INTEGER NOT NULL,
    total BLOB NOT NULL, description BLOB, examples BLOB NOT NULL, PRIMARY KEY (encoder, content_hash)
);
"""
_COLUMNS = "name, version, sha256, card, content_hash, source, seq, status"
# A subtree is a range of names: `0` follows `/`. LIKE could not use the index.
_UNDER = "status = 'active' AND (:p = '' OR name = :p OR (name >= :p || '/' AND name < :p || '0'))"


class SqliteCatalog:
    """A `Catalog` in one SQLite file, safe for several processes and threads.

    Each call opens the file anew, so that it may be deleted between two calls (it is derived) and an object may be
    used after a fork. A commit has reached the disk when its call returns.

    Args:
        path: The file; it is made at the first use, its folder is not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def seq(self) -> int:
        """Number of the newest commit; 0 for an empty catalogue."""
        with self._open() as connection:
            return _seq(connection)

    def put(self, records: Sequence[TaskRecord]) -> int:
        """Write rows in one commit, replacing rows of the same names.

        Args:
            records: The rows; their `seq` is set here.

        Returns:
            The commit's number.
        """
        with self._writing() as connection:
            seq = _next(connection)
            for record in records:
                row = (record.name, record.version, record.sha256, record.card, record.content_hash, record.source)
                connection.execute(
                    f"INSERT OR REPLACE INTO task ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, seq, record.status),
                )
                connection.execute("DELETE FROM tombstone WHERE name = ?", (record.name,))
                if record.version is not None:
                    connection.execute("INSERT OR REPLACE INTO version VALUES (?, ?, ?, ?)", (*row[:3], seq))
        return seq

    def get(self, name: str) -> TaskRecord | None:
        """One row, active or retired, or None.

        Args:
            name: The task's name.
        """
        with self._open() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM task WHERE name = ?", (name,)).fetchall()
        return TaskRecord(*rows[0]) if rows else None

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the active tasks at and below a branch.

        Args:
            prefix: The branch; empty for the whole tree.
        """
        with self._open() as connection:
            rows = connection.execute(f"SELECT name FROM task WHERE {_UNDER} ORDER BY name", {"p": prefix})
            return [str(name) for (name,) in rows]

    def records(self, prefix: str = "") -> list[TaskRecord]:
        """The active tasks at and below a branch, in the names' order.

        Args:
            prefix: The branch; empty for the whole tree.
        """
        with self._open() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM task WHERE {_UNDER} ORDER BY name", {"p": prefix})
            return [TaskRecord(*row) for row in rows]

    def delete(self, names: Collection[str]) -> int:
        """Delete rows in one commit, leaving tombstones.

        Args:
            names: Names of tasks that are there.

        Returns:
            The commit's number.

        Raises:
            TaskNotFoundError: If one of them is not there; then none is deleted.
        """
        with self._writing() as connection:
            seq = _next(connection)
            for name in names:
                if connection.execute("SELECT 1 FROM task WHERE name = ?", (name,)).fetchone() is None:
                    known = [str(other) for (other,) in connection.execute("SELECT name FROM task")]
                    raise TaskNotFoundError(f"No task {name!r} in the catalogue.{did_you_mean(name, known)}")
            for name in names:
                connection.execute("DELETE FROM task WHERE name = ?", (name,))
                connection.execute("DELETE FROM version WHERE name = ?", (name,))
                connection.execute("INSERT OR REPLACE INTO tombstone VALUES (?, ?)", (name, seq))
        return seq

    def versions(self, name: str) -> list[tuple[str, str | None]]:
        """Every adapter the task has had, oldest first, with its content hash.

        Args:
            name: The task's name.
        """
        with self._open() as connection:
            rows = connection.execute("SELECT version, sha256 FROM version WHERE name = ? ORDER BY seq", (name,))
            return [(str(version), sha256) for version, sha256 in rows]

    def changes(self, since: int) -> Changes:
        """Rows and tombstones of all commits after a given one.

        Args:
            since: Number of a commit; 0 for everything.
        """
        with self._open() as connection:
            connection.execute("BEGIN")  # one snapshot for the three questions
            rows = connection.execute(f"SELECT {_COLUMNS} FROM task WHERE seq > ? ORDER BY seq, name", (since,))
            records = tuple(TaskRecord(*row) for row in rows)
            gone = connection.execute("SELECT name FROM tombstone WHERE seq > ? ORDER BY seq, name", (since,))
            return Changes(_seq(connection), records, tuple(str(name) for (name,) in gone))

    def put_vectors(self, encoder: str, vectors: Mapping[str, TaskVectors]) -> None:
        """Store vectors of one encoder by content hash; a hash already there is kept.

        Args:
            encoder: The encoder's fingerprint.
            vectors: Vectors by content hash; their names are not stored.

        Raises:
            InputError: If shapes do not agree or a number is not finite; then nothing is stored.
        """
        for key, item in vectors.items():
            _check(key, item)
        rows = [
            (encoder, key, item.count, _bytes(item.total), _bytes(item.description), _bytes(item.examples))
            for key, item in vectors.items()
        ]
        with self._writing() as connection:
            connection.executemany("INSERT OR IGNORE INTO vector VALUES (?, ?, ?, ?, ?, ?)", rows)

    def missing(self, encoder: str) -> list[TaskRecord]:
        """Active tasks whose content has no vectors of an encoder.

        Args:
            encoder: The encoder's fingerprint.
        """
        sql = f"""SELECT {_COLUMNS} FROM task WHERE status = 'active' AND NOT EXISTS (
            SELECT 1 FROM vector WHERE encoder = ? AND vector.content_hash = task.content_hash) ORDER BY name"""
        with self._open() as connection:
            return [TaskRecord(*row) for row in connection.execute(sql, (encoder,))]

    def vectors(self, encoder: str) -> list[TaskVectors]:
        """Vectors of every active task that has them, in the names' order.

        Args:
            encoder: The encoder's fingerprint.
        """
        sql = """SELECT name, count, total, description, examples FROM task JOIN vector
            ON vector.content_hash = task.content_hash AND encoder = ? WHERE status = 'active' ORDER BY name"""
        with self._open() as connection:
            return [_vectors(*row) for row in connection.execute(sql, (encoder,))]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
                _prepare(connection)
                yield connection
        except sqlite3.OperationalError as error:
            raise IntegrityError(f"The catalogue {self.path} cannot be used: {error}. Check the folder.") from error
        except sqlite3.DatabaseError as error:
            text = f"The catalogue {self.path} is damaged: {error}. Delete it: it is made again from the cards."
            raise IntegrityError(text) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    if connection.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
        return
    # Where WAL is not possible SQLite answers with the mode it keeps, and everything works as well, only slower.
    with suppress(sqlite3.OperationalError):  # another process is setting it at this moment
        connection.execute(f"PRAGMA journal_mode = {journal_mode(sqlite3.sqlite_version_info)}")
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, _FORMAT):
        raise sqlite3.DatabaseError(f"its format is {found}, this version reads {_FORMAT}")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('seq', 0)")
    connection.execute(f"PRAGMA user_version = {_FORMAT}")
    connection.execute("COMMIT")


def journal_mode(version: tuple[int, ...]) -> str:
    """WAL where SQLite has the fix for a checkpoint racing a commit, the rollback journal before.

    Args:
        version: SQLite's version, such as (3, 51, 3).
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return "WAL" if fixed else "DELETE"


def _seq(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT value FROM meta WHERE key = 'seq'").fetchone()[0])


def _next(connection: sqlite3.Connection) -> int:
    # Taken inside the transaction that holds the write lock, so numbers grow in the order of the commits.
    sql = "UPDATE meta SET value = value + 1 WHERE key = 'seq'"
    connection.execute(sql)
    return _seq(connection)


def _bytes(array: NDArray[np.float32] | None) -> bytes | None:
    return None if array is None else np.ascontiguousarray(array, dtype="<f4").tobytes()


def _vectors(name: str, count: int, total: bytes, description: bytes | None, examples: bytes) -> TaskVectors:
    summed = _array(total)
    described = None if description is None else _array(description)
    return TaskVectors(name, count, summed, described, _array(examples).reshape(count, len(summed)))


def _array(blob: bytes) -> NDArray[np.float32]:
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)  # a copy: rows of the file are read-only


def _check(key: str, item: TaskVectors) -> None:
    width = item.total.shape[-1]
    described = item.description is None or item.description.shape == (width,)
    if item.total.shape != (width,) or item.examples.shape != (item.count, width) or not described:
        shapes = [None if part is None else part.shape for part in (item.total, item.description, item.examples)]
        raise InputError(
            f"Vectors of {key} should be a sum (d,), a description (d,) and {item.count} examples (n, d). "
            f"Found {shapes}. Make them with `TaskVectors.of`."
        )
    parts = [part for part in (item.total, item.description, item.examples) if part is not None]
    if not all(np.isfinite(part).all() for part in parts):
        raise InputError(f"Vectors of {key} should be finite. Found NaN or infinity. Check the encoder.")
