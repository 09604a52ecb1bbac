"""The registry: tasks and their adapters, in a folder of cards or in a database."""

from adapterhub.registry._below import Below
from adapterhub.registry._bundled import bundled_registry
from adapterhub.registry._export import Exported, export_tasks
from adapterhub.registry._import import Imported, import_tasks
from adapterhub.registry._registry import Registry
from adapterhub.registry._share import push_task

__all__ = ["Below", "Exported", "Imported", "Registry", "bundled_registry", "export_tasks", "import_tasks", "push_task"]
