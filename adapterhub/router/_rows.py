"""The rows of the routable tasks: shortlisted by an index, scored again exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import VectorIndex
from adapterhub.errors import InputError
from adapterhub.router._epoch import Epoch
from adapterhub.router._types import VectorsOfTask

__all__ = ["SHORTLIST", "TaskRows"]

Doubles = NDArray[np.float64]

SHORTLIST = 1024  # tasks scored exactly for a query; the posterior mass of the others is neglected


class TaskRows:
    """Rows of one epoch. A task's row depends on that task alone.

    Args:
        epoch: The epoch that makes the rows.
        index: An empty index over rows of the epoch's width.
    """

    def __init__(self, epoch: Epoch, index: VectorIndex) -> None:
        self._epoch = epoch
        self._index = index
        self._rows: dict[str, NDArray[np.float32]] = {}
        self._seen: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The stored row of a task, (2 r + 1,) float32."""
        return self._rows[name]

    def names(self, under: str = "") -> list[str]:
        """The tasks with a row, in or below a subtree, sorted."""
        return sorted(name for name in self._rows if not under or name == under or name.startswith(f"{under}/"))

    def update(self, tasks: Iterable[VectorsOfTask]) -> None:
        """Make the rows those of the given tasks, touching only what is new, changed or gone.

        Args:
            tasks: All routable tasks.

        Raises:
            InputError: If a task's vectors are not finite or of another width; no row is changed then.
        """
        hashes = {task.name: (_hash(task), task) for task in tasks}
        fresh = {name: self._row(task) for name, (key, task) in hashes.items() if self._seen.get(name) != key}
        stale = [name for name in self._rows if name not in hashes or name in fresh]
        if stale:
            self._index.remove(stale)
            for name in stale:
                del self._rows[name], self._seen[name]
        if fresh:
            names = sorted(fresh)
            self._index.add(names, np.stack([fresh[name] for name in names]))
            self._rows.update(fresh)
            self._seen.update((name, hashes[name][0]) for name in names)

    def score(self, queries: Doubles, under: str = "") -> list[tuple[list[str], Doubles]]:
        """Score queries, exactly and independently of which other tasks there are.

        Args:
            queries: (b, 2 r + 1) lifted queries.
            under: Score only this subtree.

        Returns:
            For each query its shortlist of tasks and their (s,) log-likelihood ratios, float64.
        """
        scope = self.names(under) if under else None
        size = min(SHORTLIST, len(self._rows) if scope is None else len(scope))
        if not size or not len(queries):
            return [([], np.empty(0)) for _ in queries]
        shortlists = self._index.search(queries.astype(np.float32), size, scope)[1]
        return [(list(names), self._exact(query, names)) for query, names in zip(queries, shortlists, strict=True)]

    def _exact(self, query: Doubles, names: Sequence[str]) -> Doubles:
        rows = np.stack([self._rows[name] for name in names]).astype(np.float64)  # (s, 2 r + 1)
        # Not a matrix product: BLAS rounds a row differently when other rows come and go.
        scores: Doubles = (rows * query).sum(axis=1)
        return scores

    def _row(self, task: VectorsOfTask) -> NDArray[np.float32]:
        width = len(self._epoch.mu)
        for what, vector in (("example vectors", task.total), ("description vector", task.description)):
            if vector is not None and (vector.shape != (width,) or not np.isfinite(vector).all()):
                raise InputError(
                    f"The {what} of task '{task.name}' should be {width} finite numbers. Found shape {vector.shape}"
                    f"{'' if np.isfinite(vector).all() else ' with NaN or infinity'}. Encode the card again."
                )
        total = task.total.astype(np.float64)
        description = None if task.description is None else task.description.astype(np.float64)
        return self._epoch.row(task.count, total, description).astype(np.float32)


def _hash(task: VectorsOfTask) -> bytes:
    digest = hashlib.blake2b(str(task.count).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(task.total).tobytes())
    if task.description is not None:
        digest.update(b"|" + np.ascontiguousarray(task.description).tobytes())
    return digest.digest()
