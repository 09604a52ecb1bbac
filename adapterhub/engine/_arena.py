"""The rank arena: the adapters' memory beside the base's modules, and the plan of the batch that is running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterhub.adapter import Adapter, HeadTensors
from adapterhub.engine._bank import Bank
from adapterhub.engine._plan import Gates, Plan, Term
from adapterhub.engine._ranges import Ranges
from adapterhub.errors import CapacityError
from adapterhub.route import Route


class _Site:
    """One module of the base that some adapter has changed, with its banks."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.banks: dict[tuple[str, str], Bank] = {}


class _Current(threading.local):
    """The running batch's plan, seen only by the thread that runs it."""

    plan: Plan | None = None


class Arena:
    """`capacity` ranks beside every adapted module; an adapter owns the same contiguous range in all of them.

    A module is wrapped by a forward hook when the first adapter needs it, so that names, parameters and `state_dict` of
    the base stay as they are. Without a plan the hook leaves the output alone.

    Args:
        module: Finds a module of the base by its backbone-relative name.
        capacity: Number of ranks. An adapter takes as many as its largest rank, and at least one.
    """

    def __init__(self, module: Callable[[str], nn.Module], capacity: int) -> None:
        self._module = module
        self._ranges = Ranges(capacity)
        self._heads: dict[str, HeadTensors | None] = {}  # least recently used first
        self._sites: dict[str, _Site] = {}
        self._hooks: list[Any] = []
        self._current = _Current()

    def __contains__(self, name: object) -> bool:
        return name in self._heads

    @property
    def capacity(self) -> int:
        """Number of ranks in all."""
        return self._ranges.capacity

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters inside, least recently used first."""
        return tuple(self._heads)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows, used or not."""
        banks = [bank for site in self._sites.values() for bank in site.banks.values()]
        return sum(t.numel() * t.element_size() for bank in banks for t in (bank.down, bank.up, bank.bias))

    def head(self, name: str) -> HeadTensors | None:
        """The head of an adapter inside."""
        return self._heads[name]

    def length(self, name: str) -> int:
        """Ranks that an adapter inside takes."""
        return len(self._ranges[name])

    def touch(self, names: Collection[str]) -> None:
        """Mark adapters inside as just used."""
        for name in names:
            self._heads[name] = self._heads.pop(name)

    def place(self, name: str, adapter: Adapter, keep: Collection[str] = ()) -> None:
        """Copy an adapter in, evicting the least recently used ones where ranks are short.

        Args:
            name: Its name, which is not inside.
            adapter: What was read from its folder.
            keep: Names that must stay.

        Raises:
            CapacityError: If it does not fit beside those that must stay; nothing has changed then.
        """
        length = ranks_of(adapter)
        kept = sum(self.length(other) for other in keep if other in self)
        check_capacity(kept + length, self.capacity)
        for other in [other for other in self._heads if other not in keep]:
            if self._ranges.free >= length:
                break
            self.drop(other)
        held = self._ranges.take(name, length)
        if held is None:
            self._compact()
            held = self._ranges.take(name, length)
        assert held is not None  # the free ranks are one gap now
        try:
            self._write(name, held.start, adapter)
        except BaseException:  # out of memory, or an interrupt, half way
            self.drop(name)
            raise

    def drop(self, name: str) -> None:
        """Give an adapter's ranks back."""
        self._ranges.release(name)
        self._heads.pop(name, None)
        for site in self._sites.values():
            for bank in site.banks.values():
                bank.drop(name)

    def plan(self, routes: Sequence[Route]) -> Plan:
        """The plan of a batch: dense over the ranks in use.

        Args:
            routes: One a row; all their adapters are inside.
        """
        used = {name for route in routes for name in route.adapters}
        active = [(name, self._ranges[name].start) for name in self._ranges if name in used]
        gates = Gates(routes, [name for name, _ in active])
        terms: dict[str, tuple[Term, ...]] = {}
        for module, site in self._sites.items():
            found = [bank.dense(active, gates) for bank in site.banks.values()] if active else []
            here = tuple(term for term in found if term is not None)
            if here:
                terms[module] = here
        return Plan(len(routes), terms)

    @contextmanager
    def running(self, plan: Plan) -> Iterator[None]:
        """Let the base's modules follow a plan, in this thread, until the block is left."""
        self._current.plan = plan
        try:
            yield
        finally:
            self._current.plan = None

    @property
    def current(self) -> Plan | None:
        """The plan that this thread is running."""
        return self._current.plan

    def close(self) -> None:
        """Unwrap every module and free all memory."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._sites.clear()
        for name in self.names:
            self.drop(name)

    def _write(self, name: str, start: int, adapter: Adapter) -> None:
        for module, factors in adapter.modules.items():
            site = self._site(module)
            kind = (factors.reads, factors.activation)
            if kind not in site.banks:
                site.banks[kind] = Bank(factors, site.weight, self.capacity)
            site.banks[kind].write(name, start, factors)
        self._heads[name] = adapter.head

    def _compact(self) -> None:
        for name, old, new in self._ranges.compact():
            for site in self._sites.values():
                for bank in site.banks.values():
                    bank.move(name, old.start, new.start)

    def _site(self, name: str) -> _Site:
        if name not in self._sites:
            module = self._module(name)

            def adapted(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor | None:
                plan = self._current.plan
                return None if plan is None else plan.apply(name, args[0], y)

            weight = module.get_parameter("weight").detach()
            self._sites[name] = _Site(weight)
            self._hooks.append(module.register_forward_hook(adapted))
        return self._sites[name]


def ranks_of(adapter: Adapter) -> int:
    """Ranks that an adapter takes: its largest, and one where it is a head alone, so that heads are bounded too."""
    return max(adapter.rank, 1)


def check_capacity(needed: int, capacity: int) -> None:
    """Raise CapacityError where one batch needs more ranks than there are."""
    if needed > capacity:
        raise CapacityError(
            f"One batch needs adapters of {needed:,} ranks in all but the arena holds {capacity:,}. "
            "Lower `k` or the batch size, or raise `arena_ranks`."
        )
