"""A synthetic world for the router: tasks drawn from the two-covariance model, and a registry of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

DIMENSION = 24


@dataclass(frozen=True)
class Vectors:
    name: str
    count: int
    total: np.ndarray
    description: np.ndarray | None
    examples: np.ndarray


@dataclass(frozen=True)
class Card:
    name: str
    adapter: str | None


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


def vectors(name, examples, description=None):
    rows = np.asarray(examples, dtype=np.float32).reshape(-1, DIMENSION)
    total = rows.sum(axis=0, dtype=np.float64).astype(np.float32)
    return Vectors(name, len(rows), total, None if description is None else description.astype(np.float32), rows)


class FakeRegistry:
    """Tasks in the order of adding; counts how often vectors were asked for."""

    def __init__(self):
        self.tasks: dict[str, Vectors] = {}
        self.bare: set[str] = set()
        self.seq = 0
        self.asked = 0

    def add(self, task, adapter=True):
        self.tasks[task.name] = task
        if not adapter:
            self.bare.add(task.name)
        self.seq += 1

    def remove(self, name):
        del self.tasks[name]
        self.seq += 1

    def refresh(self):
        return self.seq

    def vectors(self, encoder):
        self.asked += 1
        return list(self.tasks.values())

    def under(self, prefix):
        assert prefix == ""
        return [Card(name, None if name in self.bare else "v1") for name in self.tasks]


def with_nan(task):
    total = task.total.copy()
    total[0] = np.nan
    return replace(task, total=total)
