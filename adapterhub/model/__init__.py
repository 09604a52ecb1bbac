"""RoutedModel: a router in front of an engine."""

from adapterhub.model._base import load_base
from adapterhub.model._fit import check_head
from adapterhub.model._prediction import Answer, Entity, Prediction, spoken
from adapterhub.model._routed import RoutedModel

__all__ = ["Answer", "Entity", "Prediction", "RoutedModel", "check_head", "load_base", "spoken"]
