"""From scores to probabilities, and the thresholds of an honest `none`.

Everything is calibrated on texts that were held out of statistics and rows, once for each of a few numbers of examples
(Mondrian conformal prediction): a task that has one example is told apart less well than one that has twenty, so its
texts need larger sets and a lower threshold. One temperature and one null serve all.

What a hub's other tasks score depends on how many they are. So of each text is kept what the mean rival got among 1, 4,
16, 64 and all of the other tasks, and how improbable its own task would be in a hub of N tasks, or how little all of
them would score together, follows from that. The mean over few is not the mean over many: it is mostly below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "NULL_PRIOR", "Block", "Bound", "Calibration", "Level", "fit_temperature", "posterior", "together"]

Doubles = NDArray[np.float64]
Answers = NDArray[np.intp]
Block = tuple[Doubles, Answers]  # (b, N) log-likelihood ratios of texts for the tasks of a hub, (b,) the true columns

LEVELS = (20, 5, 1, 0)  # numbers of examples that are calibrated for
SIZES = (1, 4, 16, 64)  # of the other tasks
NULL_PRIOR = 0.05  # of a task never seen; the known tasks share the rest equally
COARSE = np.geomspace(1.0, 64.0, 13)  # temperatures
FINE = np.geomspace(2**-0.5, 2**0.5, 17)  # times the best of those
NULLS = np.linspace(-60.0, 20.0, 161)  # scores, in nats
_REMEMBERED = 1000  # bounds of hubs of so many sizes


def posterior(scores: Doubles, tasks: int, temperature: float, null: float = 0.0) -> tuple[Doubles, Doubles]:
    """Posterior over tasks and the null.

    Args:
        scores: (b, s) log-likelihood ratios of the tasks looked at.
        tasks: Number N >= s of all tasks; those not looked at are taken as impossible.
        temperature: Divides the scores: Gaussians over correlated features are over-confident.
        null: Log-likelihood ratio of the null. It is 0 by the model; a text of a task that is not there scores less
            under its nearest tasks than the model says, and less than 0 is calibrated.

    Returns:
        (b, s) probabilities of the tasks and (b,) of the null.
    """
    logits = math.log((1 - NULL_PRIOR) / max(tasks, 1)) + scores / temperature
    prior = math.log(NULL_PRIOR) + null / temperature if scores.shape[1] else 0.0
    joint = np.concatenate([logits, np.full((len(scores), 1), prior)], axis=1)
    joint = np.exp(joint - joint.max(axis=1, keepdims=True))
    joint /= joint.sum(axis=1, keepdims=True)
    return joint[:, :-1], joint[:, -1]


def together(scores: Doubles, temperature: float) -> Doubles:
    """What the tasks score together: their soft maximum, temperature * log sum exp(score / temperature).

    Args:
        scores: (b, s) log-likelihood ratios.
        temperature: As for `posterior`.

    Returns:
        (b,) in nats; minus infinity where there is no task.
    """
    return temperature * _log_sum(scores / temperature)


def fit_temperature(levels: Sequence[Sequence[Block]]) -> tuple[float, float]:
    """The temperature with the least negative log-likelihood of the true tasks among the known ones, and that loss.

    The null has no say: these texts all belong to known tasks, and it would make them look less certain than they are.

    Args:
        levels: Scored texts; all levels count alike, however many texts they have.
    """

    def loss(temperature: float) -> float:
        losses = []
        for blocks in levels:
            own = [block[np.arange(len(block)), truth] / temperature for block, truth in blocks]
            rest = [_log_sum(block / temperature) for block, _ in blocks]
            losses.append(float((np.concatenate(rest) - np.concatenate(own)).mean()))
        return math.fsum(losses) / len(losses)

    best = min(COARSE, key=loss)
    best = min(best * FINE, key=loss)
    return float(best), loss(best)


@dataclass(frozen=True)
class Bound:
    """What is asked of tasks with a certain number of examples.

    Args:
        examples: They have at least so many.
        threshold: What all tasks score together below which a text gets `none`, in nats.
        miss: The largest 1 - probability with which such a task belongs to the set of answers of an ambiguous text.
    """

    examples: int
    threshold: float
    miss: float


ANYTHING = Bound(0, -math.inf, 1.0)


@dataclass(frozen=True)
class Level:
    """Held-out texts, scored when tasks had a certain number of examples.

    Args:
        examples: The number.
        scores: (n,) log-likelihood ratios of the texts for their own task.
        rivals: (n, k) logarithm of the mean of exp(score / temperature) over some of the other tasks, for each text
            drawn anew; those of fewer are among those of more.
        sizes: (k,) how many these were, ascending.
    """

    examples: int
    scores: Doubles
    rivals: Doubles
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, examples: int, blocks: Sequence[Block], temperature: float) -> Level:
        """Pool the held-out scores of some hubs."""
        least = min(block.shape[1] for block, _ in blocks) - 1
        sizes = np.array([*(size for size in SIZES if size < least), least][: least + 1], dtype=np.int64)
        random = np.random.default_rng(0)
        own = [block[np.arange(len(block)), truth] for block, truth in blocks]
        rivals = [_rivals(*block, sizes, temperature, random) for block in blocks]
        return cls(examples, np.concatenate(own), np.concatenate(rivals), sizes)

    def against(self, others: int) -> Doubles:
        """(n,) logarithm of the sum of exp(score / temperature) over so many other tasks.

        The mean over a number of tasks that lies between two of `sizes` is interpolated, that over more than the
        largest is the same.
        """
        if others < 1 or not self.sizes[-1]:
            return np.full(len(self.scores), -np.inf)
        place = np.interp(math.log(others), np.log(self.sizes), np.arange(len(self.sizes)))
        low, share = int(place), place - int(place)
        high = min(low + 1, len(self.sizes) - 1)
        mean: Doubles = (1 - share) * self.rivals[:, low] + share * self.rivals[:, high]
        return mean + math.log(others)

    def bound(self, alpha: float, tasks: int, scored: int, temperature: float, null: float) -> Bound:
        """The conformal order statistics; nothing is asked where alpha asks for more held-out texts than there are."""
        texts = len(self.scores)
        low, high = math.floor(alpha * (texts + 1)), math.ceil((1 - alpha) * (texts + 1))
        threshold, miss = -math.inf, 1.0
        own = self.scores / temperature
        if low:
            sums = temperature * np.logaddexp(own, self.against(scored - 1))
            threshold = float(np.partition(sums, low - 1)[low - 1])
        if 0 < high <= texts:
            mine, rest, prior = _masses(own, self.against(tasks - 1), tasks, temperature, null)
            misses = -np.expm1(mine - np.logaddexp(np.logaddexp(mine, rest), prior))
            miss = float(np.partition(misses, high - 1)[high - 1])
        return Bound(self.examples, threshold, miss)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What held-out texts of known tasks scored.

    Args:
        temperature: Divides log-likelihood ratios before they become probabilities.
        levels: By number of examples, the largest first.
        null: Log-likelihood ratio of the null: fitted on the same texts as if their own task were not there.
        loss: Mean negative log-likelihood of the held-out texts' own tasks among the known ones, in nats.
    """

    temperature: float
    levels: tuple[Level, ...] = ()
    null: float = 0.0
    loss: float = math.nan
    _bounds: dict[tuple[float, int, int], tuple[Bound, ...]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, blocks: Mapping[int, Sequence[Block]]) -> Calibration:
        """Fit the temperature, then the null, and pool the held-out scores.

        Args:
            blocks: By number of examples that tasks have, held-out texts scored in some hubs.
        """
        examples = sorted(blocks, reverse=True)
        temperature, loss = fit_temperature([blocks[count] for count in examples])
        levels = tuple(Level.of(count, blocks[count], temperature) for count in examples)
        null = min(
            NULLS, key=lambda candidate: math.fsum(_null_loss(level, temperature, candidate) for level in levels)
        )
        return cls(temperature, levels, float(null), loss)

    def bounds(self, alpha: float, tasks: int, scored: int | None = None) -> tuple[Bound, ...]:
        """What is asked of tasks, by their number of examples, the largest first.

        A text of a known task is refused with probability <= alpha, and its task is outside the set of answers with
        probability <= alpha.

        Args:
            alpha: Tolerated share.
            tasks: Number N of tasks in the hub.
            scored: How many of them are scored for a text, the best ones; by default all. They score no less together
                than as many drawn at random.
        """
        key = alpha, tasks, tasks if scored is None else scored
        if key not in self._bounds:
            if len(self._bounds) >= _REMEMBERED:
                self._bounds.clear()
            found = tuple(level.bound(*key, self.temperature, self.null) for level in self.levels)
            self._bounds[key] = found or (ANYTHING,)
        return self._bounds[key]

    @classmethod
    def absent(cls, dimension: int) -> Calibration:
        """What is used when nothing could be held out: no refusals, and a temperature that grows with the dimension.

        Args:
            dimension: Width d of an encoding; 16 was best at d = 384 under equal covariances.
        """
        return cls(max(1.0, dimension / 24))


