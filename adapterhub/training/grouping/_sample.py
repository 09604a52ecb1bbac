"""Minibatch gradients as inner products, from which every estimate of every resample follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adapterhub.training.grouping._gradients import TaskGradients

__all__ = ["Estimator", "Floats", "Sample"]

Estimator: TypeAlias = Literal["minibatches", "aggregate"]
Floats: TypeAlias = NDArray[np.float64]

_COLUMNS = 1 << 16  # parameters that are in memory as float64 at once


class Sample:
    """Minibatch gradients as inner products, from which every estimate of every resample follows.

    Args:
        gradients: By task.
        estimator: Which estimate.
        paired: Whether minibatch i of all tasks holds the same inputs: then they are drawn together.
    """

    def __init__(self, gradients: Sequence[TaskGradients], estimator: Estimator, *, paired: bool) -> None:
        self.counts = [len(one.matrix) for one in gradients]
        self._estimator, self._paired = estimator, paired
        self.gram = _gram(gradients)  # (all minibatches, all minibatches)
        self._starts = np.cumsum([0, *self.counts])

    @property
    def everything(self) -> list[Floats]:
        """The weights of every minibatch once, (1, minibatches) by task."""
        return [np.ones((1, count)) for count in self.counts]

    def resampled(self, generator: np.random.Generator, times: int) -> list[Floats]:
        """How often each minibatch is drawn, (times, minibatches) by task."""
        return self._drawn(lambda count: generator.multinomial(count, np.full(count, 1 / count), size=times))

    def halves(self, generator: np.random.Generator, times: int) -> tuple[list[Floats], list[Floats]]:
        """Random halves, (times, minibatches) by task each; of an odd number one is left out."""

        def orders(count: int) -> NDArray[np.int64]:
            return generator.permuted(np.tile(np.arange(count), (times, 1)), axis=1)

        drawn = self._drawn(orders)
        sizes = [count // 2 for count in self.counts]
        first = [np.where(order < size, 1.0, 0.0) for order, size in zip(drawn, sizes, strict=True)]
        second = [
            np.where((order >= size) & (order < 2 * size), 1.0, 0.0) for order, size in zip(drawn, sizes, strict=True)
        ]
        return first, second

    def estimate(self, weights: Sequence[Floats]) -> Floats:
        """(resamples, tasks, tasks): the cosines, each minibatch with its weight."""
        if self._estimator == "minibatches":
            return self._mean_of_cosines(weights[0])
        spread = np.zeros((len(weights[0]), len(self.counts), self._starts[-1]))
        for task, weight in enumerate(weights):
            spread[:, task, self._starts[task] : self._starts[task + 1]] = weight
        products = spread @ self.gram @ spread.transpose(0, 2, 1)
        return _cosines(products)

    def own(self, first: Sequence[Floats], second: Sequence[Floats]) -> Floats:
        """(resamples, tasks): the cosine of each task's mean gradients over two sets of its minibatches."""
        found = []
        for task, (a, b) in enumerate(zip(first, second, strict=True)):
            part = slice(self._starts[task], self._starts[task + 1])
            block = self.gram[part, part]
            norms = np.einsum("si,ij,sj->s", a, block, a) * np.einsum("si,ij,sj->s", b, block, b)
            found.append(np.einsum("si,ij,sj->s", a, block, b) / np.sqrt(norms))
        return np.stack(found, axis=1)

    def _mean_of_cosines(self, weight: Floats) -> Floats:
        tasks, count = len(self.counts), self.counts[0]
        split = self.gram.reshape(tasks, count, tasks, count)
        each = _cosines(np.einsum("aibi->iab", split))  # (minibatches, tasks, tasks)
        found: Floats = np.tensordot(weight / weight.sum(axis=1, keepdims=True), each, axes=1)
        return found

    def _drawn(self, draw: Callable[[int], NDArray[np.int64]]) -> list[Floats]:
        if self._paired:
            return [draw(self.counts[0]).astype(float)] * len(self.counts)
        return [draw(count).astype(float) for count in self.counts]


def _gram(gradients: Sequence[TaskGradients]) -> Floats:
    size, width = sum(len(one.matrix) for one in gradients), gradients[0].matrix.shape[1]
    found = np.zeros((size, size))
    for first in range(0, width, _COLUMNS):
        part = np.concatenate([one.matrix[:, first : first + _COLUMNS] for one in gradients]).astype(np.float64)
        found += part @ part.T
    return found


def _cosines(products: Floats) -> Floats:
    norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    found = np.clip(products / norms[..., :, None] / norms[..., None, :], -1, 1)
    symmetric: Floats = (found + found.swapaxes(-1, -2)) / 2  # to the last bit
    return symmetric
