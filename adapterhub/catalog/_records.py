"""What the card index holds: a row for each task, and its vectors for each encoder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Catalog",
    "Changes",
    "Ids",
    "Scope",
    "TaskRecord",
    "TaskVectors",
    "TaskVersion",
    "VectorBlock",
    "VectorChanges",
]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TaskRecord:
    """One task as the catalogue knows it.

    Args:
        name: The task's name.
        version: Its adapter: `v1`, a pinned URL, or None.
        sha256: Content hash of the adapter.
        card: The card as canonical JSON.
        content_hash: Hash of what the router hears of the task; vectors of another content are stale.
        source: State of the files that the card was read from, for whoever mirrors them; empty if there are none.
        base_model: The base model that the card names.
        tags: The card's tags.
        seq: Number of the commit that wrote the row; set by the catalogue.
        status: `retired` tasks are kept but neither listed nor routed to.
        id: The catalogue's number for the name, at least 1; set by the catalogue, kept when the row is replaced. The
            number of a deleted task is never given again.
    """

    name: str
    version: str | None
    sha256: str | None
    card: str
    content_hash: str
    source: str = ""
    base_model: str = ""
    tags: tuple[str, ...] = ()
    seq: int = 0
    status: Literal["active", "retired"] = "active"
    id: int = 0


@dataclass(frozen=True)
class TaskVersion:
    """One adapter that a task has had.

    Args:
        version: `v1` or a pinned URL.
        sha256: Its content hash.
        seq: Number of the commit that first named it.
    """

    version: str
    sha256: str | None
    seq: int


@dataclass(frozen=True)
class TaskVectors:
    """What an encoder hears of one task. Vectors are stored, and given back, rounded to float16.

    Args:
        name: The task's name.
        count: Number of examples n.
        total: (d,) float32, the sum of the examples' vectors as they are stored.
        description: (d,) float32, the description's vector, or None.
        examples: (n, d) float32, the examples' vectors.
        content_hash: Content that was encoded.
        id: The task's number; 0 before it is stored.
    """

    name: str
    count: int
    total: NDArray[np.float32]
    description: NDArray[np.float32] | None
    examples: NDArray[np.float32]
    content_hash: str = ""
    id: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        description: NDArray[np.float32] | None,
        examples: NDArray[np.float32],
        content_hash: str = "",
        id: int = 0,
    ) -> TaskVectors:
        """Vectors of a task, rounded as they will be stored; count and sum follow from the examples.

        Args:
            name: The task's name.
            description: (d,) float32 or None.
            examples: (n, d) float32.
            content_hash: Content that was encoded.
            id: The task's number, if it has one.
        """
        rounded = examples.astype(np.float16).astype(np.float32)
        described = None if description is None else description.astype(np.float16).astype(np.float32)
        total = rounded.sum(axis=0, dtype=np.float64).astype(np.float32)
        return cls(name, len(examples), total, described, rounded, content_hash, id)


@dataclass(frozen=True)
class VectorBlock:
    """Vectors of several tasks as arrays, without the single examples: what rows are made of.

    Args:
        ids: (n,) int64.
        counts: (n,) int64, numbers of examples.
        totals: (n, d) float32, sums of the examples.
        descriptions: (n, d) float32, zero where there is none.
        described: (n,) bool, whether there is one.
    """

    ids: Ids
    counts: NDArray[np.int64]
    totals: NDArray[np.float32]
    descriptions: NDArray[np.float32]
    described: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Scope:
    """Which tasks a question is about: the active ones that have all of these properties.

    Args:
        under: At or below this branch; empty for the whole tree.
        tags: Having all of these tags.
        base_model: For this base model; None for any.
        routable: Having an adapter.
    """

    under: str = ""
    tags: tuple[str, ...] = ()
    base_model: str | None = None
    routable: bool = True

    @property
    def everything(self) -> bool:
        """Whether it is about all tasks that have an adapter."""
        return self == Scope()


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


@dataclass(frozen=True)
class VectorChanges:
    """Which rows of an index are out of date since a given `seq`.

    Args:
        seq: The number of the newest commit seen; ask with it next time.
        present: Tasks that are routable and have vectors, and whose row or vectors were written since, ascending.
        gone: The other tasks written or deleted since, ascending.
        token: Which catalogue it is: one that was made anew in its place numbers its tasks anew, and has another.
    """

    seq: int
    present: Ids
    gone: Ids
    token: str = ""


class Catalog(Protocol):
    """The tables behind a registry, safe for several processes and threads.

    Every commit has a number, larger than those of all commits before it, and has reached the disk when its call
    returns. Rounding vectors to float16 is the catalogue's; whoever makes rows of them sees the rounded ones.
    """

    @property
    def url(self) -> str:
        """Where the tables are, for messages; without a password."""
        ...

    @property
    def seq(self) -> int:
        """Number of the newest commit; 0 for an empty catalogue."""
        ...

    @property
    def encoder(self) -> str | None:
        """Fingerprint of the encoder that the catalogue is bound to, or None while it is bound to none."""
        ...

    def bind(self, encoder: str) -> int:
        """Bind the catalogue to an encoder, and drop the vectors of others; returns the commit's number."""
        ...

    def put(self, records: Sequence[TaskRecord], *, encoder: str = "", vectors: Sequence[TaskVectors] = ()) -> int:
        """Write rows, replacing rows of the same names, and vectors of an encoder for some of them, in one commit."""
        ...

    def get(self, name: str) -> TaskRecord | None:
        """One row, active or retired, or None."""
        ...

    def count(self, under: str = "") -> int:
        """Number of the active tasks at and below a branch."""
        ...

    def names(self, under: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Sorted names of the active tasks at and below a branch, those behind `after` only, at most `limit`."""
        ...

    def records(
        self, under: str = "", *, after: str = "", limit: int | None = None, retired: bool = False
    ) -> list[TaskRecord]:
        """The same as rows; of the retired tasks instead of the active ones if so asked."""
        ...

    def children(self, under: str = "") -> list[tuple[str, int]]:
        """The next level below a branch, sorted: each full name with its number of active tasks at and below it."""
        ...

    def ids(self, scope: Scope) -> Ids:
        """Numbers of the tasks of a scope, ascending."""
        ...

    def names_of(self, ids: Ids) -> list[str]:
        """The name of each number, in the order given; an unknown number is an InputError."""
        ...

    def retire(self, names: Collection[str]) -> int:
        """Retire tasks in one commit; returns its number."""
        ...

    def restore(self, names: Collection[str]) -> int:
        """Make retired tasks active again in one commit; returns its number."""
        ...

    def delete(self, names: Collection[str]) -> int:
        """Delete rows in one commit, leaving tombstones; returns its number."""
        ...

    def versions(self, name: str) -> list[TaskVersion]:
        """Every adapter the task has had, oldest first."""
        ...

    def changes(self, since: int) -> Changes:
        """Rows and tombstones of all commits after `since`."""
        ...

    def put_vectors(self, encoder: str, vectors: Sequence[TaskVectors]) -> int:
        """Store vectors of tasks whose content is still the one that was encoded, in one commit; returns its number."""
        ...

    def missing(self, encoder: str, limit: int | None = None) -> list[TaskRecord]:
        """Active tasks whose content has no vectors of that encoder, in the names' order, at most `limit`."""
        ...

    def vectors(self, encoder: str, ids: Ids | None = None) -> list[TaskVectors]:
        """Vectors with their examples of all active tasks that have them, or of those among `ids`, by name."""
        ...

    def blocks(self, encoder: str, ids: Ids | None = None, size: int = 65536) -> Iterator[VectorBlock]:
        """Vectors of all routable tasks that have them, or of those among `ids`, ascending, in blocks of `size`."""
        ...

    def vector_changes(self, encoder: str, since: int) -> VectorChanges:
        """Which rows of an index over an encoder's vectors are out of date."""
        ...

    def verify(self) -> list[str]:
        """Every fault found in the tables themselves; nothing is raised."""
        ...
