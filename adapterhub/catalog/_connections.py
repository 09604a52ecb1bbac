"""Open connections to one SQLite file: kept between calls, made anew after a fork or where the file is another one."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from adapterhub.catalog._faults import fault_of, is_broken
from adapterhub.catalog._packed import DamagedRowError
from adapterhub.catalog._schema import (
    FORMAT,
    WrongFormatError,
    create,
    file_faults,
    file_system,
    format_of,
    journal_mode,
    mode_of,
    set_journal,
)
from adapterhub.durable import sync_folder
from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.lock import locked

__all__ = ["BESIDE", "Connections"]

TIMEOUT = 30.0
# What SQLite and we keep beside the file. The lock stays when the others go: whoever waits for it must find it.
BESIDE = ("-shm", "-wal", "-journal")
_LOCK = "-lock"
_CACHE_KIB = 32768
_IDLE = 8
_MANY_COMMITS = 256
_LARGE_LOG = 16 << 20


class _Link(NamedTuple):
    connection: sqlite3.Connection
    process: int
    file: tuple[int, int]


class Connections:
    """Connections to one file, as many as are in use at once.

    Args:
        path: The file; it is made at the first use, its folder is not.
        derived: Whether a file that cannot be read may be deleted and made again, empty.
    """

    def __init__(self, path: Path, derived: bool) -> None:
        self.path, self.derived = path, derived
        self.lock = path.with_name(path.name + _LOCK)
        self._idle: deque[_Link] = deque()
        self._mutex = threading.RLock()
        self._logged = 0  # size of the write-ahead log at the last checkpoint
        _LIVE.add(self)
        weakref.finalize(self, _close_all, self._idle)  # a connection is in a cycle, so it would live on for a while

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement, or for several between `BEGIN` and `COMMIT`.

        Raises:
            IntegrityError: If the file cannot be used; the message says why and what to do.
        """
        with self._told():
            link = self._take(held=False)
            try:
                yield link.connection
            finally:
                self._give_back(link)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, which is on the disk when the block ends, and undone when it raises.

        Raises:
            IntegrityError: If the file cannot be used; then nothing is written.
        """
        with self._told(), self._excluded(held=False):
            link = self._take(held=True)
            try:
                link.connection.execute("BEGIN IMMEDIATE")
                yield link.connection
                link.connection.execute("COMMIT")
                self._checkpoint(link.connection)
            finally:
                self._give_back(link)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the writers' lock with no connection of this object open: the file may be moved."""
        with self._told(), self._excluded(held=False):
            self.close()
            yield

    def damaged(self) -> bool:
        """Whether the file's pages or indexes are damaged.

        Raises:
            IntegrityError: If it cannot be used for another reason.
        """
        try:
            with self.reading() as connection:
                return bool(file_faults(connection))
        except IntegrityError as error:
            if not is_broken(error.__cause__):
                raise
            return True

    def close(self) -> None:
        """Close the connections that no call is using; the next call opens a new one."""
        # The last one to close writes the log back and removes it. SQLite does that only while it holds the whole
        # file, which no other open connection allows, so it meets no commit; a file deleted meanwhile is left alone.
        _close_all(self._idle)

    def discard(self) -> None:
        """Delete the file and what lies beside it; the next call makes it again, empty."""
        for suffix in (*BESIDE, ""):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _take(self, held: bool) -> _Link:
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return self._open(held)
            if link.process == os.getpid() and link.file == self._file():
                return link
            _close(link)

    def _give_back(self, link: _Link) -> None:
        if link.connection.in_transaction:
            with suppress(sqlite3.Error):  # a full disk may have ended it already
                link.connection.execute("ROLLBACK")
        if len(self._idle) < _IDLE:
            self._idle.append(link)
        else:
            _close(link)

    def _file(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self.path)  # noqa: PTH116 - on every call, and a third of the time of Path.stat
        except FileNotFoundError:
            return None
        return stat.st_dev, stat.st_ino

    def _open(self, held: bool) -> _Link:
        try:
            return self._connect(held)
        except (WrongFormatError, sqlite3.DatabaseError) as error:
            if not self.derived or not (isinstance(error, WrongFormatError) or is_broken(error)):
                raise
            found = self._file()
        with self._excluded(held):
            if self._file() == found:  # another process may have made it again
                self.discard()
        return self._connect(held)

    def _connect(self, held: bool) -> _Link:
        while True:
            file = self._file()
            if file is None:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644))
                sync_folder(self.path.parent)
                continue
            connection = sqlite3.connect(self.path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                connection.execute(f"PRAGMA journal_size_limit = {4 * _LARGE_LOG}")
                self._prepare(connection, held)
            except BaseException:
                connection.close()
                raise
            if self._file() == file:
                return _Link(connection, os.getpid(), file)
            connection.close()  # replaced while it was opened: commits to the old file would be lost

    def _prepare(self, connection: sqlite3.Connection, held: bool) -> None:
        journal = journal_mode(sqlite3.sqlite_version_info, file_system(self.path))
        ready = format_of(connection) == FORMAT
        if ready and mode_of(connection) == journal:
            return
        with self._excluded(held):
            set_journal(connection, journal)
            if not ready:
                create(connection)

    @contextmanager
    def _excluded(self, held: bool) -> Iterator[None]:
        if held:
            yield
            return
        self.path.parent.stat()  # a folder that is not there is told as that, not as a lock that cannot be made
        with self._mutex, locked(self.lock, TIMEOUT):
            yield

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        # Under the writers' lock, see `journal_mode`. Passive: it waits for no reader, and the log is begun anew by
        # the next commit that finds it written back and unread. Commits of all processes count through `seq`.
        try:
            size = self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return  # a rollback journal
        seq = connection.execute("SELECT seq FROM meta").fetchone()[0]
        if seq % _MANY_COMMITS == 0 or size > max(_LARGE_LOG, self._logged):
            with suppress(sqlite3.OperationalError):  # the commit stands; a full disk is told by the next one
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._logged = size

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (WrongFormatError, DamagedRowError, TimeoutError, sqlite3.Error) as error:
            raise fault_of(error, self.path, TIMEOUT, self._remedy) from error
        except AdapterHubError:
            raise
        except OSError as error:
            raise fault_of(error, self.path, TIMEOUT, self._remedy) from error

    def _remedy(self) -> str:
        if not self.derived:
            return "Run `adapterhub fsck` on it, which keeps all that can still be read."
        with suppress(OSError, TimeoutError), self._excluded(held=False):
            self.close()
            self.discard()
            return "It has been deleted. Ask again: it is made again from the cards."
        return "Delete it: it is made again from the cards."


def _close_all(links: deque[_Link]) -> None:
    with suppress(IndexError):
        while True:
            _close(links.pop())


def _close(link: _Link) -> None:
    if link.process == os.getpid():
        link.connection.close()
    else:
        _INHERITED.append(link)  # closing it here would undo locks of the process that opened it


# A fork in the middle of a call would give the child a connection and a lock that another process is using. So it
# waits for the transactions of this process, and the connections that are not in use are closed first.
_LIVE: weakref.WeakSet[Connections] = weakref.WeakSet()
_INHERITED: list[_Link] = []
_HELD: list[Connections] = []


def _before_fork() -> None:
    for each in list(_LIVE):
        each._mutex.acquire()
        _HELD.append(each)
        each.close()


def _after_fork() -> None:
    while _HELD:
        _HELD.pop()._mutex.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
