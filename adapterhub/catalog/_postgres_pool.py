"""Connections to one PostgreSQL server, kept ready and made anew after a restart."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from adapterhub.catalog._postgres_faults import cannot_connect, told
from adapterhub.catalog._postgres_schema import prepare
from adapterhub.catalog._postgres_url import Address
from adapterhub.errors import IntegrityError

__all__ = ["Connection", "Server"]

Connection: TypeAlias = psycopg.Connection[TupleRow]

# The pool warns of each attempt to connect; the call that waits for it raises the reason.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())

# A commit reaches the disk before it is acknowledged, even where the server's default is not to wait for it.
_DURABLE = """SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off'"""
# Compiling takes longer than any of these questions.
_SESSION = "SET lock_timeout = '60s'; SET jit = off"


class Server:
    """One server of a catalogue; connects at the first use, and again in a forked process.

    Args:
        address: Where it is.
        size: Most connections at once.
        primary: Whether its tables may be migrated.
    """

    def __init__(self, address: Address, size: int, *, primary: bool = True) -> None:
        self.address = address
        self._size = size
        self._primary = primary
        self._lock = threading.Lock()
        self._pool: ConnectionPool[Connection] | None = None
        self._process = 0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection that works now, outside a transaction; what is left open in it is rolled back.

        Raises:
            InputError: If a value cannot be stored.
            IntegrityError: If there is none within the URL's `connect_timeout`, or the server fails meanwhile.
        """
        pool = self._opened()
        with told(self.address.shown):
            connection = self._checked(pool)
            try:
                yield connection
            except psycopg.errors.UndefinedTable:
                self.close()  # the tables were dropped: the next call prepares them again
                raise
            finally:
                pool.putconn(connection)

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._process == os.getpid():
            pool.close()

    def _opened(self) -> ConnectionPool[Connection]:
        with self._lock:
            if self._pool is None or self._process != os.getpid():
                with told(self.address.shown), self._connect() as connection:
                    _configure(connection, self.address.schema)
                    prepare(connection, self.address.shown, self.address.schema, migrate=self._primary)
                self._pool = self._new_pool()
                self._process = os.getpid()
            return self._pool

    def _new_pool(self) -> ConnectionPool[Connection]:
        pool: ConnectionPool[Connection] = ConnectionPool(
            self.address.conninfo,
            min_size=0,
            max_size=self._size,
            open=True,
            kwargs={"autocommit": True},
            configure=partial(_configure, schema=self.address.schema),
            name=f"adapterhub-{os.getpid()}",
            timeout=self.address.timeout,
            reconnect_timeout=self.address.timeout,
            num_workers=1,
        )
        weakref.finalize(self, _close, pool, os.getpid())
        return pool

    def _checked(self, pool: ConnectionPool[Connection]) -> Connection:
        connection = self._taken(pool)
        try:
            # Finds, without asking, that the server has closed the connection: its last words, then the end.
            connection.pgconn.consume_input()
            connection.pgconn.consume_input()
        except psycopg.OperationalError:
            # The server was restarted: the other connections are lost with this one, so all are replaced at once.
            pool.putconn(connection)
            pool.check()
            connection = self._taken(pool)
        return connection

    def _taken(self, pool: ConnectionPool[Connection]) -> Connection:
        try:
            return pool.getconn()
        except PoolTimeout:
            self._connect().close()  # the pool keeps the reason to itself; this raises it
            text = (
                f"All {self._size} connections to the catalogue {self.address.shown} were busy for "
                f"{self.address.timeout:g} s. Raise `pool_size`, or close the iterators that hold one."
            )
            raise IntegrityError(text) from None

    def _connect(self) -> Connection:
        try:
            return psycopg.connect(self.address.conninfo, autocommit=True)
        except psycopg.OperationalError as error:
            raise cannot_connect(self.address.shown, error) from error


def _configure(connection: Connection, schema: str | None) -> None:
    if schema is not None:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
    connection.execute(_SESSION)
    connection.execute(_DURABLE)


def _close(pool: ConnectionPool[Connection], process: int) -> None:
    if process == os.getpid():  # after a fork they are the parent's
        pool.close()
