"""Tasks drawn by their number of rows, flattened by a temperature."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from adapterhub.errors import InputError
from adapterhub.training.sampling._sampler import check_sizes, draw

__all__ = ["Proportional"]


class Proportional:
    """P(t) ∝ n_t^(1/T) (Raffel et al. 2020).

    T = 1 is proportional to the rows, a large T is close to uniform.

    Args:
        sizes: Rows of each task.
        temperature: T, in (0, inf).
        seed: Seed of the draws.

    Raises:
        InputError: If there is no task, one without rows, or T is outside its range.
    """

    def __init__(self, sizes: Mapping[str, int], *, temperature: float = 1.0, seed: int = 0) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"`temperature` should be a number above 0. Found {temperature!r}. 1 is proportional.")
        sizes = check_sizes(sizes)
        largest = max(sizes.values())
        powers = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
        if min(powers.values()) == 0:
            raise InputError(f"`temperature`={temperature} leaves tasks without any chance. Raise it towards 1.")
        self.shares = {name: power / sum(powers.values()) for name, power in powers.items()}
        self._seed, self._drawn = seed, 0

    def next(self, among: Collection[str] | None = None) -> str:
        """The task of the next step; see `TaskSampler`."""
        self._drawn += 1
        return draw(self.shares, among, self._seed, self._drawn)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing: the shares stay as they are."""

    def state_dict(self) -> dict[str, Any]:
        """The number of draws."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._drawn = int(state["drawn"])
