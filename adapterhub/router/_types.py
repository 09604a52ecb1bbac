"""What the router answers, and the seams around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from adapterhub.catalog import Catalog
from adapterhub.encoder import Encoder
from adapterhub.route import Route
from adapterhub.task import Task

__all__ = ["TIMES", "Candidate", "Decision", "Kind", "Policy", "RoutingPolicy", "TaskSource"]

Kind = Literal["sure", "branch", "ambiguous", "none"]
Policy = Literal["top1", "mixture", "base"]

TIMES = 3.0  # a task that is so many times likelier than another is told apart from it


@dataclass(frozen=True)
class Candidate:
    """One task's claim to a text.

    Args:
        task: Name of the task.
        score: Log-likelihood ratio of *this task* against *a task never seen*, in nats; over several turns of a
            conversation their weighted mean.
        probability: Posterior probability, calibrated by a temperature.
    """

    task: str
    score: float
    probability: float


@dataclass(frozen=True)
class Decision:
    """Why a text went where it went.

    Args:
        text: The text; of a conversation the newest turn.
        route: Who answers; the empty route is the base model.
        candidates: The best tasks, best first.
        none_probability: Posterior probability that no known task fits.
        threshold: What all tasks have to score together, in nats; where they score less the base model answers. It
            depends on how many tasks there are and on how many examples the best one has.
        kind: `sure` (the first is clearly first), `branch` (no task is, but a branch with an adapter of its own),
            `ambiguous`, or `none`.
        branches: (group, summed probability of the tasks at and below it), largest first.
        margin: How many times likelier the first candidate is than the second; infinite without a second.
        plausible: The conformal set: with probability 1 - alpha the right task of a known text is in it.
        cold: Those of the best task and the route's that have no example yet; `Router.feedback` adds one.
        epoch: Fingerprint of the statistics that scored it.
        turns: How many turns of a conversation were heard, the newest included.
        together: What all tasks score together, in nats: the soft maximum of their scores.
    """

    text: str
    route: Route
    candidates: tuple[Candidate, ...]
    none_probability: float
    threshold: float
    kind: Kind
    branches: tuple[tuple[str, float], ...]
    margin: float = math.inf
    plausible: tuple[str, ...] = ()
    cold: tuple[str, ...] = ()
    epoch: str = ""
    turns: int = 1
    together: float = -math.inf

    @property
    def ambiguous_with(self) -> tuple[str, ...]:
        """The tasks that the best one cannot be told apart from: plausible, and less than three times less likely.

        There may be such tasks where the decision is sure: of two that share all probability, one has half of it.
        """
        if self.kind == "none":
            return ()
        least = self.candidates[0].probability / TIMES
        return tuple(
            other.task for other in self.candidates[1:] if other.probability > least and other.task in self.plausible
        )


class RoutingPolicy(Protocol):
    """Anything that gives each text a route."""

    def route(self, texts: Sequence[str], k: int = 1) -> list[Route]:
        """One route of at most k adapters for each text."""
        ...


class TaskSource(Protocol):
    """What the router needs of a registry."""

    def heard(self, encoder: Encoder) -> Catalog:
        """The catalogue, up to date, in which every active task has vectors of this encoder."""
        ...

    @property
    def index_folder(self) -> Path | None:
        """Where files derived from the catalogue may be kept, or None to keep them in memory."""
        ...

    def add_example(self, name: str, text: str) -> object:
        """Add an example to a task's card, durably."""
        ...

    def __getitem__(self, name: str) -> Task:
        """The task of that name."""
        ...
