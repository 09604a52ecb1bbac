"""From tasks to the engine's adapters: each under its content hash, with those that it stands on."""

from __future__ import annotations

from pathlib import Path

from adapterhub.engine import Engine
from adapterhub.model._fit import check_head
from adapterhub.registry import Registry
from adapterhub.route import Route

__all__ = ["Placement"]


class Placement:
    """Puts the adapters of a registry's tasks into an engine when a route first names them.

    A route to a task runs its stack as well: the adapters below it, in the very versions that it was trained on. They
    have the task's gate; where several tasks of a route stand on the same one, their gates add up, so a mixture of
    siblings is the group's adapter once and the siblings in their shares.

    Args:
        engine: Where adapters run.
        registry: Where they come from.
    """

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine, self._registry = engine, registry
        self._folders: dict[str, Path] = {}
        self._below: dict[str, tuple[str, ...]] = {}
        self._checked: set[str] = set()

    def prefetch(self, routes: list[Route]) -> None:
        """Have the adapters of routes read before they run.

        Args:
            routes: Routes to tasks.
        """
        self._engine.prefetch(key for route in routes for key in self.keys(route))

    def keys(self, route: Route) -> list[str]:
        """The engine's names of all adapters that a route runs.

        Args:
            route: A route to tasks.
        """
        return list(dict.fromkeys(key for name in route.adapters for key in self._chain(name)))

    def place(self, route: Route) -> Route:
        """The route in the engine's names with all stacks, each adapter held against its card once.

        Args:
            route: A route to tasks. The first stays the first: its head answers.

        Raises:
            IncompatibleAdapterError: If an adapter does not fit the base, its card, or the head that it promises.
            IntegrityError: If an adapter, or one that it stands on, is missing or not the one that was sealed.
        """
        gates: dict[str, float] = {}
        for name, gate in zip(route.adapters, route.gates, strict=True):
            for key in self._chain(name):
                gates[key] = gates.get(key, 0.0) + gate
            self._check(name, self._chain(name)[0])
        return Route(tuple(gates), tuple(gates.values()))

    def spelled(self, placed: Route) -> tuple[tuple[str, float], ...]:
        """What ran, as tasks and gates.

        Args:
            placed: A route in the engine's names.
        """
        gates: dict[str, float] = {}
        for key, gate in zip(placed.adapters, placed.gates, strict=True):
            name = key.rpartition("@")[0]
            gates[name] = gates.get(name, 0.0) + gate
        return tuple(gates.items())

    def _chain(self, name: str) -> tuple[str, ...]:
        """The task's own adapter, then those below it, each as `task@hash`: versions are never mistaken."""
        task = self._registry[name]
        key = f"{name}@{task.sha256}"
        if key not in self._below:
            folder = self._registry.adapter_path(name)
            assert folder is not None, "routes name tasks with adapters only"
            below = {f"{one.name}@{one.sha256}": one for one in self._registry.below(name)}
            for lower, one in below.items():
                self._added(lower, one.folder, one.sha256)
            self._added(key, folder, task.sha256)
            self._below[key] = tuple(below)
        return (key, *self._below[key])

    def _added(self, key: str, folder: Path, sha256: str | None) -> None:
        if key not in self._folders:
            self._engine.add(key, folder, sha256=sha256)
            self._folders[key] = folder

    def _check(self, name: str, key: str) -> None:
        if key not in self._checked:
            check_head(self._registry[name], self._engine.load(key), str(self._folders[key]))
            self._checked.add(key)
