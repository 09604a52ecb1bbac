"""adapterhub: one frozen base model, a tree of tasks, one small adapter for each task, and a router."""

__version__ = "0.1.0"
