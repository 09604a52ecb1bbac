"""The rows of a catalogue's tasks, made by an epoch: what every index of them holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adapterhub.catalog import Catalog, Ids, Rows, Scope, Typical, VectorBlock
from adapterhub.router._epoch import Epoch
from adapterhub.router._prototypes import MANY_EXAMPLES, MOST_PROTOTYPES, Prototypes, prototypes

__all__ = ["PER_TASK", "RowSource", "all_keys", "join"]

PER_TASK = 8  # a task's prototypes have the keys 8 id, 8 id + 1, …
_NEVER = 2**62  # number of no commit: nothing is newer
_TASKS = 16  # with all of their examples in memory at once

assert MOST_PROTOTYPES <= PER_TASK

Keyed = tuple[Ids, Rows]


_RUN = 16  # tasks that lie on the same pages: 20,000 single ones of a million took 1 to 6 s, in runs 0.25 s


@dataclass(frozen=True)
class RowSource:
    """Rows of the routable tasks of a catalogue that have vectors.

    Args:
        epoch: What makes the rows.
        catalog: Where the vectors are.
        encoder: Fingerprint of the encoder that made them.
    """

    epoch: Epoch
    catalog: Catalog
    encoder: str

    @property
    def typical(self) -> Typical:
        """What a text of some task is like in the epoch's space."""
        return Typical(np.sqrt(1 + self.epoch.psi), self.epoch.shares)

    def seq(self) -> int:
        """Number of the newest commit."""
        return self.catalog.seq

    def token(self) -> str:
        """Which catalogue it is."""
        return self.catalog.vector_changes(self.encoder, _NEVER).token

    def ids(self) -> Ids:
        """Numbers of the routable tasks, with vectors or without, ascending."""
        return self.catalog.ids(Scope())

    def blocks(self, ids: Ids | None = None) -> Iterator[Keyed]:
        """Keys and rows of all tasks, or of those among `ids`, ascending by key.

        Args:
            ids: Numbers of tasks.
        """
        for block in self.catalog.blocks(self.encoder, ids):
            yield self._prototyped(block, (PER_TASK * block.ids, self.epoch.rows(block)))

    def some(self, ids: Ids, size: int) -> Rows:
        """Rows of some tasks, drawn from all of them in runs that lie on the same pages; always the same ones.

        Args:
            ids: Numbers of all tasks.
            size: How many at most.
        """
        runs = np.random.default_rng(0).permutation(-(-len(ids) // _RUN))[: max(size // _RUN, 1)]
        places = (_RUN * np.sort(runs)[:, None] + np.arange(_RUN)).reshape(-1)
        return join(self.blocks(ids[places[places < len(ids)]][:size]), len(self.epoch.psi))[1]

    def _prototyped(self, block: VectorBlock, plain: Keyed) -> Keyed:
        """Several rows instead of one for tasks whose examples fall into heaps."""
        many = block.ids[block.counts >= MANY_EXAMPLES]
        found: dict[int, Prototypes] = {}
        for start in range(0, len(many), _TASKS):
            for task in self.catalog.vectors(self.encoder, many[start : start + _TASKS]):
                heaps = prototypes(self.epoch, task.examples)
                if len(heaps) > 1:
                    found[task.id] = heaps
        if not found:
            return plain
        kept = ~np.isin(block.ids, list(found))
        parts = [(plain[0][kept], plain[1].take(np.flatnonzero(kept)))]
        parts += [self._heaps(task, heaps) for task, heaps in found.items()]
        keys, rows = join(iter(parts), len(self.epoch.psi))
        order = np.argsort(keys)
        return keys[order], rows.take(order)

    def _heaps(self, task: int, heaps: Prototypes) -> Keyed:
        count = len(heaps)
        ids = np.full(count, task, dtype=np.int64)
        totals = heaps.totals.astype(np.float32)
        block = VectorBlock(ids, heaps.counts, totals, np.zeros_like(totals), np.zeros(count, dtype=np.bool_))
        rows = self.epoch.rows(block)
        offset = (rows.offset + heaps.log_weights).astype(np.float32)
        return PER_TASK * ids + np.arange(count), Rows(rows.linear, rows.group, offset)


def all_keys(ids: Ids) -> Ids:
    """Every key that rows of these tasks may have.

    Args:
        ids: (n,) numbers of tasks, ascending.

    Returns:
        (8 n,), ascending.
    """
    keys: Ids = (PER_TASK * ids[:, None] + np.arange(PER_TASK)).reshape(-1)
    return keys


def join(parts: Iterator[Keyed], width: int) -> Keyed:
    """Blocks in one.

    Args:
        parts: The blocks.
        width: Numbers r of a row.
    """
    found = [(np.empty(0, dtype=np.int64), Rows.none(width)), *parts]
    rows = [rows for _, rows in found]
    return np.concatenate([keys for keys, _ in found]), Rows(
        np.concatenate([part.linear for part in rows]),
        np.concatenate([part.group for part in rows]),
        np.concatenate([part.offset for part in rows]),
    )
