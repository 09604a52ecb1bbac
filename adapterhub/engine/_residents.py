"""Who is in the arena: references and pins that keep adapters there, and room that is made by evicting the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType

from adapterhub.engine._arena import Arena
from adapterhub.engine._delta import Folded
from adapterhub.engine._store import Source
from adapterhub.errors import CapacityError

__all__ = ["Lease", "Resident", "Residents"]


@dataclass(eq=False)
class Resident:
    """An adapter in the arena.

    Args:
        source: Where its name's bytes came from.
        sha256: Its content hash.
        ranks: Ranks of the arena that it takes.
        nbytes: Its bytes in host memory.
        leases: How many leases hold it.
        leaving: Whether its name was removed or means other bytes now, so that the last lease's end frees its ranks.
    """

    source: Source
    sha256: str
    ranks: int
    nbytes: int
    leases: int = 0
    leaving: bool = False


class Lease:
    """Adapters that stay in the arena, under the bytes they had, until the lease is released; a context manager.

    `hashes` are their content hashes by name: what a cache of hidden states is keyed by.

    Args:
        residents: The adapters by name; none once it is released.
        end: Counts its references down.
    """

    def __init__(self, residents: Mapping[str, Resident], end: Callable[[Lease], None]) -> None:
        self.residents = residents
        self.hashes: Mapping[str, str] = MappingProxyType({name: found.sha256 for name, found in residents.items()})
        self._end = end

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, each once, in the order in which they were asked for."""
        return tuple(self.hashes)

    def release(self) -> None:
        """Let them go; a second call does nothing."""
        self._end(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Residents:
    """The arena's adapters within its ranks and a budget of bytes. Not locked: its one user holds a lock.

    Args:
        arena: Nothing else places or drops adapters there.
        nbytes: Budget in bytes, as the sum of `Folded.nbytes`; None leaves it to the ranks.
    """

    def __init__(self, arena: Arena, nbytes: int | None) -> None:
        self._arena = arena
        self._budget = nbytes
        self._inside: dict[str, Resident] = {}
        self.pinned: set[str] = set()
        self.evictions = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What is inside and not leaving, least recently used first."""
        return tuple(name for name in self._arena.names if not self._inside[name].leaving)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is inside."""
        return sum(resident.nbytes for resident in self._inside.values())

    def holds(self, name: str, source: Source) -> bool:
        """Whether these very bytes are inside under a name."""
        resident = self._inside.get(name)
        return resident is not None and resident.source is source

    def draining(self, names: Iterable[str]) -> bool:
        """Whether old bytes are still leased under one of the names."""
        return any(name in self._inside and self._inside[name].leaving for name in names)

    def make_room(self, names: Collection[str], missing: Mapping[str, Folded]) -> bool:
        """Evict the least recently used for adapters that are not inside.

        Args:
            names: All that shall be inside together.
            missing: Those of them that are not.

        Returns:
            False, with nothing changed, while leases of others are in the way.

        Raises:
            CapacityError: If they would not fit were no lease out.
        """
        self._check_fits(names, missing)
        staying = self._staying(names)
        wanted = [(folded.ranks, folded.nbytes) for folded in missing.values()]
        kept = [(each.ranks, each.nbytes) for name, each in self._inside.items() if name in staying]
        if not self._fit(wanted + kept):
            return False
        free = [name for name in self._arena.names if name not in staying]
        while not self._fit(wanted + [(each.ranks, each.nbytes) for each in self._inside.values()]):
            self.drop(free.pop(0))
            self.evictions += 1
        return True

    def place(self, sources: Mapping[str, Source], missing: Mapping[str, Folded]) -> None:
        """Copy adapters in, all or none; there is room for them.

        Args:
            sources: All that shall be inside together.
            missing: Those of them that are not.
        """
        placed: list[str] = []
        staying = self._staying(sources)
        try:
            for name, folded in missing.items():
                self._arena.place(name, folded, keep=staying)
                self._inside[name] = Resident(sources[name], folded.sha256, folded.ranks, folded.nbytes)
                placed.append(name)
        except BaseException:  # out of memory, or an interrupt, half way
            for name in placed:
                self.drop(name)
            raise

    def lease(self, names: Collection[str]) -> dict[str, Resident]:
        """Count one reference to each of these, which are inside."""
        found = {name: self._inside[name] for name in names}
        for resident in found.values():
            resident.leases += 1
        self._arena.touch(names)
        return found

    def end(self, leased: Mapping[str, Resident]) -> None:
        """Count the references of one lease down."""
        for name, resident in leased.items():
            resident.leases -= 1
            if resident.leaving and not resident.leases:
                self.drop(name)
        self._arena.touch([name for name in leased if name in self._inside])

    def retire(self, name: str) -> None:
        """Let what is inside under a name go, now or when its last lease ends."""
        resident = self._inside.get(name)
        if resident is not None:
            resident.leaving = True
            if not resident.leases:
                self.drop(name)

    def evict(self, name: str) -> bool:
        """Take an adapter out unless a lease or a pin holds it; returns whether it is outside now."""
        if name in self._inside and name not in self._staying([]):
            self.drop(name)
        return name not in self._inside

    def drop(self, name: str) -> None:
        """Take an adapter out."""
        del self._inside[name]
        self._arena.drop(name)

    def _staying(self, names: Collection[str]) -> set[str]:
        """What must not be evicted now: what is asked for, leased or pinned."""
        return {*names, *self.pinned, *(name for name, resident in self._inside.items() if resident.leases)}

    def _fit(self, sizes: Iterable[tuple[int, int]]) -> bool:
        ranks, nbytes = (sum(column) for column in zip((0, 0), *sizes, strict=True))
        return ranks <= self._arena.capacity and (self._budget is None or nbytes <= self._budget)

    def _check_fits(self, names: Collection[str], missing: Mapping[str, Folded]) -> None:
        """Raise CapacityError where waiting for leases to end would not help."""
        sizes = [(folded.ranks, folded.nbytes) for folded in missing.values()]
        sizes += [(self._inside[name].ranks, self._inside[name].nbytes) for name in names if name not in missing]
        others = [self._inside[name] for name in self.pinned if name in self._inside and name not in names]
        pinned = [(each.ranks, each.nbytes) for each in others if not each.leaving]
        if self._fit(sizes + pinned):
            return
        limits = (self._arena.capacity, self._budget)
        for column, (unit, limit) in enumerate(zip(("ranks", "bytes"), limits, strict=True)):
            needed, held = (sum(size[column] for size in group) for group in (sizes, pinned))
            if limit is not None and needed + held > limit:
                beside = f", {held:,} of them for pinned adapters" if held else ""
                raise CapacityError(
                    f"One batch needs adapters of {needed:,} {unit} in all but the arena holds {limit:,}{beside}. "
                    f"Lower `k` or the batch size, or raise `arena_{unit}`."
                )
