"""The decision rule: sure, a branch, ambiguous or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapterhub.route import Route
from adapterhub.router._branches import back_off, branches
from adapterhub.router._types import TIMES, Candidate, Decision, Kind, Policy

__all__ = ["SHOWN", "Rules", "choose", "clear", "decide"]

CLEAR = 0.5  # the first is clearly first with this probability, or with three times the second's
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
        null: Log-likelihood ratio of the null.
    """

    temperature: float
    threshold: float
    set_bound: float
    policy: Policy
    k: int
    null: float = 0.0


def decide(
    text: str, ranked: Sequence[Candidate], none: float, rules: Rules, owns: Callable[[str], bool] = lambda _: False
) -> Decision:
    """Decide one text.

    Args:
        text: The text.
        ranked: The tasks that matter, best first.
        none: Probability that no known task fits.
        rules: What the decision goes by.
        owns: Whether a task of that very name can be routed to; asked of branches only.
    """
    masses = branches(ranked)
    kind, route = choose(ranked, rules, masses, owns)
    return Decision(
        text=text,
        route=route,
        candidates=tuple(ranked[: max(rules.k, SHOWN)]),
        none_probability=none,
        threshold=rules.threshold,
        kind=kind,
        branches=masses,
        margin=_times(ranked),
        plausible=tuple(candidate.task for candidate in _plausible(ranked, rules)),
    )


def choose(
    ranked: Sequence[Candidate],
    rules: Rules,
    masses: Sequence[tuple[str, float]] = (),
    owns: Callable[[str], bool] = lambda _: False,
) -> tuple[Kind, Route]:
    """The kind of a decision and its route.

    Where no task is sure, a branch that is sure answers, whatever the policy: its adapter was trained on all of them.

    Args:
        ranked: The candidates, best first.
        rules: What the decision goes by.
        masses: (group, probability).
        owns: Whether a task of that very name can be routed to.
    """
    fits = bool(ranked) and ranked[0].score >= rules.threshold
    if fits and clear(ranked):
        return "sure", Route.to(ranked[0].task)
    branch = back_off(masses, owns)
    if branch is not None:
        return "branch", Route.to(branch)
    if not fits:
        return "none", Route()
    if rules.policy == "base":
        return "ambiguous", Route()
    if rules.policy == "top1":
        return "ambiguous", Route.to(ranked[0].task)
    members = _plausible(ranked, rules)[: rules.k]
    total = math.fsum(member.probability for member in members)
    return "ambiguous", Route(
        tuple(member.task for member in members), tuple(member.probability / total for member in members)
    )


def clear(ranked: Sequence[Candidate]) -> bool:
    """Whether the first candidate is clearly first."""
    return ranked[0].probability >= CLEAR or _times(ranked) >= TIMES


def _times(ranked: Sequence[Candidate]) -> float:
    if len(ranked) < 2 or not ranked[1].probability:
        return math.inf
    return ranked[0].probability / ranked[1].probability


def _plausible(ranked: Sequence[Candidate], rules: Rules) -> list[Candidate]:
    """The conformal set; the best is always in it."""
    return [*ranked[:1], *(other for other in ranked[1:] if 1 - other.probability <= rules.set_bound)]
