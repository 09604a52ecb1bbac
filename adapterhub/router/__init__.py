"""Who is called: texts in, routes out. The router knows cards and vectors, never the base model's tensors."""

from adapterhub.router._background import Background
from adapterhub.router._calibration import Calibration
from adapterhub.router._chunks import Part, Parts
from adapterhub.router._epoch import Epoch
from adapterhub.router._explain import Contrast, Explanation, Neighbour
from adapterhub.router._impact import Impact, Loss, Twin
from adapterhub.router._router import Router
from adapterhub.router._statistics import Sums
from adapterhub.router._types import Candidate, Decision, Policy, RoutingPolicy, TaskSource

__all__ = [
    "Background",
    "Calibration",
    "Candidate",
    "Contrast",
    "Decision",
    "Epoch",
    "Explanation",
    "Impact",
    "Loss",
    "Neighbour",
    "Part",
    "Parts",
    "Policy",
    "Router",
    "RoutingPolicy",
    "Sums",
    "TaskSource",
    "Twin",
]
