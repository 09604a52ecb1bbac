"""Which server answers: the primary, or a replica that has caught up with what this process knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from adapterhub.catalog._postgres_pool import Connection, Server
from adapterhub.catalog._postgres_read import pipelined, state
from adapterhub.catalog._postgres_write import MANY, Commit
from adapterhub.errors import IntegrityError

__all__ = ["Servers"]

_T = TypeVar("_T")
_PAUSE = 30.0  # seconds for which a replica that failed is not asked again


class Servers:
    """A primary and its replicas; what this process has seen or written is never unseen.

    Args:
        primary: The server that takes writes.
        replicas: Servers that follow it.
    """

    def __init__(self, primary: Server, replicas: Sequence[Server]) -> None:
        self.primary = primary
        self._replicas = tuple(replicas)
        self._paused = dict.fromkeys(range(len(self._replicas)), 0.0)
        self._seen = 0
        self._lock = threading.Lock()

    @contextmanager
    def writing(self, size: int = 1) -> Iterator[Commit]:
        """A commit, which is on the disk when the block ends, and undone when it raises.

        Args:
            size: Number of rows that will be written: few are sent without waiting for an answer to each.
        """
        with self.primary.connection() as connection:
            with pipelined(connection, size < MANY), connection.transaction():
                commit = Commit(connection, self.primary.address.shown)
                yield commit
                grown = size >= MANY and commit.grown(size)
            self._saw(commit.seq)
            if grown:  # the server would do it by itself, but only after a minute of slow answers
                connection.execute("ANALYZE task, version, vector, example, unheard")

    def newest(self, question: Callable[[Connection], _T]) -> _T:
        """An answer of the primary.

        Args:
            question: What to ask.
        """
        with self.primary.connection() as connection:
            return self._answer(connection, question)

    def ask(self, question: Callable[[Connection], _T]) -> _T:
        """An answer of a replica, or of the primary where there is none that has caught up or it fails.

        Args:
            question: What to ask.
        """
        for number in self._awake():
            try:
                with self._replicas[number].connection() as connection:
                    if self._caught_up(connection):
                        return self._answer(connection, question)
            except IntegrityError:
                self._pause(number)
        return self.newest(question)

    @contextmanager
    def streaming(self) -> Iterator[Connection]:
        """A connection for an answer that arrives in pieces; a server that fails in its middle is an error."""
        with ExitStack() as stack:
            connection = self._caught_up_one(stack) or stack.enter_context(self.primary.connection())
            yield connection
            self._answer(connection, lambda _: None)

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        for server in (self.primary, *self._replicas):
            server.close()

    def _caught_up_one(self, stack: ExitStack) -> Connection | None:
        for number in self._awake():
            try:
                with ExitStack() as attempt:
                    connection = attempt.enter_context(self._replicas[number].connection())
                    if self._caught_up(connection):
                        stack.enter_context(attempt.pop_all())
                        return connection
            except IntegrityError:
                self._pause(number)
        return None

    def _caught_up(self, connection: Connection) -> bool:
        return state(connection)[0] >= self._seen

    def _answer(self, connection: Connection, question: Callable[[Connection], _T]) -> _T:
        answer = question(connection)
        if self._replicas:  # asked afterwards, so that no later answer comes from an older state
            self._saw(state(connection)[0])
        return answer

    def _saw(self, seq: int) -> None:
        with self._lock:
            self._seen = max(self._seen, seq)

    def _awake(self) -> list[int]:
        now = time.monotonic()
        return [number for number, until in self._paused.items() if until <= now]

    def _pause(self, number: int) -> None:
        self._paused[number] = time.monotonic() + _PAUSE
