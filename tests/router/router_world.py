"""A synthetic world for the router: tasks drawn from the two-covariance model, and a registry of them in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adapterhub.catalog import Ids, Scope, TaskRecord, TaskVectors, VectorBlock, VectorChanges
from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.router import Calibration
from adapterhub.router._calibration import Level
from adapterhub.task import Task

DIMENSION = 24


@dataclass
class World:
    """Tasks' means are N(mu, between), their texts N(mean, within); both covariances are full matrices."""

    seed: int = 0
    spread: float = 2.0

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)
        mixing = self.random.normal(size=(2, DIMENSION, DIMENSION)) / np.sqrt(DIMENSION)
        self.within = mixing[0] @ np.diag(self.random.uniform(0.2, 1.0, DIMENSION))
        self.between = self.spread * mixing[1] @ np.diag(np.linspace(1.5, 0.05, DIMENSION))
        self.mu = self.random.normal(size=DIMENSION)

    def mean(self):
        return self.mu + self.between @ self.random.normal(size=DIMENSION)

    def texts(self, mean, count):
        return mean + self.random.normal(size=(count, DIMENSION)) @ self.within.T


@dataclass
class FakeEncoder:
    """Looks texts up in a table."""

    table: dict[str, np.ndarray] = field(default_factory=dict)
    fingerprint: str = "fake"
    dimension: int = DIMENSION

    def encode(self, texts):
        return np.stack([self.table[text] for text in texts]).astype(np.float32) if texts else np.empty((0, DIMENSION))


def calibration_of(temperature, scores, rivals, null=0.0, examples=0):
    """One level of held-out texts whose mean rival does not depend on how many there are."""
    columns = np.asarray(rivals, dtype=float)[:, np.newaxis]
    return Calibration(temperature, (Level(examples, np.asarray(scores, dtype=float), columns, np.array([1])),), null)


def vectors(name, examples, description=None):
    rows = np.asarray(examples, dtype=np.float32).reshape(-1, DIMENSION)
    return TaskVectors.of(name, None if description is None else np.asarray(description, dtype=np.float32), rows)


