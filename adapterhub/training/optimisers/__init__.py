"""Optimisers for adapters, groups of parameters with rates of their own, and a meter of conflicts.

A gradient weighting promises that its direction hurts no task; what moves the parameters is the optimiser. Each of
these keeps its state as tensors by parameter, so a checkpoint needs no pickle.
"""

from adapterhub.training.optimisers._adaptive import AdaptiveMomentum
from adapterhub.training.optimisers._conflict import ConflictMeter
from adapterhub.training.optimisers._frozen_a import FrozenA
from adapterhub.training.optimisers._groups import parameter_groups
from adapterhub.training.optimisers._muon import MuonAdamW
from adapterhub.training.optimisers._names import OPTIMISERS, optimizer_of

__all__ = [
    "OPTIMISERS",
    "AdaptiveMomentum",
    "ConflictMeter",
    "FrozenA",
    "MuonAdamW",
    "optimizer_of",
    "parameter_groups",
]
