"""How losses or gradients of several tasks on shared parameters are balanced.

Per-task adapters share no parameters, so they need none of this; a group's adapter does. A `LossWeighting` makes one
scalar of the losses, at the cost of one backward pass. A `GradientWeighting` makes one direction of the gradients, at
the cost of a backward pass for each task, which with a batch for each task is the same. What a weighting remembers
is in its `state_dict()`: tensors, and JSON in the extra state.
"""

from adapterhub.training.weighting._coba import Coba
from adapterhub.training.weighting._gradients import MetaWeighting, flat_gradient, gramian, look_ahead
from adapterhub.training.weighting._names import WEIGHTINGS, Kind, weighting_of
from adapterhub.training.weighting._pace import DynamicWeightAverage, Famo
from adapterhub.training.weighting._plain import InitialLoss, InverseLoss, Sum, Threshold, Uncertainty
from adapterhub.training.weighting._quadratic import nonnegative_minimum
from adapterhub.training.weighting._weighting import GradientWeighting, LossWeighting

__all__ = [
    "WEIGHTINGS",
    "Coba",
    "DynamicWeightAverage",
    "Famo",
    "GradientWeighting",
    "InitialLoss",
    "InverseLoss",
    "Kind",
    "LossWeighting",
    "MetaWeighting",
    "Sum",
    "Threshold",
    "Uncertainty",
    "flat_gradient",
    "gramian",
    "look_ahead",
    "nonnegative_minimum",
    "weighting_of",
]
