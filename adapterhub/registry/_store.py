"""What lies behind a registry: a folder of cards, or a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from adapterhub.catalog import Catalog, TaskRecord, TaskVectors, TaskVersion
from adapterhub.task import Task

__all__ = ["Arrival", "Status", "Store", "vectors_of"]

Status = Literal["active", "retired"]


@dataclass(frozen=True)
class Arrival:
    """One task on its way into a registry.

    Args:
        task: The task; its `adapter` is one of the versions that come along or are there, a place on the Hub, or None.
        adapters: Sealed adapter folders by the version that each of them becomes.
        history: The adapters that the task has had, oldest first.
        status: Whether it arrives as a retired task.
        vectors: What an encoder hears of it, if that comes along.
    """

    task: Task
    adapters: Mapping[str, Path] = field(default_factory=dict)
    history: tuple[TaskVersion, ...] = ()
    status: Status = "active"
    vectors: TaskVectors | None = None


def vectors_of(rows: Sequence[TaskRecord], arrivals: Sequence[Arrival]) -> list[TaskVectors]:
    """The vectors that come along, of the tasks that are active.

    Args:
        rows: The rows, one for each arrival.
        arrivals: What arrives.
    """
    pairs = zip(rows, arrivals, strict=True)
    return [arrival.vectors for row, arrival in pairs if arrival.vectors is not None and row.status == "active"]


class Store(Protocol):
    """Where the cards are. What changes something is called while `writing()`."""

    @property
    def place(self) -> str:
        """The folder, or the address without a password, for messages."""
        ...

    @property
    def root(self) -> Path:
        """The folder in which a base model such as `_base` lies."""
        ...

    @property
    def catalog(self) -> Catalog:
        """The tables."""
        ...

    @property
    def derived(self) -> Path:
        """The folder for what can be made again; it is made."""
        ...

    @property
    def empty(self) -> bool:
        """Whether nothing is there yet; reading it shall not leave anything behind."""
        ...

    def home(self, name: str) -> Path:
        """The folder with the versions of a task's adapter."""
        ...

    def refresh(self) -> int:
        """Bring the catalogue up to the truth; returns the number of its newest commit."""
        ...

    def count(self) -> int:
        """Number of the active tasks, those with faults among them."""
        ...

    def status(self, name: str) -> Status | None:
        """Whether a task is there."""
        ...

    def task(self, name: str) -> Task:
        """A task that is there and active."""
        ...

    def near(self, name: str) -> Sequence[str]:
        """Names of tasks that may be meant."""
        ...

    def inherited(self, group: str) -> Mapping[str, object]:
        """Defaults that a group has for its tasks."""
        ...

    def read_outside(self, name: str, card: Path) -> Task:
        """Read a card that lies elsewhere as if it stood here."""
        ...

    def history(self, name: str) -> list[TaskVersion]:
        """Every adapter that a task is known to have had, oldest first."""
        ...

    def catch_up(self) -> int:
        """`refresh` for whoever is `writing()`; wrong cards of other tasks are left alone."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """The one writer; what killed writers have left is settled."""
        ...

    def checking(self) -> AbstractContextManager[None]:
        """The same for whoever only looks, also at a place that cannot be written to."""
        ...

    def place_all(self, arrivals: Sequence[Arrival], *, encoder: str = "") -> list[TaskRecord]:
        """Store tasks, replacing those of the same names; each is there whole or not at all."""
        ...

    def turn(self, name: str, status: Status) -> None:
        """Retire a task, or make it active again."""
        ...

    def take(self, name: str) -> None:
        """Remove a task with all its versions."""
        ...

    def hear(self, encoder: str) -> None:
        """See to it that the catalogue is bound to this encoder, or refuse."""
        ...

    def verify(self) -> list[str]:
        """Every fault; call it while `checking()`."""
        ...

    def repair(self) -> list[str]:
        """Repair what can be repaired, and say what was done; call it while `checking()`."""
        ...
