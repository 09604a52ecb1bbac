"""PEFT methods of our own. Importing this room makes PEFT know them."""

from __future__ import annotations

from adapterhub.methods._config import ACTIVATIONS, BottleneckConfig
from adapterhub.methods._model import BottleneckModel
from adapterhub.methods._registration import register

__all__ = ["ACTIVATIONS", "BottleneckConfig", "BottleneckModel", "register"]

register()
