"""What to say of a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapterhub.catalog import Catalog
from adapterhub.errors import TaskNotFoundError, did_you_mean

__all__ = ["names_near", "no_branch", "no_task"]

_MOST = 5_000  # names that are compared; all of a million would take minutes


def no_task(name: str, place: str, count: int, names: Sequence[str], *, retired: bool) -> TaskNotFoundError:
    """The error for a task that is not there.

    Args:
        name: The name asked for.
        place: The registry.
        count: Number of its tasks.
        names: Names of tasks that may be meant.
        retired: Whether the task is there, but retired.
    """
    if retired:
        return TaskNotFoundError(
            f"The task {name!r} in {place} is retired. Make it active again: adapterhub restore {name}"
        )
    branches = _branches(names)
    group = name
    while group and group not in branches:
        group = group.rpartition("/")[0]
    more = f" See `adapterhub ls{' ' + group if group else ''}`."
    return TaskNotFoundError(f"No task {name!r} in {place} ({count:,} tasks).{did_you_mean(name, names)}{more}")


def no_branch(prefix: str, place: str, names: Iterable[str]) -> TaskNotFoundError:
    """The error for a branch that is not there.

    Args:
        prefix: The branch asked for.
        place: The registry.
        names: Names of tasks near it.
    """
    near = did_you_mean(prefix, sorted(_branches(names)))
    return TaskNotFoundError(f"No branch {prefix!r} in {place}.{near} See `adapterhub ls`.")


def names_near(catalog: Catalog, name: str) -> list[str]:
    """Names of tasks that may be meant: those of the nearest branch that exists, those beside the name in the order.

    Args:
        catalog: The catalogue.
        name: The name asked for.
    """
    branch = name.rpartition("/")[0]
    while branch and not catalog.names(branch, limit=1):
        branch = branch.rpartition("/")[0]
    found = catalog.names(branch, limit=_MOST)
    if len(found) == _MOST:
        for start in {name[: len(name) * part // 4] for part in (1, 2, 3)}:
            found += catalog.names(after=start, limit=_MOST // 5)
        found += [child for child, _ in catalog.children(branch)[:_MOST]]
    return found


def _branches(names: Iterable[str]) -> set[str]:
    return {name.rsplit("/", cut)[0] for name in names for cut in range(1 + name.count("/"))}
