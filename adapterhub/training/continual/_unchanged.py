"""Whether other tasks are what they were, byte for byte."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeAlias

from adapterhub.adapter import content_hash
from adapterhub.task import Task

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["Fingerprint", "changed", "fingerprints"]

Fingerprint: TypeAlias = tuple[Task, str | None]


def fingerprints(registry: Registry, without: Collection[str]) -> dict[str, Fingerprint]:
    """The card of every task, with the content hash of its adapter's files.

    Every adapter that lies here is read whole; one on the Hub is pinned by its commit and its card's hash.

    Args:
        registry: The registry.
        without: Tasks to leave out.

    Raises:
        IntegrityError: If an adapter's files are missing.
    """
    found: dict[str, Fingerprint] = {}
    for task in registry.tasks():
        if task.name in without:
            continue
        folder = None
        if task.adapter is not None and not task.adapter.startswith("hf://"):
            folder = registry.adapter_path(task.name)
        found[task.name] = (task, task.sha256 if folder is None else content_hash(folder))
    return found


def changed(before: Mapping[str, Fingerprint], after: Mapping[str, Fingerprint]) -> list[str]:
    """A sentence for each task that is not what it was; tasks that have come are no change.

    Args:
        before: From `fingerprints`.
        after: The same, later.
    """
    faults = []
    for name, (task, sha256) in before.items():
        if name not in after:
            faults.append(f"{name}: a task that was there. Found none.")
        elif after[name][1] != sha256:
            faults.append(f"{name}: an adapter of sha256 {sha256}. Found {after[name][1]}. Restore its version.")
        elif after[name][0] != task:
            faults.append(f"{name}: a card that was another one. Compare it with its history.")
    return faults
