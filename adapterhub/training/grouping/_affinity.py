"""How far tasks pull shared parameters the same way, and whether the data is enough to say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import InputError
from adapterhub.training.grouping._gradients import TaskGradients
from adapterhub.training.grouping._sample import Estimator, Floats, Sample

__all__ = ["Affinity", "affinity"]

LOW_OVERLAP = 0.4
FEW_ROWS = 128
_FEWEST = 4  # minibatches: two in each half
_SPLITS = 50


@dataclass(frozen=True, eq=False)
class Affinity:
    """The affinity of every two tasks, with what it rests on.

    Args:
        tasks: Their names.
        matrix: (tasks, tasks), cosines.
        low: (tasks, tasks), lower ends of the 95 % bootstrap intervals.
        high: (tasks, tasks), their upper ends.
        overlap: (tasks, tasks), the share of the smaller task's inputs that are inputs of the other too.
        rows: Rows of each task.
        estimator: `minibatches`: the mean of the cosines of minibatches with the same inputs. `aggregate`: the cosine
            of the mean gradients.
        reliability: How well two halves of the minibatches agree, stepped up to the whole (Spearman and Brown): over
            the pairs of three or more tasks, or for two tasks the geometric mean of their gradients' own. The
            correlation with the truth is about its square root.
        warnings: What makes the numbers weaker, a sentence each.
        refusal: Why the numbers should not be used, or the empty string.
    """

    tasks: tuple[str, ...]
    matrix: Floats
    low: Floats
    high: Floats
    overlap: Floats
    rows: tuple[int, ...]
    estimator: Estimator
    reliability: float
    warnings: tuple[str, ...]
    refusal: str

    def trusted(self) -> Floats:
        """The matrix.

        Raises:
            InputError: If it should not be used.
        """
        if self.refusal:
            raise InputError(self.refusal)
        return self.matrix

    def negative(self) -> list[tuple[str, str, float]]:
        """Pairs whose whole interval is below 0, the worst first: two names and their affinity."""
        found = [
            (self.tasks[a], self.tasks[b], float(self.matrix[a, b]))
            for a in range(len(self.tasks))
            for b in range(a)
            if self.high[a, b] < 0
        ]
        return sorted(found, key=lambda pair: pair[2])


def affinity(
    gradients: Sequence[TaskGradients],
    *,
    estimator: Estimator | None = None,
    least: float = 0.4,
    resamples: int = 400,
    seed: int = 0,
) -> Affinity:
    """Estimate affinities from minibatch gradients (compare arXiv 2604.07848).

    Where two tasks see other inputs, noise and the shift of the inputs weaken every estimate; with the same inputs much
    of the noise is common to both and drops out.

    Args:
        gradients: Two tasks or more, on the same parameters.
        estimator: See `Affinity`; by default `minibatches` where all tasks' minibatches hold the same inputs.
        least: Refuse below this reliability.
        resamples: Bootstrap resamples.
        seed: Seed of halves and resamples.

    Raises:
        InputError: If there are fewer than two tasks, their parameters differ, a gradient is zero or not finite, or
            `minibatches` is asked of minibatches that do not hold the same inputs.
    """
    paired = len({one.inputs for one in gradients}) == 1
    _check(gradients, estimator, paired=paired)
    chosen: Estimator = estimator or ("minibatches" if paired else "aggregate")
    names = [one.task for one in gradients]
    sample = Sample(gradients, chosen, paired=paired)
    _check_norms(sample, names)
    generator = np.random.default_rng(seed)
    matrix = sample.estimate(sample.everything)[0]
    low, high = _interval(matrix, sample.estimate(sample.resampled(generator, resamples)))
    reliability = _reliability(sample, generator) if min(sample.counts) >= _FEWEST else math.nan
    overlap = _overlap(gradients)
    rows = tuple(one.rows for one in gradients)
    return Affinity(
        tuple(names),
        matrix,
        low,
        high,
        overlap,
        rows,
        chosen,
        reliability,
        _warnings(names, overlap, rows),
        _refusal(sample, reliability, least),
    )


def _interval(matrix: Floats, resampled: Floats) -> tuple[Floats, Floats]:
    """95 % of the resamples, moved onto the estimate: drawing twice adds noise, which pulls every cosine to 0."""
    low, middle, high = np.quantile(resampled, [0.025, 0.5, 0.975], axis=0)
    return np.clip(matrix + low - middle, -1, 1), np.clip(matrix + high - middle, -1, 1)


def _reliability(sample: Sample, generator: np.random.Generator) -> float:
    first, second = sample.halves(generator, _SPLITS)
    if len(sample.counts) == 2:
        own = _stepped_up(sample.own(first, second).mean(axis=0))
        return float(np.sqrt(own.prod()))
    pairs = np.triu_indices(len(sample.counts), 1)
    a, b = (sample.estimate(half)[:, pairs[0], pairs[1]] for half in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    found = (a * b).sum(axis=1)[spread > 0] / spread[spread > 0]
    return float(_stepped_up(found.mean())) if len(found) else 0.0


def _stepped_up(half: Floats | np.float64) -> Floats:
    """The reliability of a whole from the agreement of its halves (Spearman and Brown 1910); 0 at the least."""
    kept = np.clip(half, 0, 1)
    found: Floats = 2 * kept / (1 + kept)
    return found


def _overlap(gradients: Sequence[TaskGradients]) -> Floats:
    inputs = [{key for batch in one.inputs for key in batch} for one in gradients]
    return np.array([[len(a & b) / max(min(len(a), len(b)), 1) for b in inputs] for a in inputs])


def _check(gradients: Sequence[TaskGradients], estimator: Estimator | None, *, paired: bool) -> None:
    if len(gradients) < 2:
        raise InputError(f"Affinity is between two tasks or more. Found {len(gradients)}. Add a task.")
    faults = [
        f"{one.task}: gradients are (minibatches, parameters), finite, with the inputs of each minibatch. "
        f"Found {one.matrix.shape} and {len(one.inputs)}."
        for one in gradients
        if one.matrix.ndim != 2 or not len(one.inputs) == len(one.matrix) > 0 or not np.isfinite(one.matrix).all()
    ]
    if len({one.matrix.shape[-1] for one in gradients}) > 1:
        faults.append("Tasks have gradients on the same parameters. Found another number of them.")
    if estimator == "minibatches" and not paired:
        faults.append("`minibatches` compares minibatches with the same inputs. Found others. Use `aggregate`.")
    if faults:
        raise InputError("\n".join(faults))


def _check_norms(sample: Sample, names: Sequence[str]) -> None:
    owners = np.repeat(np.arange(len(names)), sample.counts)
    still = sorted({names[owner] for owner in owners[np.diagonal(sample.gram) == 0]})
    if still:
        raise InputError(f"A gradient that is compared is not 0. Found 0 in {', '.join(still)}. Look at its rows.")


def _warnings(names: Sequence[str], overlap: Floats, rows: Sequence[int]) -> tuple[str, ...]:
    found = [
        f"{names[a]} and {names[b]} have {overlap[a, b]:.0%} of their inputs in common. Below {LOW_OVERLAP:.0%} the "
        "inputs' shift and noise can be what is measured. Give all tasks the same inputs."
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if overlap[a, b] < LOW_OVERLAP
    ]
    few = [f"{name} has {count} rows" for name, count in zip(names, rows, strict=True) if count < FEW_ROWS]
    return (*found, *([f"{', '.join(few)}; below {FEW_ROWS} estimates are rough. Add rows."] if few else []))


def _refusal(sample: Sample, reliability: float, least: float) -> str:
    if min(sample.counts) < _FEWEST:
        return (
            f"An affinity is checked by halves of at least {_FEWEST} minibatches of each task. Found "
            f"{min(sample.counts)}. Add rows or make the minibatches smaller."
        )
    if reliability >= least:
        return ""
    return (
        f"Affinities are used from a split-half reliability of {least:.2f} on. Found {reliability:.2f}: two halves of "
        "the data do not agree on which tasks are alike. Add rows, give all tasks the same inputs, or lower the "
        "threshold."
    )
