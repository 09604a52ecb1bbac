"""The rank arena: the adapters' memory beside the base's modules, and the plan of the batch that is running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from adapterhub.adapter import HeadTensors
from adapterhub.engine._delta import Folded
from adapterhub.engine._library import Native
from adapterhub.engine._plan import Part, Plan
from adapterhub.engine._planner import Kind
from adapterhub.engine._ranges import Ranges
from adapterhub.engine._site import Current, Site
from adapterhub.errors import CapacityError
from adapterhub.route import Route


class Arena:
    """`capacity` ranks beside every adapted module; an adapter owns the same contiguous range in all of them.

    A module is patched when the first adapter needs it. Calls from several threads are safe; a plan stays valid while
    other adapters come and go, as long as its own stay.

    Args:
        module: Finds a module of the base by its backbone-relative name.
        capacity: Number of ranks. An adapter takes as many as its largest rank, and at least one.
        dtype: The dtype to hold ranks in, where a module's own weight is quantised.
        kind: The plan to take everywhere, or None to take the cheapest for each shape.
        native: The compiled kernel, where it may be used.
    """

    def __init__(
        self,
        module: Callable[[str], nn.Module],
        capacity: int,
        dtype: torch.dtype = torch.float32,
        kind: Kind | None = None,
        native: Native | None = None,
    ) -> None:
        self._module = module
        self._dtype = dtype
        self._kind = kind
        self._native = native
        self._ranges = Ranges(capacity)
        self._inside: dict[str, HeadTensors | None] = {}  # least recently used first
        self._sites: dict[str, Site] = {}
        self._current = Current()
        self._lock = threading.RLock()

    def __contains__(self, name: object) -> bool:
        return name in self._inside

    @property
    def capacity(self) -> int:
        """Number of ranks in all."""
        return self._ranges.capacity

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters inside, least recently used first."""
        with self._lock:
            return tuple(self._inside)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, used or not."""
        with self._lock:
            return sum(site.nbytes for site in self._sites.values())

    def head(self, name: str) -> HeadTensors | None:
        """The head of an adapter inside."""
        return self._inside[name]

    def length(self, name: str) -> int:
        """Ranks that an adapter inside takes."""
        return len(self._ranges[name])

    def touch(self, names: Collection[str]) -> None:
        """Mark adapters inside as just used."""
        with self._lock:
            for name in names:
                self._inside[name] = self._inside.pop(name)

    def place(self, name: str, folded: Folded, keep: Collection[str] = ()) -> None:
        """Copy an adapter in, evicting the least recently used ones where ranks are short.

        Args:
            name: Its name, which is not inside.
            folded: The adapter.
            keep: Names that must stay.

        Raises:
            CapacityError: If it does not fit beside those that must stay; nothing has changed then.
        """
        with self._lock:
            kept = sum(self.length(other) for other in keep if other in self)
            check_capacity(kept + folded.ranks, self.capacity)
            for other in [other for other in self._inside if other not in keep]:
                if self._ranges.free >= folded.ranks:
                    break
                self.drop(other)
            held = self._ranges.take(name, folded.ranks)
            if held is None:
                self._compact()
                held = self._ranges.take(name, folded.ranks)
            assert held is not None  # the free ranks are one gap now
            try:
                for module, delta in folded.deltas.items():
                    self._site(module).write(name, held.start, delta)
                self._inside[name] = folded.head
            except BaseException:  # out of memory, or an interrupt, half way
                self.drop(name)
                raise

    def drop(self, name: str) -> None:
        """Give an adapter's ranks back."""
        with self._lock:
            self._ranges.release(name)
            self._inside.pop(name, None)
            for site in self._sites.values():
                site.drop(name)

    def plan(self, routes: Sequence[Route], kind: Kind | None = None, uses: int = 1) -> Plan:
        """The plan of a batch, in microseconds; it is worked out module by module when it first runs.

        Args:
            routes: One a row; all their adapters are inside, and stay while the plan runs.
            kind: The plan to take everywhere, or None for the arena's own choice.
            uses: Passes that are expected.
        """
        with self._lock:
            used = {name for route in routes for name in route.adapters}
            names = sorted(used, key=lambda name: self._ranges[name].start)
            return Plan(routes, names, kind or self._kind, uses, self._native)

    @contextmanager
    def running(self, plan: Plan) -> Iterator[None]:
        """Let the base's modules follow a plan, in this thread, until the block is left."""
        self._current.plan = plan if plan.names else None
        try:
            yield
        finally:
            self._current.plan = None

    @property
    def current(self) -> Plan | None:
        """The plan that this thread is running."""
        return self._current.plan

    def complete(self, plan: Plan) -> dict[str, Part]:
        """All parts of a plan by module, worked out now."""
        for name, site in list(self._sites.items()):
            if name not in plan.parts:
                self._part(site, plan)
        return {name: part for name, part in plan.parts.items() if part is not None}

    def close(self) -> None:
        """Give every module its own forward back and free all memory."""
        with self._lock:
            for name in self.names:
                self.drop(name)
            for site in self._sites.values():
                site.close()
            self._sites.clear()

    def _part(self, site: Site, plan: Plan) -> Part | None:
        with self._lock:
            active = sorted(((name, self._ranges[name].start) for name in plan.names), key=lambda item: item[1])
            plan.parts[site.name] = site.part(plan, active)
            return plan.parts[site.name]

    def _compact(self) -> None:
        moves = {name: (old.start, new.start) for name, old, new in self._ranges.compact()}
        for site in self._sites.values():
            site.compact(moves)

    def _site(self, name: str) -> Site:
        if name not in self._sites:
            module = self._module(name)
            self._sites[name] = Site(name, module, self._current, self._part, self.capacity, self._dtype)
        return self._sites[name]


def check_capacity(needed: int, capacity: int) -> None:
    """Raise CapacityError where one batch needs more ranks than there are."""
    if needed > capacity:
        raise CapacityError(
            f"One batch needs adapters of {needed:,} ranks in all but the arena holds {capacity:,}. "
            "Lower `k` or the batch size, or raise `arena_ranks`."
        )
