"""Running sums over tasks: all that the shared covariance is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError

__all__ = ["Sums"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over the example vectors of a set of tasks; descriptions never enter.

    Args:
        scatter: (d, d) sum over tasks and examples of (x - mean)(x - mean)'.
        freedom: Sum over tasks of (examples - 1).
        tasks: Number of tasks with at least one example.
        means: (d,) sum of the tasks' means.
        outers: (d, d) sum of mean mean'.
        inverse_counts: Sum of 1 / examples.
    """

    scatter: Doubles
    freedom: float
    tasks: int
    means: Doubles
    outers: Doubles
    inverse_counts: float

    @classmethod
    def empty(cls, dimension: int) -> Sums:
        """The sums over no task."""
        square = np.zeros((dimension, dimension))
        return cls(square, 0.0, 0, np.zeros(dimension), square.copy(), 0.0)

    @classmethod
    def of(cls, tasks: Iterable[NDArray[np.floating]], dimension: int) -> Sums:
        """Sum over tasks, in the order given: give a fixed one, so that sums return to the same bits.

        Args:
            tasks: (n, d) example vectors of each task; a task without examples does not count.
            dimension: Width d.

        Raises:
            InputError: If a vector has another width or is not finite.
        """
        total = cls.empty(dimension)
        for examples in tasks:
            total = total + cls._one(np.asarray(examples, dtype=np.float64), dimension)
        return total

    @classmethod
    def _one(cls, examples: Doubles, dimension: int) -> Sums:
        if examples.ndim != 2 or examples.shape[1] != dimension:
            raise InputError(f"Example vectors have shape (n, {dimension}). Found {examples.shape}. Encode them again.")
        if not np.isfinite(examples).all():
            raise InputError(
                "Example vectors are finite. Found NaN or infinity. Check the encoder and encode them again."
            )
        if not len(examples):
            return cls.empty(dimension)
        mean = examples.mean(axis=0)
        centred = examples - mean
        count = len(examples)
        return cls(centred.T @ centred, count - 1.0, 1, mean, np.outer(mean, mean), 1.0 / count)

    def within(self) -> Sums:
        """These sums without the tasks' means: they say how texts of one task differ, and nothing of how tasks do."""
        return replace(Sums.empty(len(self.means)), scatter=self.scatter, freedom=self.freedom)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.scatter + other.scatter,
            self.freedom + other.freedom,
            self.tasks + other.tasks,
            self.means + other.means,
            self.outers + other.outers,
            self.inverse_counts + other.inverse_counts,
        )
