"""The decision rule: sure, a branch, ambiguous or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapterhub.route import Route
from adapterhub.router._branches import back_off, branches
from adapterhub.router._calibration import Bound
from adapterhub.router._types import TIMES, Candidate, Decision, Kind, Policy

__all__ = ["SHOWN", "Heard", "Rules", "choose", "clear", "decide"]

CLEAR = 0.5  # the first is clearly first with this probability, or with three times the second's
SHOWN = 16  # candidates that a decision shows at least, where there are so many


@dataclass(frozen=True)
class Rules:
    """What a decision goes by.

    Args:
        temperature: Divides log-likelihood ratios before they become probabilities.
        bounds: What is asked of tasks, by their number of examples, the largest first.
        policy: What an ambiguous text gets.
        k: Most adapters in the route.
        null: Log-likelihood ratio of the null.
    """

    temperature: float
    bounds: tuple[Bound, ...]
    policy: Policy
    k: int
    null: float = 0.0

    def bound(self, examples: int) -> Bound:
        """What is asked of a task with so many examples."""
        return next((bound for bound in self.bounds if bound.examples <= examples), self.bounds[-1])

    @property
    def widest(self) -> float:
        """The largest 1 - probability with which any task belongs to a set of answers."""
        return max(bound.miss for bound in self.bounds)


@dataclass(frozen=True)
class Heard:
    """What was heard in one text.

    Args:
        ranked: The tasks that matter, best first.
        examples: How many examples each of them has.
        together: What all tasks score together, in nats.
    """

    ranked: Sequence[Candidate]
    examples: Sequence[int]
    together: float

    def threshold(self, rules: Rules) -> float:
        """What the tasks have to score together; the best one says how much that is."""
        return rules.bound(self.examples[0]).threshold if self.ranked else -math.inf

    def plausible(self, rules: Rules) -> list[Candidate]:
        """The conformal set; the best is always in it."""
        pairs = zip(self.ranked, self.examples, strict=True)
        return [
            candidate
            for place, (candidate, examples) in enumerate(pairs)
            if not place or 1 - candidate.probability <= rules.bound(examples).miss
        ]


def decide(
    text: str, heard: Heard, none: float, rules: Rules, owns: Callable[[str], bool] = lambda _: False
) -> Decision:
    """Decide one text.

    Args:
        text: The text.
        heard: What was heard in it.
        none: Probability that no known task fits.
        rules: What the decision goes by.
        owns: Whether a task of that very name can be routed to; asked of branches only.
    """
    masses = branches(heard.ranked)
    kind, route = choose(heard, rules, masses, owns)
    return Decision(
        text=text,
        route=route,
        candidates=tuple(heard.ranked[: max(rules.k, SHOWN)]),
        none_probability=none,
        threshold=heard.threshold(rules),
        kind=kind,
        branches=masses,
        margin=_times(heard.ranked),
        plausible=tuple(candidate.task for candidate in heard.plausible(rules)),
        together=heard.together,
    )


def choose(
    heard: Heard,
    rules: Rules,
    masses: Sequence[tuple[str, float]] = (),
    owns: Callable[[str], bool] = lambda _: False,
) -> tuple[Kind, Route]:
    """The kind of a decision and its route.

    Where no task is sure, a branch that is sure answers, whatever the policy: its adapter was trained on all of them.

    Args:
        heard: The candidates and what was heard of them.
        rules: What the decision goes by.
        masses: (group, probability).
        owns: Whether a task of that very name can be routed to.
    """
    ranked = heard.ranked
    fits = bool(ranked) and heard.together >= heard.threshold(rules)
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
    members = heard.plausible(rules)[: rules.k]
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
