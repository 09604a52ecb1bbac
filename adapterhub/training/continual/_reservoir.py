"""A bounded memory of a stream of rows, balanced over its classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from adapterhub.errors import InputError

__all__ = ["Reservoir"]

_Item = TypeVar("_Item")


class Reservoir(Generic[_Item]):
    """A class-balanced reservoir (Chrysakis & Moens 2020); with one class it is Vitter's algorithm R (1985).

    Until it is full everything is kept. Then a row of a class that never was the largest pushes out a random row of the
    largest class; a row of a class that was takes the place of a random one of its own with probability
    (kept of the class) / (seen of the class), so that within a class all rows are kept with the same chance.

    Args:
        capacity: Rows at most.
        seed: Seed of every choice.

    Raises:
        InputError: If `capacity` is below 1.
    """

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 1:
            raise InputError(f"A reservoir holds at least one row. Found capacity {capacity}. Raise it.")
        self.capacity = capacity
        self._rows: dict[str, list[_Item]] = {}
        self._seen: dict[str, int] = {}
        self._full: set[str] = set()
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def __iter__(self) -> Iterator[_Item]:
        for rows in self._rows.values():
            yield from rows

    @property
    def seen(self) -> dict[str, int]:
        """Rows of each class that were offered."""
        return dict(self._seen)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each class that are held."""
        return {label: len(rows) for label, rows in self._rows.items()}

    def add(self, example: _Item, label: str) -> bool:
        """Offer a row.

        Args:
            example: The row.
            label: Its class.

        Returns:
            Whether it was kept.
        """
        self._seen[label] = self._seen.get(label, 0) + 1
        own = self._rows.setdefault(label, [])
        if len(self) < self.capacity:
            own.append(example)
            return True
        most = max(map(len, self._rows.values()))
        largest = [name for name, rows in self._rows.items() if len(rows) == most]
        self._full.update(largest)
        if label not in self._full:
            rows = self._rows[largest[self._below(len(largest))]]
            # The order within a class says nothing, so the last row fills the gap.
            place = self._below(len(rows))
            rows[place] = rows[-1]
            rows.pop()
            own.append(example)
            return True
        if self._generator.random() * self._seen[label] >= len(own):
            return False
        own[self._below(len(own))] = example
        return True

    def sample(self, count: int) -> list[_Item]:
        """Different rows drawn from those held, each with the same chance.

        Args:
            count: How many; all of them if there are fewer.
        """
        rows = list(self)
        places = self._generator.choice(len(rows), min(count, len(rows)), replace=False) if rows else ()
        return [rows[place] for place in places]

    def state_dict(self) -> dict[str, Any]:
        """Rows, counts and the state of the generator; JSON holds it if it holds the rows."""
        return {
            "rows": {label: list(rows) for label, rows in self._rows.items()},
            "seen": dict(self._seen),
            "full": sorted(self._full),
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave, of a reservoir of the same capacity.

        Raises:
            InputError: If it holds more rows than this reservoir does.
        """
        rows = {label: list(items) for label, items in state["rows"].items()}
        held = sum(map(len, rows.values()))
        if held > self.capacity:
            raise InputError(f"A reservoir of {self.capacity} rows takes no state of {held}. Raise its capacity.")
        self._rows, self._seen = rows, dict(state["seen"])
        self._full = set(state["full"])
        self._generator.bit_generator.state = state["generator"]

    def _below(self, end: int) -> int:
        return int(self._generator.integers(end))
