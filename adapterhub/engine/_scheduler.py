"""Who runs next: fair shares between adapters, first come first served within one. It never sees a tensor."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["Scheduler"]

INPUT_COST, OUTPUT_COST = 1.0, 2.0  # of one token, as in the paper


class Waiting(Protocol):
    """What the scheduler asks of a request."""

    weight: float

    @property
    def client(self) -> str:
        """Whose share it takes."""

    @property
    def tokens(self) -> int:
        """Tokens that its admission runs at once."""

    @property
    def done(self) -> bool:
        """Whether it needs no turn any more."""


R = TypeVar("R", bound=Waiting)


@dataclass(eq=False)
class _Entry(Generic[R]):
    request: R
    arrival: int
    passed: int = 0  # requests that were admitted while this one was refused


class Scheduler(Generic[R]):
    """The virtual token counter of Sheng et al. (2024), and a bound on how often a request is passed.

    Every client (adapter) has a counter of what it was served: a token read costs 1 and a token written 2, times the
    request's weight. The waiting client with the smallest counter is next. A client that comes back after a pause is
    lifted to the smallest counter of those that wait, so that it cannot save up service.

    A request may be refused, because its adapters are being loaded or because the arena has no room beside those that
    run. Others pass it then, `patience` of them at most: after that nobody is admitted before it, the running rows end,
    and their ranks are its own. So every request is admitted in the end, whatever the others do.

    `add` may be called from any thread, the rest from one.

    Args:
        prefill_tokens: Tokens, padding included, that one round admits at most; a longer prompt is admitted alone.
        patience: Requests that may pass a refused one.
    """

    def __init__(self, *, prefill_tokens: int, patience: int) -> None:
        self._prefill_tokens = prefill_tokens
        self._patience = patience
        self._arrived: deque[R] = deque()
        self._arrivals = 0
        self._queues: dict[str, deque[_Entry[R]]] = {}  # no queue is empty
        self._served: dict[str, float] = {}
        self._last = ""  # the client that left the queues last
        self._count = 0
        self._lock = threading.Lock()  # of the count

    def __len__(self) -> int:
        return self._count

    def add(self, request: R) -> None:
        """Let a request wait."""
        with self._lock:
            self._count += 1
        self._arrived.append(request)

    def admit(self, free: int, acquire: Callable[[R], bool]) -> list[R]:
        """Choose who runs now.

        Args:
            free: Requests that can be admitted.
            acquire: Takes what a request needs; False where that is not there yet. A request that it ends is dropped.

        Returns:
            Those that were acquired, at most `free`.
        """
        if free > 0:
            self._sort_in()
        admitted: list[R] = []
        refused: list[_Entry[R]] = []
        while len(admitted) < free:
            entry = self._next({entry.request.client for entry in refused})
            if entry is None or not self._fits(entry.request, admitted):
                break
            if acquire(entry.request):
                self._leave(entry)
                admitted.append(entry.request)
                self.charge([entry.request], read=entry.request.tokens)
                for other in refused:
                    other.passed += 1
                if any(other.passed >= self._patience for other in refused):
                    break
            elif entry.request.done:
                self._leave(entry)
            elif entry.passed >= self._patience:
                break
            else:
                refused.append(entry)
        return admitted

    def charge(self, requests: Iterable[R], *, read: int = 0, written: int = 0) -> None:
        """Count what requests were served; what `admit` lets read is counted there.

        Args:
            requests: Those that ran.
            read: Prompt tokens of each.
            written: New tokens of each.
        """
        for request in requests:
            cost = (INPUT_COST * read + OUTPUT_COST * written) * request.weight
            self._served[request.client] = self._served.get(request.client, 0.0) + cost

    def upcoming(self, count: int) -> list[R]:
        """About the next `count` requests, for loading ahead."""
        self._sort_in()
        clients = sorted(self._queues, key=lambda client: (self._served[client], self._queues[client][0].arrival))
        found: list[R] = []
        for client in clients[:count]:
            found += [entry.request for entry in list(self._queues[client])[: count - len(found)]]
        return found

    def drain(self) -> list[R]:
        """Take everything that waits."""
        self._sort_in()
        entries = [entry for queue in self._queues.values() for entry in queue]
        for entry in entries:
            self._leave(entry)
        return [entry.request for entry in entries]

    def rest(self) -> None:
        """Forget what was served: nobody waits and nobody runs, so all begin anew."""
        self._served.clear()

    def _sort_in(self) -> None:
        """Put arrivals into their queues, and drop what was cancelled."""
        while self._arrived:
            request = self._arrived.popleft()
            if request.client not in self._queues:
                self._lift(request.client)
                self._queues[request.client] = deque()
            self._queues[request.client].append(_Entry(request, self._arrivals))
            self._arrivals += 1
        for entry in [entry for queue in self._queues.values() for entry in queue if entry.request.done]:
            self._leave(entry)

    def _lift(self, client: str) -> None:
        others = [self._served[other] for other in self._queues]
        floor = min(others) if others else self._served.get(self._last, 0.0)
        self._served[client] = max(self._served.get(client, 0.0), floor)

    def _next(self, without: set[str]) -> _Entry[R] | None:
        heads = [queue[0] for client, queue in self._queues.items() if client not in without]
        overdue = [entry for entry in heads if entry.passed >= self._patience]
        if overdue:
            return min(overdue, key=lambda entry: entry.arrival)
        return min(heads, key=lambda entry: (self._served[entry.request.client], entry.arrival), default=None)

    def _fits(self, request: R, admitted: list[R]) -> bool:
        width = max([request.tokens, *(other.tokens for other in admitted)])
        return not admitted or width * (len(admitted) + 1) <= self._prefill_tokens

    def _leave(self, entry: _Entry[R]) -> None:
        client = entry.request.client
        self._queues[client].remove(entry)
        if not self._queues[client]:
            del self._queues[client]
            self._last = client
        with self._lock:
            self._count -= 1
