"""adapterhub: one frozen base model, a tree of tasks, one small adapter for each task, and a router.

Four nouns carry it: `Task`, `Registry`, `RoutedModel`, `Trainer`; inside are `Router` and `Engine`, and `Route` travels
between them. They are loaded at first use, so that `import adapterhub` and the command line start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapterhub.engine import Engine
    from adapterhub.model import RoutedModel
    from adapterhub.registry import Registry
    from adapterhub.route import Route
    from adapterhub.router import Router
    from adapterhub.task import Task
    from adapterhub.training import Trainer

__all__ = ["Engine", "Registry", "Route", "RoutedModel", "Router", "Task", "Trainer", "__version__"]

__version__ = "0.1.0"

_ROOMS = {
    "Engine": "engine",
    "Registry": "registry",
    "Route": "route",
    "RoutedModel": "model",
    "Router": "router",
    "Task": "task",
    "Trainer": "training",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'adapterhub' has no attribute {name!r}")
    return getattr(importlib.import_module(f"adapterhub.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
