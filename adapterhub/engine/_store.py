"""Host memory: adapters that were read, within a budget of bytes, and the worker threads that read them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from adapterhub.engine._delta import Folded
from adapterhub.engine._flat import compact
from adapterhub.engine._packed import PackedCache
from adapterhub.errors import InputError, IntegrityError

__all__ = ["Flight", "Source", "Store", "TierStats"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TierStats:
    """What the tiers have done since they were made, and what they hold.

    Args:
        hits: Adapters of leases that were in the arena.
        misses: Adapters of leases that were not.
        host_hits: Misses that were in host memory.
        packed_loads: Loads from the packed cache.
        folder_loads: Loads from PEFT folders.
        failures: Loads that failed.
        evictions: Adapters taken out of the arena to make room.
        host_evictions: Adapters taken out of host memory to make room.
        arena_bytes: Bytes of the adapters in the arena, as they are in host memory.
        host_bytes: Bytes of the adapters in host memory.
    """

    hits: int
    misses: int
    host_hits: int
    packed_loads: int
    folder_loads: int
    failures: int
    evictions: int
    host_evictions: int
    arena_bytes: int
    host_bytes: int


@dataclass(eq=False, slots=True, weakref_slot=True)
class Source:
    """Where the bytes of one name lie. A name that is added again gets another one.

    Args:
        folder: The adapter's folder.
        sha256: Its content hash; None until the first load binds it.
        error: Of a load that nobody waited for, until it is raised.
    """

    folder: Path
    sha256: str | None
    error: BaseException | None = None


@dataclass(eq=False)
class Flight:
    """One load on its way; all that ask for the same bytes share it.

    Args:
        source: Whose folder is read.
        sha256: What it was bound to when the load began.
        keepers: Who asked without waiting: an error is kept for them.
        claims: Who asked without waiting and comes back: the adapter is kept for them, whatever the budget.
        folded: The adapter, once landed.
        error: What went wrong.
    """

    source: Source
    sha256: str | None
    keepers: list[Source] = field(default_factory=list)
    claims: list[Source] = field(default_factory=list)
    folded: Folded | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has landed or failed."""
        return self.folded is not None or self.error is not None


