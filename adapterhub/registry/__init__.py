"""The registry: tasks and their adapters in a folder of cards."""

from adapterhub.registry._bundled import bundled_registry
from adapterhub.registry._registry import Registry
from adapterhub.registry._share import push_task

__all__ = ["Registry", "bundled_registry", "push_task"]
