"""From scores to probabilities, and the thresholds of an honest `none`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.router._epoch import Epoch

__all__ = ["NULL_PRIOR", "Calibration", "Known", "cross_fit", "fit_temperature", "posterior"]

Doubles = NDArray[np.float64]
Known = tuple[Doubles, Doubles | None]  # a task's examples (n, d) and its description (d,)

NULL_PRIOR = 0.1  # of a task never seen; the known tasks share the rest equally
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
FOLDS = 4
LEAST_SCORES = 40  # fewer held-out scores than this say too little
MOST_SCORES = 4000


def posterior(scores: Doubles, tasks: int, temperature: float) -> tuple[Doubles, Doubles]:
    """Posterior over tasks and the null, whose log-likelihood ratio is 0.

    Args:
        scores: (b, s) log-likelihood ratios of the tasks looked at.
        tasks: Number N >= s of all tasks; those not looked at are taken as impossible.
        temperature: Divides the scores: Gaussians over correlated features are over-confident.

    Returns:
        (b, s) probabilities of the tasks and (b,) of the null.
    """
    logits = math.log((1 - NULL_PRIOR) / max(tasks, 1)) + scores / temperature
    null = np.full((len(scores), 1), math.log(NULL_PRIOR) if scores.shape[1] else 0.0)
    joint = np.concatenate([logits, null], axis=1)
    joint = np.exp(joint - joint.max(axis=1, keepdims=True))
    joint /= joint.sum(axis=1, keepdims=True)
    return joint[:, :-1], joint[:, -1]


def fit_temperature(scores: Sequence[Doubles], answers: Sequence[NDArray[np.intp]]) -> float:
    """The temperature of a grid with the least negative log-likelihood on held-out queries.

    Args:
        scores: For each hub, (b, N) log-likelihood ratios.
        answers: For each hub, (b,) column of the true task.
    """

    def loss(temperature: float) -> float:
        total = 0.0
        for block, truth in zip(scores, answers, strict=True):
            chosen = posterior(block, block.shape[1], temperature)[0][np.arange(len(block)), truth]
            total -= float(np.log(np.maximum(chosen, 1e-300)).sum())
        return total

    return min(TEMPERATURES, key=loss)


@dataclass(frozen=True)
class Calibration:
    """What held-out texts of known tasks scored (split conformal prediction, pooled over tasks).

    Args:
        temperature: Divides log-likelihood ratios before they become probabilities.
        scores: Log-likelihood ratios of held-out texts for their own task, ascending.
        misses: 1 - posterior of the true task for the same texts, ascending.
    """

    temperature: float
    scores: Doubles
    misses: Doubles

    @classmethod
    def of(cls, scores: Sequence[Doubles], answers: Sequence[NDArray[np.intp]]) -> Calibration:
        """Fit the temperature, then pool the held-out scores.

        Args:
            scores: For each hub, (b, N) log-likelihood ratios.
            answers: For each hub, (b,) column of the true task.
        """
        temperature = fit_temperature(scores, answers)
        own, misses = [], []
        for block, truth in zip(scores, answers, strict=True):
            rows = np.arange(len(block))
            own.append(block[rows, truth])
            misses.append(1 - posterior(block, block.shape[1], temperature)[0][rows, truth])
        return cls(temperature, np.sort(np.concatenate(own)), np.sort(np.concatenate(misses)))

    def threshold(self, alpha: float) -> float:
        """The score below which `none` is answered: a text of a known task falls below it with probability <= alpha.

        It is minus infinity, so that nothing is refused, where alpha asks for more held-out scores than there are.

        Args:
            alpha: Tolerated share of wrongful refusals.
        """
        position = math.floor(alpha * (len(self.scores) + 1))
        return float(self.scores[position - 1]) if position else -math.inf

    def set_bound(self, alpha: float) -> float:
        """The largest 1 - probability with which a task belongs to the set of answers of an ambiguous text."""
        position = math.ceil((1 - alpha) * (len(self.misses) + 1))
        return float(self.misses[position - 1]) if 0 < position <= len(self.misses) else 1.0

    @classmethod
    def absent(cls, dimension: int) -> Calibration:
        """What is used when nothing could be held out: no refusals, and a temperature that grows with the dimension.

        Args:
            dimension: Width d of an encoding; 16 was best at d = 384 under equal covariances.
        """
        return cls(max(1.0, dimension / 24), np.empty(0), np.empty(0))


def cross_fit(tasks: Sequence[Known], fit: Callable[[Sequence[Doubles]], Epoch]) -> Calibration | None:
    """Calibrate a hub on its own examples: a quarter of each task's is held out of statistics and rows, four times.

    Leaving one example out of its row but not out of the statistics is not enough: with fewer examples than
    dimensions nearly every new text then falls below the threshold.

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
    blocks, answers = [], []
    for turn in range(FOLDS):
        kept = [x[(fold != turn) | (len(x) < 2)] for (x, _), fold in zip(tasks, held, strict=True)]
        queries = [x[(fold == turn) & (len(x) > 1)] for (x, _), fold in zip(tasks, held, strict=True)]
        epoch = fit(kept)
        rows = np.stack([epoch.row(len(x), x.sum(axis=0), text) for x, (_, text) in zip(kept, tasks, strict=True)])
        answer = np.repeat(np.arange(len(tasks)), [len(x) for x in queries])[::stride]
        blocks.append(epoch.lift(np.concatenate(queries)[::stride]) @ rows.T)
        answers.append(answer)
    return Calibration.of(blocks, answers)
