"""RoutedModel: a router in front of an engine."""

from adapterhub.model._base import load_base
from adapterhub.model._fit import check_head
from adapterhub.model._prediction import Answer, Entity, Prediction, spoken
from adapterhub.model._routed import RoutedModel
from adapterhub.model._usage import Usage, UsageLog, read_usage

__all__ = [
    "Answer",
    "Entity",
    "Prediction",
    "RoutedModel",
    "Usage",
    "UsageLog",
    "check_head",
    "load_base",
    "read_usage",
    "spoken",
]
