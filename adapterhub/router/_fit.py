"""A statistics epoch from a hub's own examples, beside a background or without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Catalog, Ids, Scope, TaskVectors
from adapterhub.router._background import Background
from adapterhub.router._calibration import Calibration, Known, cross_fit
from adapterhub.router._epoch import LEAST_TASKS, SHRINKAGE, Epoch
from adapterhub.router._statistics import Sums

__all__ = ["fit_own"]

Doubles = NDArray[np.float64]

SHRINKAGE_ALONE = 0.3  # without a background, for fewer than 64 tasks
MANY_TASKS = 64
LEAST_EXAMPLES = 10  # beside a background a smaller task shapes no statistics: measured, it does harm
MOST_TASKS = 20_000  # shape the statistics: two covariances of 384 dimensions need no more
MOST_HELD = 1000  # tasks that are calibrated on ...
MOST_HELD_EXAMPLES = 40_000  # ... and their examples, which are kept in memory: 120 MB at d = 384
BATCH = 64  # tasks read at a time


def fit_own(catalog: Catalog, encoder: str, dimension: int, background: Background | None) -> tuple[Epoch, Calibration]:
    """Fit an epoch on a hub's tasks and calibrate it on examples held out of it.

    Memory is bounded: of more than 20,000 tasks an even sample shapes the statistics, and of more than 1000 an even
    sample is held out in turn, each task against the others of the sample.

    Args:
        catalog: The hub's tasks and their vectors.
        encoder: Fingerprint of the encoder.
        dimension: Width d of an encoding.
        background: Sums that are added to the hub's, or None.

    Returns:
        The epoch of all examples, and its calibration.

    Raises:
        InputError: If an example vector is not finite or of another width.
    """
    least = 1 if background is None else LEAST_EXAMPLES
    ids = _sample(catalog)
    held = set(ids[:: _stride(len(ids), MOST_HELD)].tolist())
    known: list[Known] = []
    rest = Sums.empty(dimension)
    room = MOST_HELD_EXAMPLES
    for batch in _batches(catalog, encoder, ids):
        others = []
        for task in batch:
            if task.id in held and task.count <= room:
                known.append(_known(task))
                room -= task.count
            elif task.count >= least:
                others.append(task.examples)
        rest = rest + Sums.of(others, dimension)
    shaping = [len(examples) >= least for examples, _ in known]
    all_sums = rest + Sums.of(compress((examples for examples, _ in known), shaping), dimension)
    fit = _fitter(all_sums, background)

    def refit(kept: Sequence[Doubles]) -> Epoch:
        return fit(rest + Sums.of(compress(kept, shaping), dimension))

    calibration = cross_fit(known, refit)
    if calibration is None:
        calibration = Calibration.absent(dimension) if background is None else background.calibration
    return fit(all_sums), calibration


def _fitter(sums: Sums, background: Background | None) -> Callable[[Sums], Epoch]:
    """How to make an epoch of sums like these; chosen once, so that calibration and epoch agree."""
    if background is not None:
        foreign = background.sums
        return lambda own: Epoch.fit(foreign + own)
    if sums.freedom < len(sums.means) or sums.tasks < LEAST_TASKS:
        return Epoch.isotropic
    shrinkage = SHRINKAGE_ALONE if sums.tasks < MANY_TASKS else SHRINKAGE
    return lambda own: Epoch.fit(own, shrinkage)


def _sample(catalog: Catalog) -> Ids:
    """Tasks that shape the statistics, in the order of their names: it fixes the bits of the sums."""
    ids = catalog.ids(Scope())
    ids = ids[:: _stride(len(ids), MOST_TASKS)]
    names = catalog.names_of(ids)
    return ids[sorted(range(len(ids)), key=names.__getitem__)]


def _batches(catalog: Catalog, encoder: str, ids: Ids) -> Iterator[list[TaskVectors]]:
    for start in range(0, len(ids), BATCH):
        yield catalog.vectors(encoder, np.sort(ids[start : start + BATCH]))  # by name


def _stride(count: int, most: int) -> int:
    return max(1, -(-count // most))


def _known(task: TaskVectors) -> Known:
    description = None if task.description is None else task.description.astype(np.float64)
    return task.examples.astype(np.float64), description