class Store:
    """Folded adapters in host memory by content hash, the least recently used out first, and the loads under way.

    Methods but `read` and `close` are called with the lock of `changed` held, and no disk is read while it is. Workers
    live while there is something to load.

    Args:
        read: Reads a folder whose content hash is as given, or any where that is None; called in worker threads.
        host_bytes: Budget of host memory, not counting what is being handed over.
        packed: The cache of packed files, or None.
        workers: How many loads run at once.
        claim_ranks: Ranks of adapters that are kept, beside the budget, for those who come back for them.
        changed: Told whenever a load ends.
    """

    def __init__(
        self,
        read: Callable[[Path, str | None], Folded],
        host_bytes: int,
        packed: PackedCache | None,
        workers: int,
        claim_ranks: int,
        changed: threading.Condition,
    ) -> None:
        self._read, self._packed = read, packed
        self._budget, self._workers, self._claim_ranks = host_bytes, workers, claim_ranks
        self._changed = changed
        self._kept: OrderedDict[str, Folded] = OrderedDict()
        self._claims: WeakKeyDictionary[Source, Folded] = WeakKeyDictionary()  # gone with a name that is removed
        self._flights: dict[str | Source, Flight] = {}  # by content hash, or by source where it has none yet
        self._urgent: deque[Flight] = deque()
        self._idle: dict[Flight, None] = {}  # prefetches, in order of arrival
        self._running = 0
        self._closed = False
        self.nbytes = self.evictions = self.packed_loads = self.folder_loads = self.failures = 0

    def __contains__(self, source: Source) -> bool:
        return source in self._claims or source.sha256 in self._kept

    def get(self, source: Source) -> Folded | None:
        """An adapter in host memory, which is marked as just used."""
        if source.sha256 is None or source.sha256 not in self._kept:
            return None
        self._kept.move_to_end(source.sha256)
        return self._kept[source.sha256]

    def claimed(self, source: Source) -> Folded | None:
        """An adapter that is kept for those who asked for it."""
        return self._claims.get(source)

    def settle(self, source: Source) -> None:
        """Keep an adapter no longer than the budget allows: it was handed over."""
        self._claims.pop(source, None)

    def load(self, source: Source, *, urgent: bool, keep: bool, claim: bool = False) -> Flight:
        """Start a load, or join the one that is under way for the same bytes.

        Args:
            source: What to load; it is not in host memory.
            urgent: Whether somebody needs it now; others come after.
            keep: Whether an error shall be kept at `source`.
            claim: Whether the adapter shall be kept until it is settled.
        """
        key = source if source.sha256 is None else source.sha256
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(source, source.sha256)
            self._idle[flight] = None
        if urgent and flight in self._idle:
            del self._idle[flight]
            self._urgent.append(flight)
        if keep:
            flight.keepers.append(source)
        if claim:
            flight.claims.append(source)
        if self._running < self._workers and (self._urgent or self._idle):
            threading.Thread(target=self._work, name="adapterhub-load").start()
            self._running += 1  # the new thread waits for the lock
        return flight

    def read(self, source: Source) -> Folded:
        """Read an adapter in this thread, without the lock; nothing is kept."""
        return self._fetched(Flight(source, source.sha256))[0]

    def close(self) -> None:
        """Give up what waits to be loaded, wait for what is being loaded, and forget all."""
        with self._changed:
            self._closed = True
            for flight in [*self._urgent, *self._idle]:
                self._fail(flight, InputError("The engine was closed before the adapter was loaded. Make a new one."))
            self._urgent.clear()
            self._idle.clear()
            while self._running:
                self._changed.wait()
            self._kept.clear()
            self._claims.clear()
            self.nbytes = 0

    def _work(self) -> None:
        while (flight := self._next()) is not None:
            self._fly(flight)

    def _next(self) -> Flight | None:
        with self._changed:
            if self._urgent:
                return self._urgent.popleft()
            # A prefetch that nobody waits for does not hold the end of the process up.
            if self._idle and threading.main_thread().is_alive():
                flight = next(iter(self._idle))
                del self._idle[flight]
                return flight
            self._running -= 1
            self._changed.notify_all()
            return None

    def _fly(self, flight: Flight) -> None:
        try:
            folded, fresh = self._fetched(flight)
        except BaseException as error:  # whatever it is, it belongs to those who asked
            with self._changed:
                self._fail(flight, error)
            return
        with self._changed:
            self._land(flight, folded, fresh=fresh)
        if fresh and self._packed is not None:
            try:
                self._packed.write(folded)
            except Exception:  # only the cache is poorer for it
                _log.exception("An adapter could not be written to the packed cache.")

    def _fetched(self, flight: Flight) -> tuple[Folded, bool]:
        """The adapter, and whether it comes from its own folder."""
        if self._packed is not None and flight.sha256 is not None:
            packed = self._packed.read(flight.sha256)
            if packed is not None:
                return packed, False
        folded = self._read(flight.source.folder, flight.sha256)
        if flight.sha256 not in {None, folded.sha256}:
            raise IntegrityError(
                f"{flight.source.folder} should have the content hash {flight.sha256}. Found {folded.sha256}. Fetch "
                "the adapter again."
            )
        # Most files hold little beside the adapter, and are kept as they were read.
        return (folded if folded.held_nbytes <= 1.1 * folded.nbytes else compact(folded)), True

    def _land(self, flight: Flight, folded: Folded, *, fresh: bool) -> None:
        self._forget(flight)
        self.folder_loads += fresh
        self.packed_loads += not fresh
        flight.source.sha256 = folded.sha256
        flight.folded = self._kept.get(folded.sha256, folded)  # another name may have brought the same bytes
        self._keep(flight.folded)
        for source in flight.claims:
            self._claims.pop(source, None)
            self._claims[source] = flight.folded
        ranks = sum(claimed.ranks for claimed in self._claims.values())
        for source in list(self._claims):  # oldest first
            if ranks > self._claim_ranks:
                ranks -= self._claims.pop(source).ranks
        self._changed.notify_all()

    def _fail(self, flight: Flight, error: BaseException) -> None:
        self._forget(flight)
        self.failures += 1
        flight.error = error
        for source in flight.keepers:
            if source.folder == flight.source.folder:  # the same bytes elsewhere may be sound
                source.error = error
        self._changed.notify_all()

    def _forget(self, flight: Flight) -> None:
        del self._flights[flight.source if flight.sha256 is None else flight.sha256]

    def _keep(self, folded: Folded) -> None:
        if folded.nbytes > self._budget or self._closed:
            return
        if folded.sha256 not in self._kept:
            self._kept[folded.sha256] = folded
            self.nbytes += folded.nbytes
        self._kept.move_to_end(folded.sha256)
        while self.nbytes > self._budget:
            _, old = self._kept.popitem(last=False)
            self.nbytes -= old.nbytes
            self.evictions += 1
