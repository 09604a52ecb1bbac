"""The one value that travels from the router to the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterhub.errors import InputError

__all__ = ["Route"]


@dataclass(frozen=True)
class Route:
    """Which adapters answer one row of a batch, and with which weights.

    The empty route is the base model. The first adapter is the primary one: its head answers.

    Args:
        adapters: Names of adapters, each at most once.
        gates: One finite weight for each adapter, a multiple of the scale at which it was trained.

    Raises:
        InputError: If the lengths differ, a name occurs twice, or a gate is not finite.
    """

    adapters: tuple[str, ...] = ()
    gates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.adapters) != len(self.gates):
            raise InputError(
                f"A route needs one gate for each adapter. Found {len(self.adapters)} adapters and "
                f"{len(self.gates)} gates. Give as many gates as adapters."
            )
        if len(set(self.adapters)) != len(self.adapters):
            raise InputError(
                f"A route names an adapter once. Found {self.adapters}. Add up the gates of the repeated one."
            )
        if not all(math.isfinite(gate) for gate in self.gates):
            raise InputError(f"A gate is a finite number. Found {self.gates}. Replace NaN and infinities.")

    @classmethod
    def to(cls, adapter: str) -> Route:
        """The route to one adapter at full scale."""
        return cls((adapter,), (1.0,))
