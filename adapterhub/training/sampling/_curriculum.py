"""Easy rows first: a task's batches in an order of growing difficulty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from adapterhub.errors import InputError
from adapterhub.training._batches import schedule, steps_per_epoch

__all__ = ["Pacing", "curriculum"]


@dataclass(frozen=True)
class Pacing:
    """How fast the easiest share of the rows grows to all of them.

    `linear`: c(t) = c₀ + (1 − c₀) t/T; `root`: c(t) = √(c₀² + (1 − c₀²) t/T) (Platanios et al. 2019), which slows down
    as each new row is a smaller part of what is known.

    Args:
        steps: T, the task's batches until all rows take part.
        initial: c₀, the share to begin with, in (0, 1].
        shape: `linear` or `root`.

    Raises:
        InputError: If an argument is outside its range.
    """

    steps: int
    initial: float = 0.1
    shape: Literal["linear", "root"] = "root"

    def __post_init__(self) -> None:
        faults = []
        if self.steps < 1:
            faults.append(f"`steps` of a pacing should be a whole number of at least 1. Found {self.steps!r}.")
        if not 0 < self.initial <= 1:
            faults.append(f"`initial` of a pacing should be a share in (0, 1]. Found {self.initial!r}.")
        if self.shape not in ("linear", "root"):
            faults.append(f"`shape` of a pacing should be linear or root. Found {self.shape!r}.")
        if faults:
            raise InputError("\n".join(faults))

    def share(self, step: int) -> float:
        """The share of the rows, easiest first, that takes part at a step."""
        past = min(step / self.steps, 1.0)
        power = 1 if self.shape == "linear" else 2
        first = self.initial**power
        return float((first + (1 - first) * past) ** (1 / power))


def curriculum(
    difficulties: Sequence[float],
    lengths: Sequence[int],
    batch_size: int,
    seed: int,
    start: int = 0,
    *,
    pacing: Pacing,
) -> Iterator[list[int]]:
    """Batches without end, easy rows first (Bengio et al. 2009); a drop-in for `schedule`.

    They come in passes. A pass takes the rows that `pacing` admits at its beginning, each once, in batches of like
    lengths; once all are admitted a pass is an epoch. So every row is read within `pacing.steps` and two epochs.

    Args:
        difficulties: A number for each row, more is harder: its length, or its loss under the base.
        lengths: Tokens of each row.
        batch_size: Rows of a batch.
        seed: Seed of the order within a pass, and among rows of equal difficulty.
        start: Batches to leave out, where a run resumes.
        pacing: How the share grows.

    Yields:
        Positions of the batch's rows.

    Raises:
        InputError: If there is not one finite difficulty for each row.
    """
    if len(difficulties) != len(lengths) or not lengths:
        raise InputError(f"A curriculum needs a difficulty for each of {len(lengths)} rows. Found {len(difficulties)}.")
    wrong = [place for place, value in enumerate(difficulties) if not math.isfinite(value)]
    if wrong:
        raise InputError(f"Difficulties are finite numbers. Found {difficulties[wrong[0]]!r} for row {wrong[0]}.")
    return _passes(difficulties, lengths, batch_size, seed, start, pacing)


def _passes(
    difficulties: Sequence[float], lengths: Sequence[int], batch_size: int, seed: int, start: int, pacing: Pacing
) -> Iterator[list[int]]:
    ties = np.random.default_rng(seed).permutation(len(lengths))
    order = np.lexsort((ties, np.asarray(difficulties))).tolist()
    step, number = 0, 0
    while True:
        # Rounded up, so that 0.1 of few rows is a batch and the last share is all of them.
        rows = order[: max(math.ceil(pacing.share(step) * len(order)), min(batch_size, len(order)))]
        size = steps_per_epoch(len(rows), batch_size)
        skip = min(max(start - step, 0), size)
        if skip < size:
            batches = schedule([lengths[row] for row in rows], batch_size, seed, number * size + skip)
            yield from ([rows[place] for place in batch] for batch in islice(batches, size - skip))
        step, number = step + size, number + 1
