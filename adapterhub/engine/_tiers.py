"""Three tiers: arena, host memory and disk; adapters move up as they are asked for and stay while they are used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from adapterhub.engine._arena import Arena
from adapterhub.engine._delta import Folded
from adapterhub.engine._packed import PackedCache
from adapterhub.engine._queue import Queue, Ticket
from adapterhub.engine._residents import Lease, Residents
from adapterhub.engine._store import Source, Store, TierStats
from adapterhub.errors import InputError, did_you_mean

__all__ = ["Lease", "TierStats", "Tiers"]


class Tiers:
    """Brings adapters by name from a packed file or a PEFT folder through host memory into the arena.

    All methods may be called from any thread. Loads run in worker threads; while one runs, others are served. Ranks are
    given in the order of arrival, and all of a call's adapters at once or none: a call that waits for ranks holds none,
    so calls do not block one another for ever. A thread that holds a lease may wait for itself: it uses `try_acquire`.

    A name is bound to its bytes at the first load. One that is removed or added again leaves the arena when the last
    lease on its old bytes ends, and until then its new bytes wait.

    Args:
        arena: The arena; nothing else places or drops adapters there.
        read: Reads and folds a folder's adapter, of the given content hash or of any; called in worker threads.
        host_bytes: Budget of host memory. Adapters on their way into the arena come on top.
        arena_bytes: Budget of the arena, as the sum of its adapters' `Folded.nbytes`; None leaves it to the ranks.
        packed: The cache of packed files, or None.
        workers: How many loads run at once.

    Raises:
        InputError: If a budget is negative or there is no worker.
    """

    def __init__(
        self,
        arena: Arena,
        read: Callable[[Path, str | None], Folded],
        *,
        host_bytes: int,
        arena_bytes: int | None = None,
        packed: PackedCache | None = None,
        workers: int = 1,
    ) -> None:
        if min(host_bytes, 0 if arena_bytes is None else arena_bytes) < 0 or workers < 1:
            raise InputError(
                "`host_bytes` and `arena_bytes` are 0 or more, and `workers` at least 1. Found "
                f"{host_bytes}, {arena_bytes} and {workers}."
            )
        self._changed = threading.Condition()
        self._store = Store(read, host_bytes, packed, workers, arena.capacity, self._changed)
        self._residents = Residents(arena, arena_bytes)
        self._sources: dict[str, Source] = {}
        self._queue = Queue(self._store, self._residents)
        self._closed = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all adapters that were added, sorted."""
        with self._changed:
            return tuple(sorted(self._sources))

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters in the arena, least recently used first."""
        with self._changed:
            return self._residents.names

    @property
    def host(self) -> tuple[str, ...]:
        """Names of the adapters in host memory, sorted."""
        with self._changed:
            return tuple(sorted(name for name, source in self._sources.items() if source in self._store))

    @property
    def stats(self) -> TierStats:
        """What was done so far."""
        with self._changed:
            store = self._store
            return TierStats(
                hits=self._queue.hits,
                misses=self._queue.misses,
                host_hits=self._queue.host_hits,
                packed_loads=store.packed_loads,
                folder_loads=store.folder_loads,
                failures=store.failures,
                evictions=self._residents.evictions,
                host_evictions=store.evictions,
                arena_bytes=self._residents.nbytes,
                host_bytes=store.nbytes,
            )

    def add(self, name: str, folder: Path, sha256: str | None = None, *, pinned: bool = False) -> None:
        """Say where an adapter lies. It is read and checked when it is first used.

        Args:
            name: The name that routes use; one that exists is replaced, unless folder and content hash are its own.
            folder: The adapter's folder.
            sha256: Its content hash, or None to take what is found at the first load.
            pinned: Whether it never leaves the arena once it is there.

        Raises:
            InputError: If there is no such folder, or the tiers are closed.
        """
        if not (folder := Path(folder)).is_dir():
            raise InputError(f"The folder of adapter '{name}' should exist. Found none at {folder}. Check the path.")
        with self._changed:
            self._check_open()
            old = self._sources.get(name)
            if old is None or sha256 is None or (old.folder, old.sha256) != (folder, sha256):
                self._sources[name] = Source(folder, sha256)
                self._residents.retire(name)
            (self._residents.pinned.add if pinned else self._residents.pinned.discard)(name)
            self._changed.notify_all()

    def remove(self, name: str) -> None:
        """Forget a name at once; its ranks are free when the last lease on it ends.

        Raises:
            InputError: If the name was not added.
        """
        self._check_names([name])
        with self._changed:
            self._sources.pop(name, None)
            self._residents.pinned.discard(name)
            self._residents.retire(name)
            self._changed.notify_all()

    def pin(self, name: str) -> None:
        """Keep an adapter, of a name that was added, in the arena from its next use on."""
        self._check_names([name])
        with self._changed:
            self._residents.pinned.add(name)
            self._changed.notify_all()  # somebody may be waiting for what can no longer be

    def unpin(self, name: str) -> None:
        """Let an adapter, of a name that was added, leave the arena again."""
        self._check_names([name])
        with self._changed:
            self._residents.pinned.discard(name)
            self._changed.notify_all()

    def evict(self, name: str) -> bool:
        """Take an adapter out of the arena; it comes back when it is next used.

        Args:
            name: A name that was added.

        Returns:
            Whether it is outside now: not where it is leased or pinned.

        Raises:
            InputError: If the name was not added.
        """
        self._check_names([name])
        with self._changed:
            return self._residents.evict(name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to load adapters into host memory, after those that somebody waits for.

        An error is kept and raised once, by the next call that asks for the adapter.

        Args:
            names: Names that were added.

        Raises:
            InputError: If a name was not added.
        """
        names = tuple(dict.fromkeys(names))
        self._check_names(names)
        with self._changed:
            for name in names:
                source = self._sources.get(name)
                if source is not None and source not in self._store and not self._residents.holds(name, source):
                    source.error = None
                    self._store.load(source, urgent=False, keep=True)

    def acquire(self, names: Iterable[str]) -> Lease:
        """Bring adapters into the arena and keep them there; wait for loads, and for ranks that others lease.

        Args:
            names: Names that were added.

        Raises:
            InputError: If a name was not added, or is removed meanwhile.
            CapacityError: If they can never be in the arena together.
            IncompatibleAdapterError: If an adapter does not fit the base.
            IntegrityError: If its bytes are damaged, or not those of the first load.
        """
        ticket = Ticket(tuple(dict.fromkeys(names)))
        self._check_names(ticket.names)
        with self._changed:
            self._queue.waiting.append(ticket)
            try:
                while (lease := self._advance(ticket)) is None:
                    self._changed.wait()
                return lease
            finally:
                self._queue.waiting.remove(ticket)
                self._changed.notify_all()

    def try_acquire(self, names: Iterable[str]) -> Lease | None:
        """Like `acquire`, but never waits: what is missing is loaded meanwhile, and the call is made again later.

        Args:
            names: Names that were added.

        Returns:
            The lease; or None while an adapter is being loaded, ranks are leased by others, or others wait for ranks.

        Raises:
            AdapterHubError: As `acquire` does.
        """
        ticket = Ticket(tuple(dict.fromkeys(names)), comes_back=True)
        self._check_names(ticket.names)
        with self._changed:
            return self._advance(ticket)

    def folded(self, name: str) -> Folded:
        """An adapter of a name that was added, from host memory or disk, without bringing it into the arena.

        Raises:
            AdapterHubError: As `acquire` does.
        """
        with self._changed:
            self._check_names([name])
            source = self._sources[name]
            found = self._store.get(source)
        return self._store.read(source) if found is None else found

    def close(self) -> None:
        """Refuse further calls, wake those that wait, and stop loading. Leases that are out may still be released."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._store.close()

    def _advance(self, ticket: Ticket) -> Lease | None:
        """One more look at what a call asks for: a lease if all is there, an error, or None to look again later."""
        self._check_open()
        gone = [name for name in ticket.names if name not in self._sources]
        if gone:
            raise InputError(f"An adapter is not removed while it is asked for. Found {', '.join(gone)}. Add it again.")
        leased = self._queue.advance(ticket, {name: self._sources[name] for name in ticket.names})
        return None if leased is None else Lease(leased, self._end)

    def _end(self, lease: Lease) -> None:
        """Count a lease's references down, once."""
        with self._changed:
            residents, lease.residents = lease.residents, {}
            if residents and not self._closed:  # the arena of a closed engine is empty
                self._residents.end(residents)
                self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("A closed engine takes no more calls. Found one. Make a new `Engine` on the model.")

    def _check_names(self, names: Iterable[str]) -> None:
        """Refuse unknown names; without the lock, as near names among many take a while to find."""
        self._check_open()
        unknown = [name for name in names if name not in self._sources]
        if unknown:
            known = list(self._sources)
            faults = (
                f"No adapter '{name}' in this engine ({len(known)} adapters).{did_you_mean(name, known)} "
                "Register it with `Engine.add`."
                for name in unknown
            )
            raise InputError("\n".join(faults))
