"""A statistics epoch from a hub's own examples, beside a background or without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from adapterhub.router._background import Background
from adapterhub.router._calibration import Calibration, Known, cross_fit
from adapterhub.router._epoch import LEAST_TASKS, SHRINKAGE, Epoch
from adapterhub.router._statistics import Sums
from adapterhub.router._types import VectorsOfTask

__all__ = ["fit_own"]

Doubles = NDArray[np.float64]

SHRINKAGE_ALONE = 0.3  # without a background, for fewer than 64 tasks
MANY_TASKS = 64
LEAST_EXAMPLES = 10  # beside a background a smaller task shapes no statistics: measured, it does harm


def fit_own(
    vectors: Sequence[VectorsOfTask], dimension: int, background: Background | None
) -> tuple[Epoch, Calibration]:
    """Fit an epoch on a hub's tasks and calibrate it on examples held out of it.

    Args:
        vectors: The tasks, in any order.
        dimension: Width d of an encoding.
        background: Sums that are added to the hub's, or None.

    Returns:
        The epoch of all examples, and its calibration.

    Raises:
        InputError: If an example vector is not finite or of another width.
    """
    known = [_known(task) for task in sorted(vectors, key=lambda task: task.name)]  # the order fixes the bits
    least = 1 if background is None else LEAST_EXAMPLES
    shaping = [len(examples) >= least for examples, _ in known]
    all_sums = Sums.of(compress((examples for examples, _ in known), shaping), dimension)
    fit = _fitter(all_sums, background)

    def refit(kept: Sequence[Doubles]) -> Epoch:
        return fit(Sums.of(compress(kept, shaping), dimension))

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


def _known(task: VectorsOfTask) -> Known:
    description = None if task.description is None else np.asarray(task.description, dtype=np.float64)
    return np.asarray(task.examples, dtype=np.float64), description
