"""Tables of the card index in SQLite, and how a file of them is set up."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

__all__ = [
    "FORMAT",
    "SCHEMA",
    "TABLES",
    "WrongFormatError",
    "create",
    "file_faults",
    "file_system",
    "format_of",
    "journal_mode",
    "mode_of",
    "set_journal",
]

FORMAT = 4
# `state` is 0 for a task that can be routed to, 1 for one without an adapter, 2 for a retired one: a scope is then a
# range of an index and never looks at the wide rows, nor does who asks for names. `heard` is the commit of the task's
# vectors, 0 while it has none.
# What one lost page would take from all tasks is there twice: the encoder in `binding`, base models in their index.
SCHEMA = """
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, last INTEGER NOT NULL,
    encoder TEXT, dimension INTEGER, bound INTEGER NOT NULL, token TEXT NOT NULL DEFAULT (hex(randomblob(8)))
);
CREATE TABLE binding (one INTEGER PRIMARY KEY CHECK (one = 1), encoder TEXT, dimension INTEGER);
CREATE TABLE base_model (id INTEGER PRIMARY KEY, name TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE UNIQUE INDEX base_name ON base_model (name, crc);
CREATE TABLE task (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, state INTEGER NOT NULL, base INTEGER, seq INTEGER NOT NULL,
    heard INTEGER NOT NULL, version TEXT, sha256, content NOT NULL, tags TEXT NOT NULL, source TEXT NOT NULL,
    card TEXT NOT NULL, crc INTEGER NOT NULL
);
CREATE UNIQUE INDEX task_name ON task (name);
CREATE INDEX task_label ON task (id, name);
CREATE INDEX task_hidden ON task (name, state) WHERE state > 0;
CREATE INDEX task_base ON task (base, state);
CREATE INDEX task_seq ON task (seq, state, heard);
CREATE INDEX task_heard ON task (heard, state) WHERE heard > seq;
CREATE INDEX task_unheard ON task (name) WHERE heard = 0 AND state < 2;
CREATE TABLE tag (tag TEXT NOT NULL, state INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (tag, state, id))
    WITHOUT ROWID;
CREATE TABLE version (id INTEGER NOT NULL, version TEXT NOT NULL, sha256, seq INTEGER NOT NULL,
    PRIMARY KEY (id, version)) WITHOUT ROWID;
CREATE TABLE tombstone (id INTEGER PRIMARY KEY, name TEXT NOT NULL, seq INTEGER NOT NULL);
CREATE INDEX tombstone_seq ON tombstone (seq);
CREATE TABLE vector (
    id INTEGER PRIMARY KEY, count INTEGER NOT NULL, described INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE example (id INTEGER PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL);
"""
# Each table by the column that its rows are found by in order, for copying what a damaged file still has.
TABLES = {
    "meta": "one",
    "binding": "one",
    "base_model": "id",
    "task": "id",
    "version": "id",
    "tombstone": "id",
    "vector": "id",
    "example": "id",
}
# A row of 384 numbers in half precision, twice, fills pages of 8 KiB to 95 %, those of 4 KiB to 76 %.
_PAGE = 8192
# fmt: off
_NETWORK = frozenset({
    "nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs",
    "9p", "virtiofs", "panfs", "pvfs2", "orangefs", "wekafs", "ocfs2", "gfs2", "vboxsf", "prl_fs",
})
# fmt: on


class WrongFormatError(Exception):
    """A database that is not a catalogue of this format."""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file; nothing happens if another process has just made them.

    Args:
        connection: To the file; its journal is set.

    Raises:
        WrongFormatError: If the file holds something else.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        if format_of(connection) == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute("INSERT INTO meta (one, seq, last, bound) VALUES (1, 0, 0, 0)")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def set_journal(connection: sqlite3.Connection, journal: str) -> None:
    """Set the journal; where another process uses the file at this moment it stays as it is.

    Args:
        connection: To the file.
        journal: `WAL` or `DELETE`.
    """
    connection.execute(f"PRAGMA page_size = {_PAGE}")  # of an empty file only, and before the journal is set
    timeout = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    connection.execute("PRAGMA busy_timeout = 0")
    with suppress(sqlite3.OperationalError):
        connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA busy_timeout = {timeout}")


def format_of(connection: sqlite3.Connection) -> int:
    """The format of a catalogue, 0 for an empty file.

    Args:
        connection: To the file.

    Raises:
        WrongFormatError: If it is another one, or the tables are not a catalogue's.
    """
    found = _user_version(connection)
    if found == FORMAT:
        return found
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and found == 0 and _user_version(connection) == FORMAT:  # another process has made them in between
        return FORMAT
    if found != 0:
        raise WrongFormatError(f"its format is {found}, this version reads {FORMAT}")
    if tables:
        raise WrongFormatError("it is a database of something else")
    return 0


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def journal_mode(version: tuple[int, ...], system: str) -> str:
    """The write-ahead log, which lets readers read on while one writes, or the rollback journal where it cannot work.

    SQLite before 3.51.3 (3.50.7, 3.44.6) can damage a file when a checkpoint by one connection meets a commit by
    another. Here every commit and every checkpoint is made under one file lock (`Connections.writing`), and SQLite's
    own checkpoints are switched off, so that they never meet, whatever the version. The log's index is shared memory
    on a mapped file, which file systems over a network do not have.

    Args:
        version: SQLite's version, such as (3, 51, 3).
        system: Type of the file system, such as `ext4`; empty if unknown.
    """
    network = system in _NETWORK or system.startswith("fuse")
    return "DELETE" if network or version < (3, 11) else "WAL"


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Type of the file system that a file lies on; empty where the system does not tell.

    Args:
        path: The file, which need not be there.
        mounts: Table of the mounts as Linux has it.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    target, best, found = path.resolve(), -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        place = Path(fields[1].replace("\\040", " "))
        if target.is_relative_to(place) and len(place.parts) >= best:  # of two mounts on one place the later is seen
            best, found = len(place.parts), fields[2]
    return found


def mode_of(connection: sqlite3.Connection) -> str:
    """The journal that a file has at this moment.

    Args:
        connection: To the file.
    """
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0]).upper()


def file_faults(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with its pages and indexes.

    Args:
        connection: To the file.
    """
    try:
        found = [str(text) for (text,) in connection.execute("PRAGMA integrity_check")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    return [line for text in found if text != "ok" for line in text.splitlines() if not line.startswith("***")]
