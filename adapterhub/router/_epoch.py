"""Two-covariance PLDA in closed form: the map that one statistics epoch fixes, and the rows and queries it makes.

A task is a Gaussian around its mean with a covariance shared by all; the means are Gaussian themselves (Ioffe 2006;
Prince and Elder 2007). The score is the log-likelihood ratio of *same task as these examples* against *a task never
seen*.

Two numbers are not the model's. Of the covariance between tasks a share is taken to be the same in all directions: with
fewer tasks than directions most variances come out below zero, and a task unlike those summed would be shrunk to
nothing. And a mean of n examples is weighed as if it were one of n + 1.5. Then one temperature serves tasks of 20, 5, 1
and 0 examples (without: 4.0, 3.4, 2.7 and 3.5), and the right one of 89 is first for 31.8 % of texts instead of 30.5 %
where tasks have one example, and for 12.8 % instead of 11.3 % where they have a description only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Queries, Rows, VectorBlock, to_half, to_single
from adapterhub.errors import InputError
from adapterhub.router._statistics import Sums

__all__ = ["KEPT", "LEAST_TASKS", "SHRINKAGE", "Epoch"]

Doubles = NDArray[np.float64]

SHRINKAGE = 0.1
LEVELLING = 0.3  # the same accuracy from 0.25 to 0.5, and for 12 to 71 tasks
KEPT = 384  # directions kept: 256 of 384 cost one to two points of accuracy
DESCRIPTION_WEIGHT = 0.5  # a description counts as half an example ...
DESCRIPTION_UNTIL = 5  # ... while a task has at most so many
HEAD_START = 1.5  # examples that a task is better known by than the model says
LEAST_PSI = 1e-3
LEAST_VARIANCE = 1e-10
LEAST_TASKS = 4  # below these not even two scalars can be estimated
LEAST_FREEDOM = 8
MOST_FLOAT16 = 65504.0
_CHUNK = 512  # rows in float64 at once, which stay in the cache
_TILE = 64


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
    def fit(cls, sums: Sums, shrinkage: float = SHRINKAGE, levelling: float = LEVELLING) -> Epoch:
        """Whiten within tasks, then diagonalise between tasks.

        Args:
            sums: Sums over the tasks.
            shrinkage: Weight in [0, 1] of the scaled identity in the covariance within tasks.
            levelling: Weight in [0, 1] of the scaled identity in the covariance between tasks, after whitening.

        Returns:
            The epoch, with at most 384 directions.
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
        between = whiten.T @ between @ whiten - noise
        level = max(float(np.trace(between)) / dimension, LEAST_PSI)
        psi, rotation = np.linalg.eigh((1 - levelling) * between + levelling * level * identity)
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
            The epoch, with at most 384 directions.
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
        """Length 2 r + 1 of a task's row as `row` gives it."""
        return 2 * len(self.psi) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Equal only for epochs that make the same rows."""
        digest = hashlib.blake2b(b"plda rows 3", digest_size=16)
        for part in (self.mu, self.transform, self.psi):
            digest.update(f"{part.shape}".encode())
            digest.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        return digest.hexdigest()

    def rows(self, block: VectorBlock) -> Rows:
        """The rows of many tasks, rounded as every index keeps them. `row` is the formula that they follow.

        The linear part is m / v in float16, the group is 2 (n + 1.5), which fixes v, and the offset is b of the rounded
        m. A task's row does not depend on the other tasks of the block.

        Args:
            block: Vectors of n tasks.

        Returns:
            n rows of r numbers.

        Raises:
            InputError: If vectors are of another width or not finite.
        """
        self._check(block)
        weight = DESCRIPTION_WEIGHT * (block.counts <= DESCRIPTION_UNTIL) * block.described
        count = block.counts + weight
        group = np.where(count, np.rint(2 * (count + HEAD_START)), 0).astype(np.int32)
        linear = np.empty((len(block), len(self.psi)), dtype=np.float16)
        offset = np.empty(len(block), dtype=np.float32)
        for start in range(0, len(block), _CHUNK):
            part = slice(start, start + _CHUNK)
            mean = block.descriptions[part] * weight[part, None].astype(np.float32)
            mean += block.totals[part]
            mean /= np.maximum(count[part], DESCRIPTION_WEIGHT)[:, None].astype(np.float32)
            linear[part], offset[part] = self._rounded(mean.astype(np.float64), group[part])
        return Rows(linear, group, offset)

    def examples(self, groups: NDArray[np.int32]) -> NDArray[np.int32]:
        """How many examples rows are made of.

        Args:
            groups: (n,) groups of rows: twice the examples and 3, and 1 more where a description counts.
        """
        found: NDArray[np.int32] = np.maximum(groups - round(2 * HEAD_START), 0) // 2
        return found

    def queries(self, vectors: NDArray[np.floating], groups: int, used: NDArray[np.int32] | None = None) -> Queries:
        """What encodings ask of an index of rows. Each depends on its own encoding only.

        Args:
            vectors: (b, d) encodings.
            groups: Number g of groups of rows: 1 + the largest.
            used: The groups that there are; the numbers of the others are left 0. None for all.

        Raises:
            InputError: If the width differs or an encoding is not finite.
        """
        centred = self._centred(vectors)
        # One product for each query: BLAS rounds a row differently when other rows come and go.
        linear = np.stack([row @ self.transform for row in centred]) if len(centred) else centred[:, : len(self.psi)]
        known = np.arange(groups) if used is None else used
        weights = self._weights(known)
        numbers = np.zeros((len(linear), groups))
        for query, number in zip(linear, numbers, strict=True):
            number[known] = (weights * (query * query)).sum(axis=1)
        return Queries(linear, numbers)

    def shares(self, groups: NDArray[np.int32]) -> Doubles:
        """What a text of some task adds to the rows of each group, on average.

        Args:
            groups: (g,) groups.
        """
        found: Doubles = (self._weights(groups) * (1 + self.psi)).sum(axis=1)
        return found

    def _weights(self, groups: NDArray[np.integer]) -> Doubles:
        """(g, r) what the squares of a query are multiplied by for rows of each group."""
        return -0.5 * (1 / self._variances(groups) - 1 / (1 + self.psi))

    def _rounded(self, means: Doubles, group: NDArray[np.int32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        known, which = np.unique(group, return_inverse=True)
        means -= self.mu
        means[group == 0] = 0
        # Whole tiles only, so that BLAS takes the same way for every row of every block.
        missing = -len(means) % _TILE
        padded = np.pad(means, ((0, missing), (0, 0))) if missing else means
        variances = self._variances(known)
        gains = known[:, None] / 2 * self.psi
        scaled = (padded @ self.transform)[: len(means)]
        scaled *= (gains / (gains + 1) / variances)[which]
        narrow = scaled.astype(np.float32)
        linear = to_half(np.clip(narrow, -MOST_FLOAT16, MOST_FLOAT16, out=narrow))
        constants = (np.log(variances) - np.log(1 + self.psi)).sum(axis=1)
        squares = to_single(linear).astype(np.float64)
        squares *= squares
        squares *= variances[which]
        offset = squares.sum(axis=1)
        offset += constants[which]
        return linear, (-0.5 * offset).astype(np.float32)

    def _variances(self, group: NDArray[np.integer]) -> Doubles:
        """(g, r) variances v of a new query about a task of each group."""
        n = group[:, None] / 2
        variances: Doubles = 1 + self.psi / (n * self.psi + 1)
        return variances

    def _check(self, block: VectorBlock) -> None:
        for what, vectors in (("examples", block.totals), ("description", block.descriptions)):
            if vectors.shape != (len(block), len(self.mu)):
                raise InputError(
                    f"Vectors have shape (n, {len(self.mu)}). Found {vectors.shape}. Encode the catalogue again: "
                    "adapterhub reindex."
                )
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                raise InputError(
                    f"Vectors are finite. Found NaN or infinity in the {what} of the tasks numbered "
                    f"{block.ids[~finite][:5].tolist()}. Encode the catalogue again: adapterhub reindex."
                )

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
            weight = DESCRIPTION_WEIGHT
            total = total + weight * description
        if count + weight == 0:
            return np.zeros(self.width)
        n = count + weight + HEAD_START
        gain = n * self.psi / (n * self.psi + 1)
        mean = gain * ((total / (count + weight) - self.mu) @ self.transform)
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
        q = self._centred(vectors) @ self.transform
        return np.concatenate([q, q * q, np.ones((len(q), 1))], axis=1)

    def _centred(self, vectors: NDArray[np.floating]) -> Doubles:
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mu):
            raise InputError(f"Encodings have shape (n, {len(self.mu)}). Found {vectors.shape}. Check the encoder.")
        if not np.isfinite(vectors).all():
            raise InputError("Encodings are finite. The encoder gave NaN or infinity. Check its weights and the text.")
        return vectors.astype(np.float64) - self.mu
