"""A proposed group of tasks, and the card that it would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.task import GROUP, Head, Task, check_name, read_group

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["Group", "build_group", "write_groups"]


@dataclass(frozen=True)
class Group:
    """Tasks that would share an adapter.

    Args:
        name: Name of the group.
        tasks: Names of its tasks, sorted.
        head: Their head, or None where they have several: then the group's card names none.
        base_model: Their base model, as their cards name it.
    """

    name: str
    tasks: tuple[str, ...]
    head: Head | None
    base_model: str

    @property
    def card(self) -> dict[str, object]:
        """The fields of its `_group.yaml`."""
        fields: dict[str, object] = {"description": f"Tasks that belong together: {', '.join(self.tasks)}."}
        if self.head is not None:
            fields["head"] = self.head
        return fields | ({"base_model": self.base_model} if self.base_model else {})


def build_group(registry: Registry, name: str, tasks: Sequence[str], *, head: str | None = None) -> Group:
    """Make a group of tasks of a registry; what could not share an adapter is refused.

    Args:
        registry: Where the tasks are.
        name: Name of the group.
        tasks: Names of its tasks.
        head: The head that all of them must have; by default they may differ, for a task's head is its own.

    Raises:
        CardError: If a name breaks its rule.
        TaskNotFoundError: If a task is unknown; every one is named.
        InputError: If there are no tasks, one is named twice, they are on several bases, or a head is another than
            `head`; every fault is listed.
    """
    check_name(name)
    unknown = []
    found: dict[str, Task] = {}
    for task in dict.fromkeys(tasks):
        try:
            found[task] = registry[task]
        except TaskNotFoundError as error:
            unknown.append(str(error))
    if unknown:
        raise TaskNotFoundError("\n".join(unknown))
    faults = list(_faults(registry, name, tasks, found, head))
    if faults:
        raise InputError("\n".join(faults))
    heads = {task.head for task in found.values()}
    bases = {task.base_model for task in found.values()}
    return Group(
        name,
        tuple(sorted(found)),
        heads.pop() if len(heads) == 1 else None,
        bases.pop() if len(bases) == 1 else "",
    )


def write_groups(groups: Sequence[Group], out: Path) -> list[Path]:
    """Write each group's card into a new folder `<out>/<name>`, and read it back.

    Args:
        groups: The groups.
        out: The folder of the tree.

    Returns:
        The files.

    Raises:
        InputError: If one of the cards is there already; then none is written.
        CardError: If a card breaks a rule.
    """
    paths = [Path(out) / group.name / GROUP for group in groups]
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise InputError(f"A group is proposed where there is none. Found {', '.join(taken)}. Choose another folder.")
    for group, path in zip(groups, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(group.card, sort_keys=False, allow_unicode=True, width=1_000_000)
        path.write_text(text, encoding="utf-8")
        read_group(Path(out), group.name)
    return paths


def _faults(registry: Registry, name: str, tasks: Sequence[str], found: dict[str, Task], head: str | None) -> list[str]:
    faults = [f"{name}: a group has tasks. Found none. Name some."] if not tasks else []
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        faults.append(f"{name}: a group names a task once. Found {', '.join(twice)} twice.")
    bases = {registry.place_of_base(task.base_model) for task in found.values()}
    if len(bases) > 1:
        faults.append(f"{name}: tasks that share an adapter have one base model. Found {', '.join(sorted(bases))}.")
    others = [f"{task.name} ({task.head})" for task in found.values() if head is not None and task.head != head]
    if others:
        faults.append(
            f"{name}: the tasks of this group have the head {head}. Found {', '.join(others)}. Leave them out."
        )
    return faults
