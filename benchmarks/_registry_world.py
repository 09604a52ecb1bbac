"""A world of synthetic tasks that imitate real ones, of any size, the same for every run.

It starts from a pool of texts' vectors that belong to tasks: real ones (with --data, the inputs of its tasks, encoded
by all-MiniLM-L6-v2), or else a seeded imitation, 80 tasks of 100 texts drawn from the two covariances that the
package's background statistics hold, scaled to unit length. From the pool:

- a subtree has a centre: a mixture of the means of two tasks of the pool, moved by a difference of two texts;
- a task has a mean: its subtree's centre, moved by a difference of two texts of any tasks;
- an example, a description and a query are the mean, moved by a difference of two texts of one task of the pool, of
  unit length; descriptions are moved half as far.

So many tasks are near-duplicates of others in their subtree, and the spread within tasks is that of real texts. Tasks
have 0, 1, 2, 5 or 20 examples (10, 30, 30, 20 and 10 %), one of 100 base models drawn without regard to anything else,
and lie in one of 100 subtrees; subtrees follow each other at random.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapterhub.encoder import Encoder
from adapterhub.router import Sums

SUBTREES = BASES = 100
COUNTS, SHARES = (0, 1, 2, 5, 20), (0.1, 0.3, 0.3, 0.2, 0.1)
BLOCK = 10_000
ADAPTER = "hf://example/adapters@" + "0123456789abcdef" * 2 + "01234567"

Floats = np.ndarray


@dataclass(frozen=True)
class Pool:
    """Vectors of texts (n, d), the task of each, and texts that were held out."""

    vectors: Floats
    tasks: np.ndarray
    held_out: Floats | None = None

    @classmethod
    def imitated(cls, sums: Sums, tasks: int = 80, texts: int = 100) -> Pool:
        """Drawn from the covariances of background statistics."""
        random = np.random.default_rng(7)
        mu = sums.means / sums.tasks
        within = sums.scatter / sums.freedom
        between = sums.outers / sums.tasks - np.outer(mu, mu)
        roots = [_root(part) for part in (between, within)]
        means = mu + random.standard_normal((tasks, len(mu))) @ roots[0]
        drawn = means.repeat(texts, axis=0) + random.standard_normal((tasks * texts, len(mu))) @ roots[1]
        return cls(_unit(drawn.astype(np.float32)), np.arange(tasks).repeat(texts))

    @classmethod
    def real(cls, data: Path, encoder: Encoder, texts: int) -> Pool:
        """Inputs of the tasks below a folder: `train.jsonl` for the pool, `test.jsonl` held out."""
        pools: tuple[list[str], list[str]] = ([], [])
        tasks = []
        for number, path in enumerate(sorted(data.rglob("train.jsonl"))):
            for part, name, count in ((0, path, texts), (1, path.with_name("test.jsonl"), max(2, texts // 10))):
                lines = name.read_text(encoding="utf-8").splitlines()[:count]
                found = [text[:500] for line in lines if (text := json.loads(line)["input"]).strip()]
                pools[part].extend(found)
                tasks += [number] * len(found) * (1 - part)
        train, test = (encoder.encode(part) for part in pools)
        return cls(train, np.array(tasks), test)


class World:
    """Tasks without end; the first ones are the same for every number of them."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._members = [np.flatnonzero(pool.tasks == task) for task in range(pool.tasks.max() + 1)]
        random = np.random.default_rng(11)
        means = np.stack([pool.vectors[members].mean(axis=0) for members in self._members])
        self._nearest, other = random.integers(len(means), size=(2, SUBTREES))
        moved = self._difference(random, SUBTREES)
        self._centres = 0.7 * means[self._nearest] + 0.3 * means[other] + 0.35 * moved

    def block(self, number: int) -> Tasks:
        """The tasks from `BLOCK * number` on, `BLOCK` of them."""
        random = np.random.default_rng([13, number])
        subtrees = random.integers(SUBTREES, size=BLOCK)
        bases = random.integers(BASES, size=BLOCK)
        counts = random.choice(COUNTS, p=SHARES, size=BLOCK)
        means = self._centres[subtrees] + 0.45 * self._difference(random, BLOCK)
        owners = np.arange(BLOCK).repeat(counts)
        examples = _unit(means[owners] + self._noise(random, subtrees[owners]))
        descriptions = _unit(means + 0.5 * self._noise(random, subtrees))
        return Tasks(BLOCK * number, subtrees, bases, counts, descriptions, examples, means)

    def queries(self, tasks: Tasks, places: np.ndarray, seed: int) -> Floats:
        """New texts of some tasks of a block."""
        random = np.random.default_rng([17, seed])
        return _unit(tasks.means[places] + self._noise(random, tasks.subtrees[places]))

    def _difference(self, random: np.random.Generator, count: int) -> Floats:
        one, other = random.integers(len(self.pool.vectors), size=(2, count))
        return self.pool.vectors[one] - self.pool.vectors[other]

    def _noise(self, random: np.random.Generator, subtrees: np.ndarray) -> Floats:
        found = np.empty((len(subtrees), self.pool.vectors.shape[1]), dtype=np.float32)
        kinds = self._nearest[subtrees]
        for kind in np.unique(kinds):
            at, members = np.flatnonzero(kinds == kind), self._members[kind]
            one, other = members[random.integers(len(members), size=(2, len(at)))]
            found[at] = (self.pool.vectors[one] - self.pool.vectors[other]) / np.float32(np.sqrt(2))
        return found


