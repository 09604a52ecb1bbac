"""Who is asked next, and in which order a task's rows come."""

from __future__ import annotations

from adapterhub.training.sampling._adaptive import Adaptive
from adapterhub.training.sampling._balanced import Balanced
from adapterhub.training.sampling._capped import Capped
from adapterhub.training.sampling._curriculum import Pacing, curriculum
from adapterhub.training.sampling._named import SAMPLINGS, sampler_of
from adapterhub.training.sampling._proportional import Proportional
from adapterhub.training.sampling._sampler import ExhaustedError, TaskSampler
from adapterhub.training.sampling._staged import Stage, Staged

__all__ = [
    "SAMPLINGS",
    "Adaptive",
    "Balanced",
    "Capped",
    "ExhaustedError",
    "Pacing",
    "Proportional",
    "Stage",
    "Staged",
    "TaskSampler",
    "curriculum",
    "sampler_of",
]
