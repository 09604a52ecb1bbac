"""Tasks in groups by how alike they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError

__all__ = ["average_linkage"]


def average_linkage(similarity: NDArray[np.float64], k: int) -> list[int]:
    """Join the two groups with the largest mean similarity until there are k (UPGMA, Sokal and Michener 1958).

    Args:
        similarity: (items, items), symmetric and finite; larger is more alike.
        k: Number of groups.

    Returns:
        The group of each item; groups are numbered in the order of their first items.

    Raises:
        InputError: If the matrix is not of that kind, or k is not between 1 and the number of items.
    """
    size = len(similarity)
    if (
        similarity.shape != (size, size)
        or not np.isfinite(similarity).all()
        or not np.allclose(similarity, similarity.T, atol=1e-6)
    ):
        raise InputError(f"A similarity is a square, symmetric, finite matrix. Found {similarity.shape}.")
    if not 1 <= k <= size:
        raise InputError(f"`k` should be between 1 and the number of tasks, {size}. Found {k}.")
    near = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(near, -np.inf)
    labels, sizes = np.arange(size), np.ones(size)
    for _ in range(size - k):
        a, b = sorted(divmod(int(near.argmax()), size))
        joined = (sizes[a] * near[a] + sizes[b] * near[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        labels[labels == b] = a
        near[a] = near[:, a] = joined
        near[a, a] = -np.inf
        near[b] = near[:, b] = -np.inf
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [order[label] for label in labels.tolist()]
