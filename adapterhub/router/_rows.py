"""The rows of the routable tasks: kept up to date with the catalogue, shortlisted by an index, scored exactly."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import BitIndex, Catalog, ExactIndex, Ids, Queries
from adapterhub.errors import IntegrityError
from adapterhub.router._epoch import Epoch
from adapterhub.router._generations import Generations
from adapterhub.router._source import PER_TASK, Keyed, RowSource, all_keys, join

__all__ = ["SHORTLIST", "TaskRows"]

logger = logging.getLogger(__name__)

Doubles = NDArray[np.float64]
Scored = tuple[Ids, Doubles]

SHORTLIST = 512  # tasks scored exactly for a query; the posterior mass of the others is neglected
FEW_ROWS = 5000  # so many are scored by a product with all of them, without files
LEAST_CHANGES, SHARE_OF_CHANGES, MOST_CHANGES = 1000, 0.05, 20_000  # before a generation is written anew
_AT_ONCE = 100_000  # changed tasks from which on the index is built from the catalogue
_PAUSE = 60.0  # seconds after a failure


@dataclass(frozen=True)
class _Served:
    """What searches look at: an index that does not change under them, and what has to be known of its rows."""

    index: BitIndex | ExactIndex
    groups: NDArray[np.int32]  # ascending
    extra: Ids  # keys of all prototypes but the first of each task, ascending

    @property
    def count(self) -> int:
        """One more than the largest group."""
        return int(self.groups[-1]) + 1 if len(self.groups) else 0


class TaskRows:
    """Rows of one epoch for the tasks of a catalogue. A task's row depends on that task alone.

    Up to 5,000 rows are kept in memory and all scored. More are kept in a folder, as generations that all processes
    share: the likeliest are scored, and a new generation is written in the background when many rows have changed.
    Where a generation is damaged it is written again; where it cannot be written, all rows are scored from memory.

    Safe for several threads.

    Args:
        epoch: The epoch that makes the rows.
        catalog: Where the tasks' vectors are.
        encoder: Fingerprint of the encoder whose vectors are meant.
        folder: Where indexes may be kept; None keeps any number of rows in memory.
    """

    def __init__(self, epoch: Epoch, catalog: Catalog, encoder: str, folder: Path | None = None) -> None:
        self._epoch = epoch
        self._source = RowSource(epoch, catalog, encoder)
        self._folder = folder
        self._generations: Generations | None = None
        self._token = ""
        self._lock = threading.RLock()
        self._seq = -1
        self._index: BitIndex | ExactIndex = ExactIndex(len(epoch.psi))
        self._served = _Served(self._index.snapshot(), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64))
        self._builder: threading.Thread | None = None
        self._pause_until = 0.0

    def __len__(self) -> int:
        """Number of routable tasks with a row."""
        served = self._served
        return len(served.index) - len(served.extra)

    def synchronise(self) -> None:
        """Bring the rows to the catalogue's newest commit; one query when nothing has changed.

        Raises:
            InputError: If a task's vectors are not finite or of another width; no row is changed then.
        """
        with self._lock:
            if self._seq < 0:
                self._begin(self._source.token())
            self._catch_up()
            self._renew()

    def score(self, vectors: NDArray[np.floating], k: int = SHORTLIST, ids: Ids | None = None) -> list[Scored]:
        """Score encodings, exactly and independently of which other tasks there are.

        Args:
            vectors: (b, d) encodings.
            k: How many tasks for each, at least 1.
            ids: Numbers of the tasks to score, those without a row are left out; None for all.

        Returns:
            For each encoding numbers of tasks and their log-likelihood ratios in nats, best first, ties by number.

        Raises:
            InputError: If the encodings are not finite or of another width.
        """
        served = self._served
        queries = self._epoch.queries(vectors, served.count, served.groups)
        try:
            return _score(served, queries, k, ids)
        except IntegrityError as error:
            logger.warning("%s", error)
            self._repair(served.index)
        return self._score_again(vectors, k, ids)

    def examples(self, ids: Ids) -> NDArray[np.int32]:
        """How many examples tasks have, (n,); 0 for one without a row.

        Args:
            ids: (n,) numbers of tasks.
        """
        groups = self._served.index.groups(all_keys(ids))
        counts: NDArray[np.int32] = self._epoch.examples(groups).reshape(len(ids), PER_TASK).sum(axis=1)
        return counts

    def _score_again(self, vectors: NDArray[np.floating], k: int, ids: Ids | None) -> list[Scored]:
        """After a repair, and where that does not hold either, from memory."""
        served = self._served
        queries = self._epoch.queries(vectors, served.count, served.groups)
        try:
            return _score(served, queries, k, ids)
        except IntegrityError as error:
            self._failed(error)
            self._repair(served.index)
        served = self._served
        return _score(served, self._epoch.queries(vectors, served.count, served.groups), k, ids)

    def _begin(self, token: str) -> None:
        """Find an index of this catalogue, or make one of all rows."""
        self._token = token
        self._generations = None if self._folder is None else Generations(self._folder, self._source, token)
        index = None if self._generations is None else self._generations.current()
        self._adopt(index if index is not None else self._built())

    def _built(self) -> BitIndex | ExactIndex:
        """An index of all rows of the catalogue, in memory where they are few or cannot be written."""
        self._seq = self._source.seq()
        generations = self._generations if time.monotonic() >= self._pause_until else None
        if generations is not None and len(ids := self._source.ids()) > FEW_ROWS:
            try:
                return generations.build(ids)
            except OSError as error:
                self._failed(error)
        index = ExactIndex(len(self._epoch.psi))
        for keys, rows in self._source.blocks():
            index.add(keys, rows)
        return index

    def _adopt(self, index: BitIndex | ExactIndex) -> None:
        if isinstance(index, BitIndex):
            self._seq = index.manifest.seq
            groups = np.array(list(index.manifest.groups), dtype=np.int32)
        else:
            groups = np.unique(np.concatenate([rows.group for _, rows in index.blocks()] or [np.empty(0, np.int32)]))
        keys = index.keys()
        self._serve(index, groups, keys[keys % PER_TASK > 0])

    def _serve(self, index: BitIndex | ExactIndex, groups: NDArray[np.int32], extra: Ids) -> None:
        self._index = index
        self._served = _Served(index.snapshot(), groups, extra)

    def _catch_up(self) -> None:
        """Touch only what is new, changed or gone."""
        source = self._source
        changes = source.catalog.vector_changes(source.encoder, self._seq)
        if changes.token != self._token or changes.seq < self._seq:  # another catalogue took the place of ours
            self._begin(changes.token)
            changes = source.catalog.vector_changes(source.encoder, self._seq)
        elif len(changes.present) > _AT_ONCE:
            self._adopt(self._built())
            changes = source.catalog.vector_changes(source.encoder, self._seq)
        if len(changes.present) or len(changes.gone):
            self._change(join(source.blocks(changes.present), len(self._epoch.psi)), changes.present, changes.gone)
        self._seq = changes.seq

    def _change(self, fresh: Keyed, present: Ids, gone: Ids) -> None:
        keys, rows = fresh
        possible = all_keys(np.union1d(present, gone))
        stale = np.setdiff1d(possible[self._index.has(possible)], keys, assume_unique=True)
        self._index.update(keys, rows, stale)
        served = self._served
        groups = np.union1d(served.groups, rows.group).astype(np.int32)
        extra = np.union1d(np.setdiff1d(served.extra, possible), keys[keys % PER_TASK > 0])
        self._serve(self._index, groups, extra)

    def _renew(self) -> None:
        """Write a new generation in the background when many rows have changed, or take that of another process."""
        index, busy = self._index, self._builder is not None and self._builder.is_alive()
        if self._generations is None or busy or time.monotonic() < self._pause_until:
            return
        if isinstance(index, ExactIndex):
            due = len(index) > FEW_ROWS
        else:
            most = max(LEAST_CHANGES, min(SHARE_OF_CHANGES * len(index), MOST_CHANGES))
            due = index.changed > most or (index.changed > 0 and self._generations.replaced(index))
        if due:
            self._builder = threading.Thread(
                target=self._rebuild, args=(self._generations, index.snapshot(), self._seq), daemon=True
            )
            self._builder.start()

    def _rebuild(self, generations: Generations, index: BitIndex | ExactIndex, seq: int) -> None:
        try:
            fresh = generations.rebuild(index, seq)
            if fresh is None:
                return
            with self._lock:
                if generations is self._generations:  # and no other catalogue has taken the place of ours
                    self._adopt(fresh)
                    self._catch_up()
        except IntegrityError as error:
            logger.warning("%s", error)
            self._repair(index)
        except OSError as error:
            self._failed(error)

    def _repair(self, damaged: BitIndex | ExactIndex) -> None:
        """Build the index from the catalogue, once for all threads that found the same generation damaged."""
        with self._lock:
            if _generation(self._index) == _generation(damaged):
                self._adopt(self._built())
                self._catch_up()

    def _failed(self, error: OSError) -> None:
        self._pause_until = time.monotonic() + _PAUSE
        logger.warning("An index could not be written: %s. All rows are scored from memory until it can be.", error)


def _generation(index: BitIndex | ExactIndex) -> str:
    return index.manifest.name if isinstance(index, BitIndex) else ""


def _score(served: _Served, queries: Queries, k: int, ids: Ids | None) -> list[Scored]:
    extra = served.extra
    if not len(extra):
        keys = None if ids is None else PER_TASK * ids
        return [(found // PER_TASK, scores) for found, scores in served.index.search(queries, k, keys)]
    several = np.unique(extra // PER_TASK)
    keys = None if ids is None else np.concatenate([PER_TASK * ids, extra[np.isin(extra // PER_TASK, ids)]])
    most = k + min(len(extra), (PER_TASK - 1) * k)  # so many rows belong to k tasks at least
    scored = []
    for row, found in enumerate(served.index.search(queries, most, keys)):
        query = Queries(queries.linear[row : row + 1], queries.groups[row : row + 1])
        tasks, scores = _joined(served.index, query, found, several)
        order = np.lexsort((tasks, -scores))[:k]
        scored.append((tasks[order], scores[order]))
    return scored


def _joined(index: BitIndex | ExactIndex, query: Queries, found: Scored, several: Ids) -> Scored:
    """Scores of tasks from those of rows; of a task with several rows all of them count."""
    tasks, scores = found[0] // PER_TASK, found[1]
    again = np.intersect1d(tasks, several)
    if not len(again):
        return tasks, scores
    alone = ~np.isin(tasks, again)
    parts = index.search(query, PER_TASK * len(again), all_keys(again))[0]
    mixed, their = _mixtures(*parts)
    return np.concatenate([tasks[alone], mixed]), np.concatenate([scores[alone], their])


def _mixtures(keys: Ids, scores: Doubles) -> Scored:
    """Scores of tasks from those of all of their prototypes; the shares are in the rows' offsets."""
    order = np.argsort(keys)
    tasks, first = np.unique(keys[order] // PER_TASK, return_index=True)
    scores = scores[order]
    largest = np.maximum.reduceat(scores, first)
    shares = np.exp(scores - np.repeat(largest, np.diff(first, append=len(scores))))
    mixed: Doubles = largest + np.log(np.add.reduceat(shares, first))
    return tasks, mixed