@dataclass(frozen=True)
class Tasks:
    """Some tasks of the world."""

    first: int
    subtrees: np.ndarray
    bases: np.ndarray
    counts: np.ndarray
    descriptions: Floats
    examples: Floats
    means: Floats

    def __len__(self) -> int:
        return len(self.counts)

    def head(self, count: int) -> Tasks:
        """The first of them."""
        parts = (self.subtrees, self.bases, self.counts, self.descriptions)
        return Tasks(self.first, *(part[:count] for part in parts), self.examples[: self.counts[:count].sum()],
                     self.means[:count])  # fmt: skip

    def lines(self) -> Iterator[str]:
        """The cards, one JSON object each."""
        for row, (subtree, base, count) in enumerate(zip(self.subtrees, self.bases, self.counts, strict=True)):
            number = self.first + row
            card = {
                "name": name_of(number, int(subtree)),
                "description": f"Do what task {number} does with a text.",
                "examples": [f"example {turn} of task {number}" for turn in range(count)],
                "base_model": f"example/base-{base:02}",
                "adapter": f"{ADAPTER}/{number}",
                "sha256": f"{number:064x}",
                "tags": [f"t{number % 7}"],
            }
            yield json.dumps(card, separators=(",", ":"))


def name_of(number: int, subtree: int) -> str:
    return f"group-{subtree:02}/task-{number:07}"


def write(world: World, count: int, folder: Path, encoder: str) -> tuple[Path, Path]:
    """`tasks.jsonl` and `vectors.safetensors` of the first tasks, written block by block."""
    parts = {name: (folder / name).open("wb+") for name in ("descriptions", "described", "examples", "counts")}
    rows = 0
    with (folder / "tasks.jsonl").open("w", encoding="utf-8") as cards:
        for number in range(-(-count // BLOCK)):
            tasks = world.block(number).head(min(BLOCK, count - number * BLOCK))
            cards.writelines(f"{line}\n" for line in tasks.lines())
            parts["descriptions"].write(tasks.descriptions.astype("<f2").tobytes())
            parts["described"].write(np.ones(len(tasks), dtype=np.uint8).tobytes())
            parts["examples"].write(tasks.examples.astype("<f2").tobytes())
            parts["counts"].write(tasks.counts.astype("<i8").tobytes())
            rows += len(tasks.examples)
    width = world.pool.vectors.shape[1]
    shapes = {"descriptions": ("F16", [count, width]), "described": ("U8", [count]),
              "examples": ("F16", [rows, width]), "counts": ("I64", [count])}  # fmt: skip
    header: dict[str, object] = {"__metadata__": {"encoder": encoder, "format": "1"}}
    at = 0
    for name, (kind, shape) in sorted(shapes.items(), key=lambda item: -int(item[1][0][1:])):
        size = parts[name].tell()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "vectors.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in list(header)[1:]:
            parts[name].seek(0)
            while piece := parts[name].read(1 << 24):
                file.write(piece)
            parts[name].close()
            (folder / name).unlink()
    return folder / "tasks.jsonl", folder / "vectors.safetensors"


def _root(covariance: Floats) -> Floats:
    values, axes = np.linalg.eigh(covariance)
    return (axes * np.sqrt(np.maximum(values, 0))).T


def _unit(vectors: Floats) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
