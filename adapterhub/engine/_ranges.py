"""Who owns which ranks of the arena: contiguous ranges of any length, first fit; no tensors."""

from __future__ import annotations

from collections.abc import Iterator


class Ranges:
    """First-fit allocation of contiguous ranges out of `capacity` ranks.

    Args:
        capacity: Number of ranks, positive.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: dict[str, range] = {}  # in the order of their starts

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __getitem__(self, name: str) -> range:
        return self._held[name]

    @property
    def free(self) -> int:
        """Ranks that nobody owns, contiguous or not."""
        return self.capacity - sum(len(held) for held in self._held.values())

    def take(self, name: str, length: int) -> range | None:
        """Give `name` the first gap of at least `length` ranks; None where no gap is long enough."""
        start = 0
        for held in self._held.values():
            if held.start - start >= length:
                break
            start = held.stop
        if self.capacity - start < length:
            return None
        self._held[name] = range(start, start + length)
        self._held = dict(sorted(self._held.items(), key=lambda item: item[1].start))
        return self._held[name]

    def release(self, name: str) -> None:
        """Take the range of `name` back."""
        del self._held[name]

    def compact(self) -> list[tuple[str, range, range]]:
        """Move all ranges to the front, in order.

        Returns:
            (name, old range, new range) of every range that moved, lowest first: the order in which rows can be copied.
        """
        moves: list[tuple[str, range, range]] = []
        start = 0
        for name, old in self._held.items():
            new = range(start, start + len(old))
            if new != old:
                moves.append((name, old, new))
            start = new.stop
        self._held.update({name: new for name, _, new in moves})
        return moves
