"""What a sequence of tasks left of each, from the matrix of all measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import InputError

__all__ = ["ContinualScores"]


@dataclass(frozen=True)
class ContinualScores:
    """Scores over T tasks that were learned one after another (Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018).

    R_i,j is the metric on task j after learning task i. Where less is better, the differences are turned round, so that
    a negative `bwt` is forgetting for every metric.

    Args:
        acc: Mean of the last row.
        bwt: Backward transfer, 1/(T−1) Σ_{i<T} (R_T,i − R_i,i); None with one task.
        fwt: Forward transfer, 1/(T−1) Σ_{i>1} (R_{i−1},i − b_i); None with one task, without b, or where a task was
            not measured before it was learned.
        forgetting: 1/(T−1) Σ_{j<T} (max_{i<T} R_i,j − R_T,j), the fall from a task's best; None with one task.
    """

    acc: float
    bwt: float | None
    fwt: float | None
    forgetting: float | None

    @classmethod
    def from_matrix(
        cls,
        matrix: Sequence[Sequence[float]] | np.ndarray,
        untrained: Sequence[float] | np.ndarray | None = None,
        *,
        lower_is_better: bool = False,
    ) -> ContinualScores:
        """Compute the scores.

        Args:
            matrix: R, (T, T); entries above the diagonal may be NaN, where a task was not measured before its turn.
            untrained: b, (T,), the metrics before anything was learned.
            lower_is_better: Whether the metric falls as a task gets better.

        Raises:
            InputError: If R is not square or not finite where it counts, or b has another length.
        """
        results = np.asarray(matrix, dtype=float)
        tasks = len(results)
        if tasks == 0 or results.shape != (tasks, tasks):
            raise InputError(f"R should be square, a row and a column for each task. Found {results.shape}.")
        if not np.isfinite(results[np.tril_indices(tasks)]).all():
            raise InputError(
                "R should be finite on and below its diagonal. Found NaN or infinity. Measure these tasks."
            )
        acc = float(results[-1].mean())
        before = None if untrained is None else np.asarray(untrained, dtype=float)
        if before is not None and before.shape != (tasks,):
            raise InputError(f"`untrained` has a metric for each of {tasks} tasks. Found shape {before.shape}.")
        if tasks == 1:
            return cls(acc, None, None, None)
        results = -results if lower_is_better else results
        last = results[-1, :-1]
        bests = np.nanmax(results[:-1, :-1], axis=0)
        forward = None
        if before is not None:
            forward = float((results.diagonal(1) - (-before if lower_is_better else before)[1:]).mean())
        return cls(
            acc=acc,
            bwt=float((last - results.diagonal()[:-1]).mean()),
            fwt=None if forward is None or np.isnan(forward) else forward,
            forgetting=float((bests - last).mean()),
        )
