"""What the router is held against: scores of queries for tasks, from the same vectors and the same support.

Each takes a `Hub` and queries (b, d), and gives (b, N) scores, larger for likelier tasks. None but the retrained head
looks at more than one task at a time.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.router import Epoch, Sums

Doubles = NDArray[np.float64]
Answers = NDArray[np.intp]

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # inverse regularisations of the retrained head
SHRINKAGE = 0.1


@dataclass(frozen=True)
class Hub:
    """What is known of N tasks.

    Args:
        support: (n, d) of each task; n may be 0.
        descriptions: (N, d).
        sums: Statistics of the tasks that the shared covariance is made of.
        epoch: The router's, of these statistics or of others.
    """

    support: Sequence[Doubles]
    descriptions: Doubles
    sums: Sums
    epoch: Epoch

    @classmethod
    def of(cls, support: Sequence[Doubles], descriptions: Doubles, sums: Sums, epoch: Epoch | None = None) -> "Hub":
        return cls(support, descriptions, sums, Epoch.fit(sums) if epoch is None else epoch)


Scorer = Callable[[Hub, Doubles], Doubles]


def plda(hub: Hub, queries: Doubles) -> Doubles:
    rows = [
        hub.epoch.row(len(x), x.sum(axis=0), description)
        for x, description in zip(hub.support, hub.descriptions, strict=True)
    ]
    return hub.epoch.lift(queries) @ np.stack(rows).T


def centroid(hub: Hub, queries: Doubles) -> Doubles:
    return queries @ _unit(np.stack([x.mean(axis=0) for x in hub.support])).T


def described_centroid(hub: Hub, queries: Doubles) -> Doubles:
    """The nearest centroid with the router's rule: up to five examples the description counts as half of one."""
    weights = [0.5 if len(x) <= 5 else 0.0 for x in hub.support]
    sums = [x.sum(axis=0) + w * e for x, w, e in zip(hub.support, weights, hub.descriptions, strict=True)]
    return queries @ _unit(np.stack(sums)).T


def nearest(hub: Hub, queries: Doubles) -> Doubles:
    return np.stack([(queries @ x.T).max(axis=1) for x in hub.support], axis=1)


def three_nearest(hub: Hub, queries: Doubles) -> Doubles:
    return np.stack([np.sort(queries @ x.T, axis=1)[:, -3:].mean(axis=1) for x in hub.support], axis=1)


def lda(hub: Hub, queries: Doubles) -> Doubles:
    """Gaussians with equal covariances around the tasks' means."""
    pooled = hub.sums.scatter / hub.sums.freedom
    dimension = len(pooled)
    within = (1 - SHRINKAGE) * pooled + SHRINKAGE * np.trace(pooled) / dimension * np.eye(dimension)
    means = np.stack([x.mean(axis=0) for x in hub.support])
    solved = np.linalg.solve(within, means.T)  # (d, N)
    return queries @ solved - 0.5 * (means.T * solved).sum(axis=0)


def description(hub: Hub, queries: Doubles) -> Doubles:
    return queries @ hub.descriptions.T


TRAINING_FREE: dict[str, Scorer] = {
    "nearest centroid": centroid,
    "nearest centroid with description": described_centroid,
    "nearest example": nearest,
    "mean of 3 nearest": three_nearest,
    "LDA": lda,
}


@dataclass(frozen=True)
class Head:
    """A linear head over all tasks, retrained on all support; the strength that is best on validation inputs."""

    weights: Doubles
    bias: Doubles

    @classmethod
    def train(cls, support: Sequence[Doubles], validation: Sequence[Doubles]) -> "Head":
        from sklearn.linear_model import LogisticRegression

        inputs, labels = _labelled(support)
        asked, answers = _labelled(validation)
        heads = []
        for strength in STRENGTHS:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one example a task
                fitted = LogisticRegression(C=strength, max_iter=500).fit(inputs, labels)
            heads.append(cls(fitted.coef_.T, fitted.intercept_))
        return max(heads, key=lambda head: float(np.mean(head(asked).argmax(axis=1) == answers)))

    def __call__(self, queries: Doubles) -> Doubles:
        return queries @ self.weights + self.bias


def _labelled(groups: Sequence[Doubles]) -> tuple[Doubles, Answers]:
    return np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(x) for x in groups])


def _unit(rows: Doubles) -> Doubles:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
