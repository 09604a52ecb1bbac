"""Two-covariance PLDA in closed form: the map that one statistics epoch fixes, rows of tasks and lifted queries.

A task is a Gaussian around its mean with a covariance shared by all; the means are Gaussian themselves (Ioffe 2006;
Prince and Elder 2007). The score is the log-likelihood ratio of *same task as these examples* against *a task never
seen*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError
from adapterhub.router._statistics import Sums

__all__ = ["KEPT", "LEAST_TASKS", "SHRINKAGE", "Epoch"]

Doubles = NDArray[np.float64]

SHRINKAGE = 0.1
KEPT = 256  # directions kept: 0.1 points of accuracy below all 384
DESCRIPTION_WEIGHT = 0.5  # a description counts as half an example ...
DESCRIPTION_UNTIL = 5  # ... while a task has at most so many
LEAST_PSI = 1e-3
LEAST_VARIANCE = 1e-10
LEAST_TASKS = 4  # below these not even two scalars can be estimated
LEAST_FREEDOM = 8


@dataclass(frozen=True)
class Epoch:
    """The frozen numbers between two refits.

    In z = (x - mu) T the noise within a task is N(0, I) and the tasks' means are N(0, diag psi).

    Args:
        mu: (d,) mean of the tasks' means.
        transform: (d, r) T.
        psi: (r,) variances of the tasks' means, largest first.
    """

    mu: Doubles
    transform: Doubles
    psi: Doubles

    @classmethod
    def fit(cls, sums: Sums, shrinkage: float = SHRINKAGE) -> Epoch:
        """Whiten within tasks, then diagonalise between tasks.

        Args:
            sums: Sums over the tasks.
            shrinkage: Weight in [0, 1] of the scaled identity in the covariance within tasks.

        Returns:
            The epoch, with at most 256 directions.
        """
        dimension = len(sums.means)
        mu = sums.means / sums.tasks
        pooled = sums.scatter / sums.freedom
        identity = np.eye(dimension)
        within = (1 - shrinkage) * pooled + shrinkage * np.trace(pooled) / dimension * identity
        variances, axes = np.linalg.eigh(within)
        whiten = axes / np.sqrt(np.maximum(variances, LEAST_VARIANCE))
        between = sums.outers / sums.tasks - np.outer(mu, mu)
        noise = sums.inverse_counts / sums.tasks * identity  # what sampling n examples adds to a mean
        psi, rotation = np.linalg.eigh(whiten.T @ between @ whiten - noise)
        kept = np.argsort(-psi, kind="stable")[:KEPT]
        return cls(mu, whiten @ rotation[:, kept], np.maximum(psi[kept], LEAST_PSI))

    @classmethod
    def isotropic(cls, sums: Sums) -> Epoch:
        """Both covariances multiples of the identity: for fewer examples than dimensions.

        The two multiples and the centre are estimated from 4 tasks with 8 degrees of freedom on. Below, the centre is
        zero, and each covariance has half the variance of a unit vector.

        Args:
            sums: Sums over the tasks, possibly none.

        Returns:
            The epoch, with at most 256 directions.
        """
        dimension = len(sums.means)
        mu, within, psi = np.zeros(dimension), 0.5 / dimension, 1.0
        if sums.tasks >= LEAST_TASKS and sums.freedom >= LEAST_FREEDOM:
            mu = sums.means / sums.tasks
            within = max(float(np.trace(sums.scatter)) / sums.freedom / dimension, LEAST_VARIANCE)
            spread = (float(np.trace(sums.outers)) / sums.tasks - float(mu @ mu)) / dimension
            psi = max(spread / within - sums.inverse_counts / sums.tasks, LEAST_PSI)
        kept = min(dimension, KEPT)
        return cls(mu, np.eye(dimension)[:, :kept] / np.sqrt(within), np.full(kept, psi))

    @property
    def width(self) -> int:
        """Length 2 r + 1 of a task's row."""
        return 2 * len(self.psi) + 1

    def row(self, count: float, total: Doubles, description: Doubles | None) -> Doubles:
        """The row of a task: [m / v ; -(1 / v - 1 / (1 + psi)) / 2 ; b].

        Args:
            count: Number n of examples.
            total: (d,) sum of their vectors.
            description: (d,) vector of the description, or None.

        Returns:
            (2 r + 1,), float64; zero for a task of which nothing is known.
        """
        weight = 0.0
        if description is not None and count <= DESCRIPTION_UNTIL:
            weight = DESCRIPTION_WEIGHT if count else 1.0
            total = total + weight * description
        n = count + weight
        if n == 0:
            return np.zeros(self.width)
        gain = n * self.psi / (n * self.psi + 1)
        mean = gain * ((total / n - self.mu) @ self.transform)
        variance = 1 + self.psi / (n * self.psi + 1)
        prior = 1 + self.psi
        bias = -0.5 * np.sum(mean**2 / variance + np.log(variance) - np.log(prior))
        return np.concatenate([mean / variance, -0.5 * (1 / variance - 1 / prior), [bias]])

    def lift(self, vectors: NDArray[np.floating]) -> Doubles:
        """Queries as [q ; q * q ; 1], so that a score is one inner product with a row.

        Args:
            vectors: (b, d) encodings.

        Returns:
            (b, 2 r + 1), float64.

        Raises:
            InputError: If the width differs or an encoding is not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mu):
            raise InputError(f"Encodings have shape (n, {len(self.mu)}). Found {vectors.shape}. Check the encoder.")
        if not np.isfinite(vectors).all():
            raise InputError("Encodings are finite. The encoder gave NaN or infinity. Check its weights and the text.")
        q = (vectors - self.mu) @ self.transform
        return np.concatenate([q, q * q, np.ones((len(q), 1))], axis=1)
