"""Figures of merit: accuracy by task, calibration error, coverage, and what separates known from foreign texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Answers = NDArray[np.intp]

ALPHAS = (0.05, 0.1, 0.2)
BINS = 15
RESAMPLES = 2000


def ranks(scores: Doubles, answers: Answers) -> Answers:
    """(b,) how many tasks come before the true one; of equal scores half."""
    own = scores[np.arange(len(scores)), answers][:, np.newaxis]
    ties = (scores == own).sum(axis=1) - 1
    return (scores > own).sum(axis=1) + ties // 2


def by_task(values: NDArray[np.generic], answers: Answers, tasks: int) -> Doubles:
    """(N,) mean of a figure over the queries of each task."""
    return np.bincount(answers, np.asarray(values, dtype=np.float64), tasks) / np.bincount(answers, minlength=tasks)


def calibration_error(confidence: Doubles, right: NDArray[np.bool_]) -> float:
    """Expected calibration error over bins of equal mass (Naeini et al. 2015)."""
    order = np.argsort(confidence, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in bins) / len(order))


def auroc(known: Doubles, foreign: Doubles) -> float:
    """Probability that a known text scores above a foreign one (Mann-Whitney)."""
    order = np.sort(foreign)
    below, level = np.searchsorted(order, known, "left"), np.searchsorted(order, known, "right")
    return float((below + level).mean() / 2 / len(foreign))


def false_alarms(known: Doubles, foreign: Doubles, recall: float = 0.95) -> float:
    """Share of foreign texts that are taken for known ones where this share of the known is recognised."""
    return float(np.mean(foreign >= np.quantile(known, 1 - recall)))


@dataclass(frozen=True)
class Interval:
    """A mean over tasks and where 95 % of it lies when tasks are drawn again."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def interval(differences: Doubles) -> Interval:
    """Paired bootstrap over tasks."""
    random = np.random.default_rng(0)
    draws = random.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), (0.025, 0.975))
    return Interval(float(differences.mean()), float(low), float(high))


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