class MemoryCatalog:
    """The reading half of a `Catalog` in dictionaries, and `put` and `delete`. Counts what was asked of it."""

    def __init__(self):
        self.url = "memory:"
        self.encoder: str | None = "fake"
        self.seq = 0
        self.asked: list[str] = []
        self._records: dict[str, TaskRecord] = {}
        self._vectors: dict[int, TaskVectors] = {}
        self._stamps: dict[int, int] = {}
        self._ids: dict[str, int] = {}

    def put(self, records: Sequence[TaskRecord], *, encoder: str = "", vectors: Sequence[TaskVectors] = ()) -> int:
        self.seq += 1
        for record in records:
            number = self._ids.setdefault(record.name, 1 + len(self._stamps))
            self._records[record.name] = replace(record, id=number, seq=self.seq)
            self._stamps[number] = self.seq
        for task in vectors:
            self._vectors[self._ids[task.name]] = replace(task, id=self._ids[task.name])
        return self.seq

    def delete(self, names: Collection[str]) -> int:
        self.seq += 1
        for name in names:
            number = self._records.pop(name).id
            del self._vectors[number], self._ids[name]
            self._stamps[number] = self.seq
        return self.seq

    def get(self, name):
        self.asked.append(f"get {name}")
        return self._records.get(name)

    def count(self, under=""):
        return len(self.names(under))

    def names(self, under="", *, after="", limit=None):
        found = sorted(name for name in self._records if _inside(name, under) and name > after)
        return found[:limit]

    def records(self, under="", *, after="", limit=None):
        return [self._records[name] for name in self.names(under, after=after, limit=limit)]

    def children(self, under=""):
        self.asked.append(f"children {under}")
        depth = 1 + under.count("/") + 1 if under else 1
        counts: dict[str, int] = {}
        for name in self.names(under):
            if name != under:
                child = "/".join(name.split("/")[:depth])
                counts[child] = counts.get(child, 0) + 1
        return sorted(counts.items())

    def ids(self, scope: Scope) -> Ids:
        self.asked.append("ids")
        found = [
            record.id
            for record in self._records.values()
            if _inside(record.name, scope.under)
            and set(scope.tags) <= set(record.tags)
            and scope.base_model in (None, record.base_model)
            and (record.version is not None or not scope.routable)
        ]
        return np.array(sorted(found), dtype=np.int64)

    def names_of(self, ids: Ids) -> list[str]:
        names = {number: name for name, number in self._ids.items()}
        self.asked.append(f"names {len(ids)}")
        if set(ids.tolist()) - names.keys():
            raise InputError("Numbers should be of tasks. Found others.")
        return [names[number] for number in ids.tolist()]

    def vectors(self, encoder: str, ids: Ids | None = None) -> list[TaskVectors]:
        self.asked.append(f"vectors {'all' if ids is None else len(ids)}")
        wanted = self._vectors.keys() if ids is None else set(ids.tolist())
        return sorted((self._vectors[number] for number in wanted if number in self._vectors), key=lambda t: t.name)

    def blocks(self, encoder: str, ids: Ids | None = None, size: int = 65536) -> Iterator[VectorBlock]:
        routable = [record.id for record in self._records.values() if record.version is not None]
        wanted = sorted(set(routable) if ids is None else set(routable) & set(ids.tolist()))
        for start in range(0, len(wanted), size):
            tasks = [self._vectors[number] for number in wanted[start : start + size]]
            none = np.zeros_like(tasks[0].total)
            yield VectorBlock(
                np.array([task.id for task in tasks], dtype=np.int64),
                np.array([task.count for task in tasks], dtype=np.int64),
                np.stack([task.total for task in tasks]),
                np.stack([none if task.description is None else task.description for task in tasks]),
                np.array([task.description is not None for task in tasks]),
            )

    def vector_changes(self, encoder: str, since: int) -> VectorChanges:
        routable = {record.id for record in self._records.values() if record.version is not None}
        changed = {number for number, seq in self._stamps.items() if seq > since}
        present, gone = (np.array(sorted(part), dtype=np.int64) for part in (changed & routable, changed - routable))
        return VectorChanges(self.seq, present, gone)


def _inside(name, under):
    return not under or name == under or name.startswith(f"{under}/")


class FakeRegistry:
    """Tasks in the order of adding, each example with a text of its own; counts how often it was heard."""

    def __init__(self):
        self.catalog = MemoryCatalog()
        self.tasks: dict[str, TaskVectors] = {}
        self.cards: dict[str, Task] = {}
        self.index_folder = None
        self.asked = 0
        self._encoder = None

    def add(self, task: TaskVectors, adapter=True, texts=None, tags=(), base_model=""):
        texts = tuple(f"{task.name} example {row}" for row in range(task.count)) if texts is None else tuple(texts)
        card = Task(task.name, f"The task {task.name}.", texts, tags=tuple(tags), base_model=base_model)
        self.cards[task.name] = card
        self.tasks[task.name] = task = replace(task, content_hash=card.content_hash)
        version = "v1" if adapter else None
        record = TaskRecord(task.name, version, None, "", card.content_hash, base_model=base_model, tags=tuple(tags))
        self.catalog.put([record], encoder="fake", vectors=[task])

    def remove(self, name):
        del self.tasks[name], self.cards[name]
        self.catalog.delete([name])

    def heard(self, encoder):
        self.asked += 1
        self._encoder = encoder
        return self.catalog

    def add_example(self, name, text):
        if name not in self.cards:
            raise TaskNotFoundError(f"No task {name!r}.")
        task, card = self.tasks[name], self.cards[name]
        examples = np.concatenate([task.examples, self._encoder.encode([text])])
        self.add(TaskVectors.of(name, task.description, examples), texts=(*card.examples, text), tags=card.tags)

    def __getitem__(self, name):
        if name not in self.cards:
            raise TaskNotFoundError(f"No task {name!r}.")
        return self.cards[name]
