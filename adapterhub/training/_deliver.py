"""Where trained adapters go: into a registry, a folder, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from adapterhub.adapter import content_hash
from adapterhub.errors import InputError
from adapterhub.task import Task

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["Delivery"]


@dataclass(frozen=True)
class Delivery:
    """Takes adapter folders to their place.

    Args:
        registry: The registry.
        register: Whether cards and adapters go into it.
        out: Folder for the adapter folders, or None.
        resumed: Whether those that the run delivered before it was cut off may lie there already.
    """

    registry: Registry
    register: bool
    out: Path | None
    resumed: bool = False

    def check(self, names: Sequence[str]) -> None:
        """Make the folder, before anything is trained.

        Args:
            names: The tasks to come.

        Raises:
            InputError: If there is no place for adapters, or it is taken.
        """
        if self.out is None:
            if not self.register:
                raise InputError("With `register=False` the adapters need a folder. Found no `out`. Name one.")
            return
        taken = [str(self.out / name) for name in names if (self.out / name).exists()]
        if taken and not self.resumed:
            raise InputError(
                f"Adapters go into new folders. Found {', '.join(taken)}. Remove them or choose another `out`."
            )
        self.out.mkdir(parents=True, exist_ok=True)

    def deliver(self, task: Task, folder: Path, accelerator: Accelerator) -> tuple[Task, Path]:
        """Move a folder to its place and register it; of several processes the first does, for all of them.

        Args:
            task: The card.
            folder: A sealed adapter folder.
            accelerator: Knows the processes.

        Returns:
            The card as stored, and the folder where it lies now.

        Raises:
            InputError: If another adapter lies where one is resumed.
        """
        if accelerator.is_main_process:
            if self.out is not None:
                folder = _placed(folder, self.out / task.name)
            if self.register:
                task = self.registry.add(task, adapter=folder, replace=True)
        accelerator.wait_for_everyone()
        stored = self.registry[task.name] if self.register else task
        place = self.registry.adapter_path(task.name) if self.out is None else self.out / task.name
        assert place is not None
        return stored, place


def _placed(folder: Path, place: Path) -> Path:
    """The folder moved to its place, unless the same one lies there already."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        return folder.replace(place)
    if content_hash(place) != content_hash(folder):
        raise InputError(
            f"A resumed run delivers what it delivered before. Found another adapter in {place}. Choose another `out`."
        )
    return place