def _masses(own: Doubles, rest: Doubles, tasks: int, temperature: float, null: float) -> tuple[Doubles, Doubles, float]:
    """Logarithms of what a text's own task, all others and the null would have before they are normalised."""
    share = math.log((1 - NULL_PRIOR) / max(tasks, 1))
    return share + own, share + rest, math.log(NULL_PRIOR) + null / temperature


def _null_loss(level: Level, temperature: float, null: float) -> float:
    """Negative log-likelihood of texts that belong to a hub, and of the same texts where their task is not in it."""
    others = int(level.sizes[-1])
    rest = level.against(others)
    mine, theirs, prior = _masses(level.scores / temperature, rest, others + 1, temperature, null)
    known = mine - np.logaddexp(np.logaddexp(mine, theirs), prior)
    foreign = prior - np.logaddexp(_masses(mine, rest, others, temperature, null)[1], prior)
    return -float((1 - NULL_PRIOR) * known.mean() + NULL_PRIOR * foreign.mean())


def _rivals(
    scores: Doubles, truth: Answers, sizes: NDArray[np.int64], temperature: float, random: np.random.Generator
) -> Doubles:
    """(b, k) log mean exp(score / temperature) over other tasks than the true one."""
    turned = random.random(scores.shape)
    turned[np.arange(len(scores)), truth] = 2.0  # comes last
    drawn = np.take_along_axis(scores / temperature, turned.argsort(axis=1), axis=1)
    return np.stack([_log_sum(drawn[:, :size]) - math.log(max(size, 1)) for size in sizes.tolist()], axis=1)


def _log_sum(logits: Doubles) -> Doubles:
    """(b,) log of the sum of the exponentials of each row; minus infinity where there is nothing to sum."""
    largest = np.maximum(logits.max(axis=1, initial=-np.inf), -1e300)
    with np.errstate(divide="ignore"):
        total: Doubles = largest + np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
    return total
