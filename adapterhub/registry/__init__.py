"""The registry: tasks and their adapters in a folder of cards."""

from adapterhub.registry._registry import Registry

__all__ = ["Registry"]
