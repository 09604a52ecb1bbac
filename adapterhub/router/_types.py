"""What the router answers, and the seams around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import Encoder
from adapterhub.route import Route

__all__ = ["Candidate", "Decision", "Described", "Kind", "Policy", "RoutingPolicy", "TaskSource", "VectorsOfTask"]

Kind = Literal["sure", "ambiguous", "none"]
Policy = Literal["top1", "mixture", "base"]


@dataclass(frozen=True)
class Candidate:
    """One task's claim to a text.

    Args:
        task: Name of the task.
        score: Log-likelihood ratio of *this task* against *a task never seen*, in nats.
        probability: Posterior probability, calibrated by a temperature.
    """

    task: str
    score: float
    probability: float


@dataclass(frozen=True)
class Decision:
    """Why a text went where it went.

    Args:
        text: The text.
        route: Who answers; the empty route is the base model.
        candidates: The best tasks, best first.
        none_probability: Posterior probability that no known task fits.
        threshold: Scores below it are answered by the base model.
        kind: `sure` (the first is clearly first), `ambiguous`, or `none`.
        branches: (group, summed probability of the tasks below it), largest first.
    """

    text: str
    route: Route
    candidates: tuple[Candidate, ...]
    none_probability: float
    threshold: float
    kind: Kind
    branches: tuple[tuple[str, float], ...]


class RoutingPolicy(Protocol):
    """Anything that gives each text a route."""

    def route(self, texts: Sequence[str], k: int = 1) -> list[Route]:
        """One route of at most k adapters for each text."""
        ...


class VectorsOfTask(Protocol):
    """Encoded card of a task."""

    @property
    def name(self) -> str:
        """Name of the task."""
        ...

    @property
    def count(self) -> int:
        """Number n of examples."""
        ...

    @property
    def total(self) -> NDArray[np.float32]:
        """(d,) sum of the examples' vectors."""
        ...

    @property
    def description(self) -> NDArray[np.float32] | None:
        """(d,) vector of the description."""
        ...

    @property
    def examples(self) -> NDArray[np.float32]:
        """(n, d) vectors of the examples."""
        ...


class Described(Protocol):
    """What the router asks of a card."""

    @property
    def name(self) -> str:
        """Name of the task."""
        ...

    @property
    def adapter(self) -> str | None:
        """Where its adapter is, or None: only tasks with an adapter are routed to."""
        ...


class TaskSource(Protocol):
    """What the router needs of a registry."""

    def refresh(self) -> int:
        """A number that differs when a task was added, changed or removed."""
        ...

    def vectors(self, encoder: Encoder) -> Sequence[VectorsOfTask]:
        """The vectors of all tasks."""
        ...

    def under(self, prefix: str) -> Sequence[Described]:
        """The tasks at and below a branch; the empty prefix is the whole tree."""
        ...
