"""The decision rule: none, sure or ambiguous, and the masses up the tree that explain it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.route import Route
from adapterhub.router._calibration import posterior
from adapterhub.router._types import Candidate, Decision, Kind, Policy

__all__ = ["Rules", "branches", "choose", "decide"]

CLEAR = 0.5  # the first is clearly first with this probability ...
TIMES = 3.0  # ... or this many times the second's
SHOWN = 16  # candidates that a decision shows at least, where there are so many


@dataclass(frozen=True)
class Rules:
    """What a decision goes by.

    Args:
        temperature: Divides log-likelihood ratios before they become probabilities.
        threshold: Conformal threshold of the best score.
        set_bound: Largest 1 - probability inside the conformal set of an ambiguous text.
        policy: What an ambiguous text gets.
        k: Most adapters in the route.
    """

    temperature: float
    threshold: float
    set_bound: float
    policy: Policy
    k: int


def decide(text: str, names: Sequence[str], scores: NDArray[np.float64], tasks: int, rules: Rules) -> Decision:
    """Decide one text.

    Args:
        text: The text.
        names: The s tasks that were scored.
        scores: (s,) their log-likelihood ratios.
        tasks: Number N >= s of all tasks it could have been.
        rules: What the decision goes by.
    """
    probabilities, none = posterior(scores[np.newaxis], tasks, rules.temperature)
    ranked = [
        Candidate(name, float(score), float(probability))
        for name, score, probability in zip(names, scores, probabilities[0], strict=True)
    ]
    ranked.sort(key=lambda candidate: (-candidate.score, candidate.task))  # equal scores: by name
    kind, route = choose(ranked, rules)
    return Decision(
        text=text,
        route=route,
        candidates=tuple(ranked[: max(rules.k, SHOWN)]),
        none_probability=float(none[0]),
        threshold=rules.threshold,
        kind=kind,
        branches=branches(ranked),
    )


def choose(ranked: Sequence[Candidate], rules: Rules) -> tuple[Kind, Route]:
    """The kind of a decision and its route; the candidates come best first."""
    if not ranked or ranked[0].score < rules.threshold:
        return "none", Route()
    best = ranked[0]
    second = ranked[1].probability if len(ranked) > 1 else 0.0
    if best.probability >= CLEAR or best.probability >= TIMES * second:
        return "sure", Route.to(best.task)
    if rules.policy == "base":
        return "ambiguous", Route()
    if rules.policy == "top1":
        return "ambiguous", Route.to(best.task)
    members = [best, *(other for other in ranked[1 : rules.k] if 1 - other.probability <= rules.set_bound)]
    total = math.fsum(member.probability for member in members)
    return "ambiguous", Route(
        tuple(member.task for member in members), tuple(member.probability / total for member in members)
    )


def branches(ranked: Sequence[Candidate]) -> tuple[tuple[str, float], ...]:
    """Probability of each group: the sum over the tasks below it, largest first, equal ones by name."""
    masses: dict[str, list[float]] = {}
    for candidate in ranked:
        parts = candidate.task.split("/")
        for depth in range(1, len(parts)):
            masses.setdefault("/".join(parts[:depth]), []).append(candidate.probability)
    summed = ((group, math.fsum(parts)) for group, parts in masses.items())
    return tuple(sorted(summed, key=lambda item: (-item[1], item[0])))
