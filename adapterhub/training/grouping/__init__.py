"""Which tasks belong together: gradients, adapters and texts compared, groups proposed, data looked over."""

from __future__ import annotations

from adapterhub.training.grouping._affinity import Affinity, affinity
from adapterhub.training.grouping._cluster import average_linkage
from adapterhub.training.grouping._doctor import Finding, examine
from adapterhub.training.grouping._exhaustive import best_grouping, pairwise_loss
from adapterhub.training.grouping._gradients import TaskGradients, gradients_of, input_hash
from adapterhub.training.grouping._groups import Group, build_group, write_groups
from adapterhub.training.grouping._sample import Estimator
from adapterhub.training.grouping._text import text_similarity

__all__ = [
    "Affinity",
    "Estimator",
    "Finding",
    "Group",
    "TaskGradients",
    "affinity",
    "average_linkage",
    "best_grouping",
    "build_group",
    "examine",
    "gradients_of",
    "input_hash",
    "pairwise_loss",
    "text_similarity",
    "write_groups",
]
