"""Calibration of a hub on its own examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterhub.router._calibration import LEVELS, Block, Calibration
from adapterhub.router._epoch import Epoch

__all__ = ["Known", "cross_fit"]

Doubles = NDArray[np.float64]
Known = tuple[Doubles, Doubles | None]  # a task's examples (n, d) and its description (d,)

FOLDS = 4
LEAST_SCORES = 40  # fewer held-out scores than this say too little
MOST_SCORES = 2000  # for each number of examples


def cross_fit(tasks: Sequence[Known], fit: Callable[[Sequence[Doubles]], Epoch]) -> Calibration | None:
    """Calibrate a hub on its own examples: a quarter of each task's is held out of statistics and rows, four times.

    Leaving one example out of its row but not out of the statistics is not enough: with fewer examples than
    dimensions nearly every new text then falls below the threshold.

    For each number of examples that is calibrated for, tasks with more are scored with so many only. A number that
    fewer than 40 texts belong to is left out.

    Args:
        tasks: (examples (n, d), description (d,) or None) of each task.
        fit: Makes an epoch from the examples that are not held out, one array a task.

    Returns:
        The calibration, or None when fewer than 40 examples can be held out.
    """
    held = [np.arange(len(examples)) % FOLDS for examples, _ in tasks]
    count = sum(len(fold) for fold in held if len(fold) > 1)
    if count < LEAST_SCORES:
        return None
    stride = math.ceil(count / MOST_SCORES)
    blocks: dict[int, list[Block]] = {level: [] for level in LEVELS}
    for turn in range(FOLDS):
        kept = [x[(fold != turn) | (len(x) < 2)] for (x, _), fold in zip(tasks, held, strict=True)]
        queries = [x[(fold == turn) & (len(x) > 1)] for (x, _), fold in zip(tasks, held, strict=True)]
        epoch = fit(kept)
        whose = np.repeat(np.arange(len(tasks)), [len(x) for x in queries])[::stride]
        lifted = epoch.lift(np.concatenate(queries)[::stride])
        for level, found in blocks.items():
            answers = np.flatnonzero(np.array([_belongs(task, level) for task in tasks])[whose])
            scores = lifted[answers] @ _rows(epoch, tasks, kept, level).T
            found.append((scores, whose[answers]))
    blocks = {level: found for level, found in blocks.items() if sum(len(x) for _, x in found) >= LEAST_SCORES}
    return Calibration.of(blocks) if blocks else None


def _belongs(task: Known, level: int) -> bool:
    """Whether a task can be scored as if it had so many examples only."""
    examples, description = task
    return len(examples) >= level and (level > 0 or description is not None)


def _rows(epoch: Epoch, tasks: Sequence[Known], kept: Sequence[Doubles], level: int) -> Doubles:
    """(N, 2 r + 1) rows of tasks with no more examples than those of a level have."""
    more = min((other for other in LEVELS if other > level), default=math.inf)
    rows = []
    for (examples, description), x in zip(tasks, kept, strict=True):
        some = x if len(examples) < more else x[:level]
        rows.append(epoch.row(len(some), some.sum(axis=0), description))
    return np.stack(rows)
