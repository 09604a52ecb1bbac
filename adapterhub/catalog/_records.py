"""What the card index holds: a row for each task, and its vectors for each encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Catalog", "Changes", "TaskRecord", "TaskVectors"]


@dataclass(frozen=True)
class TaskRecord:
    """One task as the catalogue knows it.

    Args:
        name: The task's name.
        version: Its adapter: `v1`, a pinned URL, or None.
        sha256: Content hash of the adapter.
        card: The card as canonical JSON.
        content_hash: Hash of what the router hears of the task; key of its vectors.
        source: State of the files that the card was read from, for whoever mirrors them; empty if there are none.
        seq: Number of the commit that wrote the row; set by the catalogue.
        status: `retired` tasks are kept but neither listed nor routed to.
    """

    name: str
    version: str | None
    sha256: str | None
    card: str
    content_hash: str
    source: str = ""
    seq: int = 0
    status: Literal["active", "retired"] = "active"


@dataclass(frozen=True)
class TaskVectors:
    """What an encoder hears of one task.

    Args:
        name: The task's name.
        count: Number of examples n.
        total: (d,) float32, the sum of the examples' vectors.
        description: (d,) float32, the description's vector, or None.
        examples: (n, d) float32, the examples' vectors.
    """

    name: str
    count: int
    total: NDArray[np.float32]
    description: NDArray[np.float32] | None
    examples: NDArray[np.float32]

    @classmethod
    def of(cls, name: str, description: NDArray[np.float32] | None, examples: NDArray[np.float32]) -> TaskVectors:
        """Vectors of a task; count and sum follow from the examples.

        Args:
            name: The task's name.
            description: (d,) float32 or None.
            examples: (n, d) float32.
        """
        total = examples.sum(axis=0, dtype=np.float64).astype(np.float32)
        return cls(name, len(examples), total, description, examples)


@dataclass(frozen=True)
class Changes:
    """What was committed after a given `seq`.

    Args:
        seq: The number of the newest commit seen; ask with it next time.
        records: Rows written since, in the order of their commits.
        deleted: Names of tasks deleted since and not written again.
    """

    seq: int
    records: tuple[TaskRecord, ...]
    deleted: tuple[str, ...]


class Catalog(Protocol):
    """The tables behind a registry. Every commit has a number, larger than those of all commits before it."""

    @property
    def seq(self) -> int:
        """Number of the newest commit; 0 for an empty catalogue."""
        ...

    def put(self, records: Sequence[TaskRecord]) -> int:
        """Write rows in one commit, replacing rows of the same names; returns its number."""
        ...

    def get(self, name: str) -> TaskRecord | None:
        """One row, active or retired, or None."""
        ...

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the active tasks at and below a branch; the empty prefix is the whole tree."""
        ...

    def records(self, prefix: str = "") -> list[TaskRecord]:
        """The active tasks at and below a branch, in the names' order."""
        ...

    def delete(self, names: Collection[str]) -> int:
        """Delete rows in one commit, leaving tombstones; returns its number."""
        ...

    def versions(self, name: str) -> list[tuple[str, str | None]]:
        """Every adapter the task has had, oldest first, with its content hash."""
        ...

    def changes(self, since: int) -> Changes:
        """Rows and tombstones of all commits after `since`."""
        ...

    def put_vectors(self, encoder: str, vectors: Mapping[str, TaskVectors]) -> None:
        """Store vectors of one encoder by content hash; a hash already there is kept."""
        ...

    def missing(self, encoder: str) -> list[TaskRecord]:
        """Active tasks whose content has no vectors of that encoder."""
        ...

    def vectors(self, encoder: str) -> list[TaskVectors]:
        """Vectors of every active task that has them, in the names' order."""
        ...
