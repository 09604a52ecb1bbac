"""A hub that grows task by task within one statistics epoch, beside hubs that are made afresh at every step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Rows, VectorBlock
from adapterhub.router import Epoch, Sums
from adapterhub.router._fit import way_alone, ways_beside
from benchmarks._routing_data import BARE, Corpus, Vectors
from benchmarks._routing_figures import by_task, ranks
from benchmarks._routing_trials import Later, asked, chosen_way, support

Doubles = NDArray[np.float64]
Answers = NDArray[np.intp]


GROWN, REFITTED, ALONE_GROWN, ALONE_FRESH = (
    "grown", "refitted at each step", "no background, grown", "no background, made afresh"
)  # fmt: skip
WAYS = (GROWN, REFITTED, ALONE_GROWN, ALONE_FRESH)
CHOSEN = 15  # steps after which a hub that is made anew chooses again in which way its statistics are made


@dataclass(frozen=True)
class Growth:
    """What happened while a hub grew.

    Args:
        steps: Numbers of tasks.
        accuracy: By way of growing, top-1 of the first half's tasks at each step.
        moved: Rows of earlier tasks whose bits were not those that they were registered with.
        milliseconds: CPU time to register one task, beside its encoding; median.
    """

    steps: list[int]
    accuracy: dict[str, list[float]]
    moved: int
    milliseconds: float


@dataclass
class _Hub:
    """Tasks in the order in which they come, and rows of those that are registered."""

    epoch: Epoch
    block: VectorBlock
    rows: Rows
    moved: int = 0

    @classmethod
    def of(cls, epoch: Epoch, block: VectorBlock, count: int) -> "_Hub":
        return cls(epoch, block, epoch.rows(_part(block, 0, count)))

    def add(self) -> float:
        """Register the next task, and see whether the others are what they would be now; milliseconds for the first."""
        count = len(self.rows.group)
        begin = time.process_time()
        new = self.epoch.rows(_part(self.block, count, count + 1))
        took = 1000 * (time.process_time() - begin)
        self.rows = Rows(*(np.concatenate(pair) for pair in zip(_parts(self.rows), _parts(new), strict=True)))
        self.moved += _differing(self.rows, self.epoch.rows(_part(self.block, 0, count + 1)))
        return took

    def right(self, queries: Doubles, answers: Answers) -> NDArray[np.bool_]:
        lifted = self.epoch.queries(queries, int(self.rows.group.max()) + 1)
        scores = lifted.linear @ self.rows.linear.astype(np.float64).T
        scores += lifted.groups[:, self.rows.group] + self.rows.offset
        return ranks(scores, answers) < 1


def grow(corpus: Corpus, folds: Sequence[Later], examples: int) -> Growth:
    """Register the second half of the tasks one by one into the first, beside hubs that are made anew at every step.

    With a background: for the first half's tasks of each fold, that of the other folds, as in the other trials.
    Without one: the statistics are those of the support of the first half, or of all tasks that are there.
    """
    tasks = corpus.tracks[BARE]
    order = np.random.default_rng(7).permutation(len(tasks))
    half, dimension = len(tasks) // 2, corpus.foreign.shape[1]
    drawn = support(tasks, examples, 0)
    given = [drawn[place] for place in order]
    block = _block([tasks[place] for place in order], given)
    old = [tasks[place] for place in order[:half]]
    queries, answers = asked(old)
    parts = [np.flatnonzero(np.isin(order[answers], fold.places)) for fold in folds]
    grown = [_Hub.of(Epoch.fit(fold.sums), block, half) for fold in folds]
    described = block.descriptions.astype(np.float64)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    times = []
    for count in range(half, len(tasks) + 1):
        own = Sums.of(given[:count], dimension)
        if (count - half) % CHOSEN == 0:
            choices = (*(ways_beside(fold.sums) for fold in folds), [way_alone(own)])
            ways = [chosen_way(given[:count], described[:count], each)[0] for each in choices]
        *beside, fresh = (_Hub.of(way(own), block, count) for way in ways)
        if count == half:
            alone = fresh
        else:
            times += [hub.add() for hub in (*grown, alone)]
        for way, hubs in ((GROWN, grown), (REFITTED, beside), (ALONE_GROWN, [alone]), (ALONE_FRESH, [fresh])):
            right = np.empty(len(queries), dtype=np.bool_)
            for hub, rows in zip(hubs, parts if len(hubs) > 1 else [np.arange(len(queries))], strict=True):
                right[rows] = hub.right(queries[rows], answers[rows])
            found[way].append(float(by_task(right, answers, half).mean()))
    moved = sum(hub.moved for hub in (*grown, alone))
    return Growth(list(range(half, len(tasks) + 1)), found, moved, float(np.median(times)))


def _block(tasks: Sequence[Vectors], given: Sequence[Doubles]) -> VectorBlock:
    return VectorBlock(
        np.arange(1, len(tasks) + 1),
        np.array([len(examples) for examples in given]),
        np.stack([examples.sum(axis=0) for examples in given]).astype(np.float32),
        np.stack([task.description for task in tasks]).astype(np.float32),
        np.ones(len(tasks), dtype=np.bool_),
    )


def _part(block: VectorBlock, start: int, end: int) -> VectorBlock:
    part = slice(start, end)
    return VectorBlock(
        block.ids[part], block.counts[part], block.totals[part], block.descriptions[part], block.described[part]
    )


def _parts(rows: Rows) -> tuple[NDArray[np.generic], ...]:
    return rows.linear, rows.group, rows.offset


def _differing(one: Rows, other: Rows) -> int:
    """How many rows have other bits."""
    same = [np.asarray(a == b).reshape(len(a), -1).all(axis=1) for a, b in zip(_parts(one), _parts(other), strict=True)]
    return int((~np.logical_and.reduce(same)).sum())
