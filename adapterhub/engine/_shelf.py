"""The adapters of an engine: which there are, which are loaded, and which must stay or leave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapterhub.adapter import HeadTensors
from adapterhub.engine._arena import Arena
from adapterhub.engine._tiers import Tiers, TierStats

__all__ = ["Shelf"]


class Shelf:
    """Adapters of one base that come and go, by name; all methods may be called from any thread.

    Args:
        tiers: Where they come from.
        arena: Where they are held.
    """

    def __init__(self, tiers: Tiers, arena: Arena) -> None:
        self._tiers, self._arena = tiers, arena

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all adapters that were added, sorted."""
        return self._tiers.names

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters in the arena, least recently used first."""
        return self._tiers.loaded

    @property
    def stats(self) -> TierStats:
        """Hits, loads and evictions so far, and bytes held, by tier."""
        return self._tiers.stats

    def add(self, name: str, folder: Path, *, sha256: str | None = None, pinned: bool = False) -> None:
        """Say where an adapter lies. It is read and checked when it is first used.

        A name is bound to its bytes at the first load: a folder that changes later is refused until it is added again.

        Args:
            name: The name that routes use; one that exists is replaced.
            folder: The adapter's folder.
            sha256: Its content hash, or None to take what is found at the first load.
            pinned: Whether it never leaves the arena once it is there.

        Raises:
            InputError: If there is no such folder.
        """
        self._tiers.add(name, folder, sha256, pinned=pinned)

    def remove(self, name: str) -> None:
        """Forget an adapter that was added: its name at once, its ranks when the last batch that uses it ends."""
        self._tiers.remove(name)

    def load(self, name: str) -> HeadTensors | None:
        """Put an adapter into the arena if it is not there.

        Args:
            name: A name that was added.

        Returns:
            Its head, or None where the base's LM head answers.

        Raises:
            InputError: If the name was not added.
            IncompatibleAdapterError: If the adapter does not fit the base.
            IntegrityError: If its bytes are damaged, or not those of the first load.
            CapacityError: If it has more ranks than the arena.
        """
        with self._tiers.acquire([name]):
            return self._arena.head(name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to load adapters that were added into host memory; their errors are raised when they are used."""
        self._tiers.prefetch(names)

    def evict(self, name: str) -> bool:
        """Take an adapter that was added out of the arena; it comes back when it is next used.

        Returns:
            Whether it is outside now: not where a batch is using it, or it is pinned.
        """
        return self._tiers.evict(name)

    def pin(self, name: str) -> None:
        """Keep an adapter that was added in the arena, from its next use on."""
        self._tiers.pin(name)

    def unpin(self, name: str) -> None:
        """Let an adapter leave the arena again where room is needed."""
        self._tiers.unpin(name)
