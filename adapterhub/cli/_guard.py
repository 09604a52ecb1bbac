"""The guard at registration: whose traffic a task would take."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from adapterhub.cli._print import err, hint
from adapterhub.errors import AdapterHubError, InputError

if TYPE_CHECKING:
    from adapterhub.encoder import Encoder
    from adapterhub.registry import Registry
    from adapterhub.router import Router
    from adapterhub.task import Task

__all__ = ["Guard", "guard"]


def guard(registry: Registry, task: Task, max_steal: float) -> None:
    """Say which tasks' texts a new or changed task would take and which it nearly repeats; refuse where it is too much.

    Args:
        registry: Where the task will go.
        task: The task.
        max_steal: The tolerated share of another task's texts; 1 does not look.

    Raises:
        InputError: If it would take more.
    """
    Guard(registry, max_steal).look(task)


class Guard:
    """Looks at tasks one after another with one router, which is made when it is needed.

    Args:
        registry: Where the tasks will go.
        max_steal: The tolerated share of another task's texts; 1 does not look.
    """

    def __init__(self, registry: Registry, max_steal: float) -> None:
        self._registry, self._max_steal = registry, max_steal
        self._router: Router | None = None
        self._off = max_steal >= 1

    def look(self, task: Task) -> None:
        """Say what a task would take.

        Raises:
            InputError: If it is too much.
        """
        if self._off or not self._others(task):
            return
        try:
            impact = self._opened().what_if(task)
        except AdapterHubError as error:  # no encoder, or cards of other tasks that are wrong
            self._off = True
            hint(f"Not held against the other tasks' texts: {str(error).splitlines()[0]}")
            return
        try:
            impact.refuse(self._max_steal)
        except InputError as error:
            twins = [f"It nearly repeats {twin.task}: {len(twin.same)} examples in common." for twin in impact.twins]
            raise InputError("\n".join([str(error), *twins])) from None
        if impact.losses or impact.twins:
            err.print(str(impact), markup=False, soft_wrap=True)

    def _others(self, task: Task) -> bool:
        """Whether there is a task that could lose a text; otherwise no encoder is loaded."""
        from adapterhub.catalog import Scope

        try:
            catalog = self._registry.catalog if self._registry.refresh() else None
        except AdapterHubError:
            return True
        if catalog is None:
            return False
        ids = catalog.ids(Scope())
        own = catalog.get(task.name)
        return len(ids) > (own is not None and own.id in ids)

    def _opened(self) -> Router:
        if self._router is None:
            from adapterhub.router import Router

            self._router = Router(self._registry, _encoder())
        return self._router


@functools.cache
def _encoder() -> Encoder:
    from adapterhub.encoder import SentenceEncoder

    return SentenceEncoder()
