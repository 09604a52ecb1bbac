"""Why a text went where it went, with the examples that it resembles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import TaskVectors
from adapterhub.router._epoch import Epoch
from adapterhub.router._hearing import Hearing, Scored, row_of
from adapterhub.router._types import Decision, TaskSource

__all__ = ["Contrast", "Explanation", "Neighbour", "explained"]

Doubles = NDArray[np.float64]

TASKS = 3  # tasks whose examples are looked at
EXAMPLES = 2  # shown of each
DIRECTIONS = 3
ALIKE = 0.9  # cosine of two tasks' means from which their inputs look the same


@dataclass(frozen=True)
class Neighbour:
    """A stored example that a text resembles.

    Args:
        task: Its task.
        text: The example.
        cosine: Of the two encodings.
    """

    task: str
    text: str
    cosine: float


@dataclass(frozen=True)
class Contrast:
    """Why the first task and not the next one.

    Args:
        task: The next task.
        difference: How much more the first one scored, in nats.
        times: How many times likelier the first one is.
        directions: (number of a direction of the epoch, nats that it adds to the difference), the largest first; of
            tasks with several prototypes, as if they had one.
        alike: Cosine of the two tasks' mean examples, or None where one has neither example nor description.
    """

    task: str
    difference: float
    times: float
    directions: tuple[tuple[int, float], ...]
    alike: float | None


@dataclass(frozen=True)
class Explanation:
    """A decision with its reasons; `str()` of it is for people.

    Args:
        decision: The decision.
        nearest: Stored examples of the best tasks that the text resembles most, best tasks first.
        path: (group, probability) from the top of the tree down to the best task.
        next: Why not the second task; None where there is none.
        reason: The decision in one sentence.
    """

    decision: Decision
    nearest: tuple[Neighbour, ...]
    path: tuple[tuple[str, float], ...]
    next: Contrast | None
    reason: str

    def __str__(self) -> str:
        decision = self.decision
        lines = [decision.text, self.reason]
        lines += [
            f"  {candidate.task}: {candidate.probability:.1%}, score {candidate.score:.1f}"
            for candidate in decision.candidates[:TASKS]
        ]
        lines.append(
            f"  none: {decision.none_probability:.1%}, all together {decision.together:.1f}, "
            f"threshold {decision.threshold:.1f}"
        )
        if self.path:
            lines.append("branch: " + " > ".join(f"{group} {mass:.1%}" for group, mass in self.path))
        lines += [f'like "{near.text}" of {near.task} (cosine {near.cosine:.2f})' for near in self.nearest]
        if self.next is not None:
            lines.append(_why_not(self.next, decision))
        lines += [f"{task} has no example yet: add one with router.feedback(text, {task!r})" for task in decision.cold]
        return "\n".join(lines)


def explained(
    hearing: Hearing, registry: TaskSource, decision: Decision, vector: NDArray[np.floating], scored: Scored
) -> Explanation:
    """Explain one decision.

    Args:
        hearing: What it was decided on.
        registry: Where the examples' texts are.
        decision: The decision.
        vector: (d,) encoding of the text.
        scored: The best tasks with their scores.
    """
    ids = scored[0][:TASKS]
    stored = {task.id: task for task in hearing.catalog.vectors(hearing.encoder, np.sort(ids))} if len(ids) else {}
    tasks = [stored[id] for id in ids.tolist() if id in stored]
    pair = tasks[:2] if len(tasks) > 1 and len(decision.candidates) > 1 else []
    masses = dict(decision.branches)
    best = decision.candidates[0].task if decision.candidates else ""
    above = ["/".join(best.split("/")[:depth]) for depth in range(1, 1 + best.count("/"))]
    return Explanation(
        decision=decision,
        nearest=tuple(near for task in tasks for near in _neighbours(task, registry, vector)),
        path=tuple((group, masses[group]) for group in above),
        next=_contrast(hearing.era.epoch, pair, decision, vector) if pair else None,
        reason=_reason(decision),
    )


def _neighbours(task: TaskVectors, registry: TaskSource, vector: NDArray[np.floating]) -> list[Neighbour]:
    if not task.count:
        return []
    card = registry[task.name]
    if card.content_hash != task.content_hash:
        return []  # the card has changed since
    lengths = np.linalg.norm(task.examples, axis=1) * np.linalg.norm(vector)
    cosines = task.examples.astype(np.float64) @ vector / np.maximum(lengths, 1e-12)
    order = np.argsort(-cosines, kind="stable")[:EXAMPLES]
    return [Neighbour(task.name, card.examples[at], float(cosines[at])) for at in order]


def _contrast(epoch: Epoch, pair: Sequence[TaskVectors], decision: Decision, vector: NDArray[np.floating]) -> Contrast:
    first, second = decision.candidates[:2]
    size = len(epoch.psi)
    rows = [row_of(epoch, task) for task in pair]
    terms = (epoch.lift(vector[np.newaxis])[0] * (rows[0] - rows[1]))[:-1]  # the last one is the same for every text
    nats = terms[:size] + terms[size:]
    order = np.argsort(-np.abs(nats), kind="stable")[:DIRECTIONS]
    return Contrast(
        task=second.task,
        difference=first.score - second.score,
        times=decision.margin,
        directions=tuple((int(at), float(nats[at])) for at in order),
        alike=_alike(*pair),
    )


def _alike(one: TaskVectors, other: TaskVectors) -> float | None:
    means = [task.total if task.count else task.description for task in (one, other)]
    if means[0] is None or means[1] is None:
        return None
    length = float(np.linalg.norm(means[0]) * np.linalg.norm(means[1]))
    return float(means[0] @ means[1]) / length if length else None


def _reason(decision: Decision) -> str:
    if not decision.candidates:
        return "none: there is no task here that could be routed to."
    best = decision.candidates[0]
    if decision.kind == "none":
        return (
            f"none: all tasks together, the best of them {best.task}, scored {decision.together:.1f}, below the "
            f"threshold of {decision.threshold:.1f}; the base model answers."
        )
    if decision.kind == "sure" and not decision.ambiguous_with:
        return f"{best.task}: clearly first."
    if decision.kind == "branch":
        branch = decision.route.adapters[0]
        mass = dict(decision.branches)[branch]
        return (
            f"{branch}: no task is sure, but {mass:.0%} of the probability lies in this branch, which has an adapter."
        )
    chosen = " + ".join(decision.route.adapters) or "the base model"
    with_whom = ", ".join(decision.ambiguous_with[:TASKS])
    also = f"; {best.task} cannot be told apart from {with_whom}" if with_whom else ""
    return f"{chosen}: {'first' if decision.kind == 'sure' else 'ambiguous'}{also}."


def _why_not(contrast: Contrast, decision: Decision) -> str:
    best = decision.candidates[0].task
    times = "more than a million" if math.isinf(contrast.times) or contrast.times > 1e6 else f"{contrast.times:.1f}"
    text = f"not {contrast.task}: {contrast.difference:.1f} nats behind, {best} is {times} times likelier"
    if contrast.task in decision.ambiguous_with:
        text += ", which is too little to tell them apart"
        if contrast.alike is not None and contrast.alike >= ALIKE:
            text += f": their examples look the same (cosine {contrast.alike:.2f})"
        return f"{text}. Say in the text what is to be done with it, or name the task or its branch."
    shown = ", ".join(f"{at} ({nats:+.1f})" for at, nats in contrast.directions)
    return f"{text}; most by the directions {shown}"
