"""Every task once a cycle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from adapterhub.training.sampling._sampler import check_names, check_sizes

__all__ = ["Balanced"]


class Balanced:
    """Round-robin: every task once a cycle, in an order that each cycle shuffles anew.

    Args:
        sizes: Rows of each task; only the names count.
        seed: Seed of the orders.

    Raises:
        InputError: If there is no task or one without rows.
    """

    def __init__(self, sizes: Mapping[str, int], *, seed: int = 0) -> None:
        self._names = list(check_sizes(sizes))
        self._seed, self._cycle = seed, 0
        self._waiting: list[str] = []

    @property
    def shares(self) -> dict[str, float]:
        """The share of each task: the same for all."""
        return dict.fromkeys(self._names, 1 / len(self._names))

    def next(self, among: Collection[str] | None = None) -> str:
        """The task of the next step; see `TaskSampler`. Tasks that are left out lose their turn."""
        while True:
            if not self._waiting:
                order = np.random.default_rng([self._seed, self._cycle]).permutation(len(self._names))
                self._waiting = [self._names[place] for place in order]
                self._cycle += 1
            name = self._waiting.pop(0)
            if among is None or name in among:
                return name

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing: the shares stay as they are."""

    def state_dict(self) -> dict[str, Any]:
        """The number of cycles begun, and who has not had a turn in the last one."""
        return {"cycle": self._cycle, "waiting": list(self._waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: If it names other tasks.
        """
        check_names(state["waiting"], self._names, "The sampler's state")
        self._cycle, self._waiting = int(state["cycle"]), list(state["waiting"])
