"""Several prototypes for a task whose many examples fall into separate heaps.

A task of one heap is one Gaussian, which is one row. A task of several is a mixture of such Gaussians, one row each,
and its score is the logarithm of the mixture's density against that of a task never seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.router._epoch import Epoch

__all__ = ["MANY_EXAMPLES", "MOST_PROTOTYPES", "Prototypes", "prototypes"]

Doubles = NDArray[np.float64]
Labels = NDArray[np.intp]

MANY_EXAMPLES = 50  # with fewer no split was better than one mean
MOST_PROTOTYPES = 4
_NUMBERS = (2, 4)
_ROUNDS = 25
_STARTS = 4
_FOLDS = 5
_LOOKED_AT = 500  # examples that the decision is made on


@dataclass(frozen=True)
class Prototypes:
    """The heaps of one task's examples.

    Args:
        counts: (p,) int64, examples of each, largest first.
        totals: (p, d) float64, their sums.
    """

    counts: NDArray[np.int64]
    totals: Doubles

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def log_weights(self) -> Doubles:
        """(p,) logarithms of the shares of the examples."""
        weights: Doubles = np.log(self.counts / self.counts.sum())
        return weights


def prototypes(epoch: Epoch, examples: NDArray[np.floating]) -> Prototypes:
    """One prototype, or 2 or 4 where they describe held-out examples better.

    k-means in the epoch's whitened space, and a gain in mean log-likelihood of examples held out by fifths that is more
    than its standard error. The draws are always the same ones; the order of the examples decides which of them are
    held out together.

    Args:
        epoch: The epoch.
        examples: (n, d) vectors.
    """
    whole = examples.astype(np.float64)
    kept = np.zeros(len(whole), dtype=np.intp)
    if len(whole) >= MANY_EXAMPLES:
        z = (whole - epoch.mu) @ epoch.transform
        kept = _chosen(z, epoch.psi)
    counts = np.bincount(kept)
    order = np.argsort(-counts, kind="stable")
    totals = np.stack([whole[kept == heap].sum(axis=0) for heap in order])
    return Prototypes(counts[order].astype(np.int64), totals)


def _chosen(z: Doubles, psi: Doubles) -> Labels:
    """(n,) the heap of each example under the number of heaps that is best."""
    stride = -(-len(z) // _LOOKED_AT)
    seen = z[::stride]
    single = _held_out(seen, psi, 1)
    best, number = 0.0, 1
    for candidate in _NUMBERS:
        gains = _held_out(seen, psi, candidate) - single
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        if gains.mean() > max(best, error):
            best, number = gains.mean(), candidate
    if number == 1:
        return np.zeros(len(z), dtype=np.intp)
    return np.unique(_nearest(z, _centres(z, number)), return_inverse=True)[1]


def _held_out(z: Doubles, psi: Doubles, number: int) -> Doubles:
    """(n,) log-likelihood of each example under the prototypes of the four fifths that it is not in."""
    fold = np.arange(len(z)) % _FOLDS
    found = np.empty(len(z))
    for turn in range(_FOLDS):
        rest = z[fold != turn]
        labels = _nearest(rest, _centres(rest, number))
        found[fold == turn] = _log_density(z[fold == turn], rest, labels, psi)
    return found


def _log_density(queries: Doubles, examples: Doubles, labels: Labels, psi: Doubles) -> Doubles:
    """Logarithm of the mixture's predictive density, up to a constant that is the same for all mixtures."""
    parts = []
    for heap in np.unique(labels):
        members = examples[labels == heap]
        n = len(members)
        mean = n * psi / (n * psi + 1) * members.mean(axis=0)
        variance = 1 + psi / (n * psi + 1)
        density = -0.5 * ((queries - mean) ** 2 / variance + np.log(variance)).sum(axis=1)
        parts.append(density + np.log(n / len(examples)))
    joint: Doubles = np.logaddexp.reduce(np.stack(parts), axis=0)
    return joint


def _centres(z: Doubles, number: int) -> Doubles:
    """(k, r) means of k-means: the best of several starts."""
    random = np.random.default_rng(0)
    found = [_settled(z, _start(z, number, random)) for _ in range(_STARTS if number > 1 else 1)]
    spreads = [_distances(z, centres).min(axis=1).sum() for centres in found]
    return found[int(np.argmin(spreads))]


def _start(z: Doubles, number: int, random: np.random.Generator) -> Doubles:
    """Examples drawn by how far they are from those drawn before (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = [int(random.integers(len(z)))]
    while len(chosen) < number:
        far = np.maximum(_distances(z, z[chosen]).min(axis=1), 0) + 1e-12
        chosen.append(int(np.searchsorted(np.cumsum(far), random.random() * far.sum())))
    return z[np.minimum(chosen, len(z) - 1)]


def _settled(z: Doubles, centres: Doubles) -> Doubles:
    for _ in range(_ROUNDS):
        moved = _means(z, _nearest(z, centres))
        if moved.shape == centres.shape and np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _means(z: Doubles, labels: Labels) -> Doubles:
    return np.stack([z[labels == heap].mean(axis=0) for heap in np.unique(labels)])


def _nearest(z: Doubles, centres: Doubles) -> Labels:
    nearest: Labels = _distances(z, centres).argmin(axis=1)
    return nearest


def _distances(z: Doubles, centres: Doubles) -> Doubles:
    """(n, k) squared distances."""
    own, theirs = np.square(z).sum(axis=1, keepdims=True), np.square(centres).sum(axis=1)
    distances: Doubles = own - 2 * (z @ centres.T) + theirs
    return distances
