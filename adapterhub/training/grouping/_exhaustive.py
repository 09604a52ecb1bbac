"""The best of all groupings of a few tasks, given what each would lose in each company (Standley et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError

__all__ = ["MOST", "best_grouping", "pairwise_loss"]

MOST = 12  # tasks: 3^12 splits of a set are looked at in a second

Company = tuple[int, ...]


def pairwise_loss(table: NDArray[np.float64]) -> Callable[[Company], float]:
    """The total loss of a group from the losses of pairs: each task's mean over its companions, as in the paper.

    Args:
        table: (tasks, tasks): entry (t, u) is the loss of t trained together with u, entry (t, t) that of t alone.

    Returns:
        The loss of a group, given as sorted indices of its tasks.

    Raises:
        InputError: If the table is not square and finite.
    """
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not np.isfinite(table).all():
        raise InputError(f"Losses of pairs are a square, finite table. Found {table.shape}. Measure every pair.")

    def loss(group: Company) -> float:
        return float(
            sum(table[t, t] if len(group) == 1 else np.mean([table[t, u] for u in group if u != t]) for t in group)
        )

    return loss


def best_grouping(loss: Callable[[Company], float], tasks: int, k: int) -> list[Company]:
    """Split tasks into at most k groups with the smallest total loss; every task is in one group.

    All splits are covered, by the best way to split each subset: the group of its first task, and the best split of the
    rest into one group fewer.

    Args:
        loss: The total loss of a group's tasks when they are trained together, given as sorted indices.
        tasks: Number of tasks.
        k: Most groups.

    Returns:
        The groups as sorted indices, in the order of their first tasks.

    Raises:
        InputError: If there are more than 12 tasks, or k is below 1.
    """
    if not 1 <= tasks <= MOST:
        raise InputError(f"All groupings are looked at of 1 to {MOST} tasks. Found {tasks}. Use average linkage.")
    if k < 1:
        raise InputError(f"`k` should be at least 1. Found {k}.")
    everyone = (1 << tasks) - 1
    cost = [0.0, *(loss(_members(subset)) for subset in range(1, everyone + 1))]
    best = {(0, 0): 0.0}  # by subset and most groups
    chosen: dict[tuple[int, int], int] = {}
    for groups in range(1, min(k, tasks) + 1):
        best[0, groups] = 0.0
        for subset in range(1, everyone + 1):
            options = (
                (cost[first] + best[subset ^ first, groups - 1], first)
                for first in _with_lowest(subset)
                if (subset ^ first, groups - 1) in best
            )
            best[subset, groups], chosen[subset, groups] = min(options)
    found, left, groups = [], everyone, min(k, tasks)
    while left:
        found.append(_members(chosen[left, groups]))
        left, groups = left ^ chosen[left, groups], groups - 1
    return found


def _members(subset: int) -> Company:
    return tuple(place for place in range(subset.bit_length()) if subset >> place & 1)


def _with_lowest(subset: int) -> list[int]:
    """The subsets of a set that hold its first member."""
    lowest = subset & -subset
    rest, part = subset ^ lowest, subset ^ lowest
    found = [lowest | part]
    while part:
        part = (part - 1) & rest
        found.append(lowest | part)
    return found
