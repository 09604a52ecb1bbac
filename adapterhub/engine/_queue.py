"""Calls that ask for adapters, in the order of their arrival, and how one gets its adapters together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapterhub.engine._delta import Folded
from adapterhub.engine._residents import Resident, Residents
from adapterhub.engine._store import Flight, Source, Store

__all__ = ["Queue", "Ticket"]


@dataclass(eq=False)
class Ticket:
    """One call that asks for adapters.

    Args:
        names: What it asks for.
        comes_back: Whether it does not wait but is made again later, as a new ticket.
        flights: Loads that it waits for.
        held: What was handed to it; host memory may drop these meanwhile.
        host_hits: Which of these were in host memory.
    """

    names: tuple[str, ...]
    comes_back: bool = False
    flights: dict[Source, Flight] = field(default_factory=dict)
    held: dict[Source, Folded] = field(default_factory=dict)
    host_hits: set[Source] = field(default_factory=set)

    @property
    def loaded(self) -> bool:
        """Whether no load is under way for it."""
        return all(flight.done for flight in self.flights.values())


class Queue:
    """Gives ranks in the order of arrival. Not locked: its one user holds a lock.

    A call that waits for ranks lets nobody pass who came later, not even one whose adapters are all in the arena: a
    flood of these would keep their ranks leased for ever. A call that waits for a load lets everybody pass.

    Args:
        store: Host memory.
        residents: The arena.
    """

    def __init__(self, store: Store, residents: Residents) -> None:
        self._store = store
        self._residents = residents
        self.waiting: list[Ticket] = []
        self.hits = self.misses = self.host_hits = 0

    def advance(self, ticket: Ticket, sources: Mapping[str, Source]) -> dict[str, Resident] | None:
        """Bring a call one step on.

        Args:
            ticket: The call.
            sources: What its names mean now.

        Returns:
            Its adapters, in the arena and leased; or None, to be asked again after a change.

        Raises:
            CapacityError: If they can never be in the arena together.
            Exception: Whatever a load has raised.
        """
        inside = self._residents.holds
        for name, source in sources.items():
            if not inside(name, source) and source not in ticket.held:
                self._fetch(ticket, source)
        if not ticket.loaded or self._residents.draining(sources) or (sources and self._is_behind(ticket)):
            return None
        missing = {name: ticket.held[source] for name, source in sources.items() if not inside(name, source)}
        if missing:
            if not self._residents.make_room(sources, missing):
                return None
            self._residents.place(sources, missing)
        for name in missing:
            self._store.settle(sources[name])
            self.host_hits += sources[name] in ticket.host_hits
        self.misses += len(missing)
        self.hits += len(sources) - len(missing)
        return self._residents.lease(ticket.names)

    def _fetch(self, ticket: Ticket, source: Source) -> None:
        """Hand an adapter to a ticket, start its load, or raise what went wrong."""
        if source.error is not None:
            error, source.error = source.error, None
            raise error
        flight = ticket.flights.get(source)
        if flight is not None and flight.error is not None and flight.source.folder == source.folder:
            raise flight.error
        folded = None if flight is None else flight.folded
        if folded is None:
            folded = self._store.get(source)
            ticket.host_hits |= set() if folded is None else {source}
        folded = folded or self._store.claimed(source)
        if folded is not None:
            ticket.held[source] = folded
        elif flight is None or flight.done:  # none yet, or one that failed in another name's folder
            back = ticket.comes_back
            ticket.flights[source] = self._store.load(source, urgent=True, keep=back, claim=back)

    def _is_behind(self, ticket: Ticket) -> bool:
        """Whether a call that came before waits for ranks and nothing else."""
        for other in self.waiting:
            if other is ticket:
                break
            if other.loaded and not self._residents.draining(other.names):
                return True
        return False
