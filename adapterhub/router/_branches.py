"""Probability summed up the tree of names, and the branch to back off to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from adapterhub.router._types import Candidate

__all__ = ["BRANCH", "back_off", "branches"]

BRANCH = 0.8  # a branch is sure with this probability

Masses = tuple[tuple[str, float], ...]


def branches(ranked: Sequence[Candidate]) -> Masses:
    """Probability of each group: the sum over the tasks at and below it, largest first, equal ones by name.

    Args:
        ranked: The candidates; what the tasks left out would add is missing, so a mass is a lower bound.
    """
    masses: dict[str, list[float]] = {}
    for candidate in ranked:
        parts = candidate.task.split("/")
        for depth in range(1, len(parts)):
            masses.setdefault("/".join(parts[:depth]), []).append(candidate.probability)
    for candidate in ranked:
        if candidate.task in masses:  # a task that lies above other tasks
            masses[candidate.task].append(candidate.probability)
    summed = ((group, math.fsum(parts)) for group, parts in masses.items())
    return tuple(sorted(summed, key=lambda item: (-item[1], item[0])))


def back_off(masses: Iterable[tuple[str, float]], owns: Callable[[str], bool]) -> str | None:
    """The deepest branch that is sure and has an adapter of its own, or None.

    Siblings share a text's probability between them, so a branch can be sure where none of its tasks is.

    Args:
        masses: (group, probability).
        owns: Whether a task of that very name can be routed to.
    """
    sure = [group for group, mass in masses if mass >= BRANCH]  # one path: two siblings cannot both be
    return next((group for group in sorted(sure, key=len, reverse=True) if owns(group)), None)
