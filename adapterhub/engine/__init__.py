"""The engine: one frozen base model and a rank arena; every row of a batch answers through its own adapters."""

from adapterhub.engine._engine import Engine

__all__ = ["Engine"]
