"""Task after task, and none forgotten: adapters of their own, or a shared one with what keeps the older tasks."""

from __future__ import annotations

from adapterhub.training.continual._distillation import distillation_loss
from adapterhub.training.continual._ewc import EWC, fisher_diagonal
from adapterhub.training.continual._gem import gem_direction
from adapterhub.training.continual._keeping import KEEPS, Distilled, Keeping
from adapterhub.training.continual._learner import ContinualLearner
from adapterhub.training.continual._reservoir import Reservoir
from adapterhub.training.continual._scores import ContinualScores

__all__ = [
    "EWC",
    "KEEPS",
    "ContinualLearner",
    "ContinualScores",
    "Distilled",
    "Keeping",
    "Reservoir",
    "distillation_loss",
    "fisher_diagonal",
    "gem_direction",
]
