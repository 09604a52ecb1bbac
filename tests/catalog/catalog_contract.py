"""What every catalogue is tested with: rows, vectors, a model of plain dicts, and a catalogue of each kind."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from catalog_postgres import postgres_url, schema, why_not

from adapterhub.catalog import (
    Catalog,
    Scope,
    TaskRecord,
    TaskVectors,
    TaskVersion,
    VectorBlock,
    VectorChanges,
    open_catalog,
)

KINDS = ("sqlite", "postgres")
WIDTH = 6


def row(name: str, version: str | None = "v1", content: str = "c", **fields: object) -> TaskRecord:
    values = {"sha256": None if version is None else f"{version:0>64}", "card": f'{{"description":"{name}"}}'} | fields
    return TaskRecord(name, version, content_hash=content, **values)


def heard(name: str, examples: int = 1, described: bool = True, content: str = "", seed: int = 0) -> TaskVectors:
    rng = np.random.default_rng([seed, examples, *name.encode()])
    rows = rng.standard_normal((examples + 1, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return TaskVectors.of(name, rows[-1] if described else None, rows[:-1], content)


def same(one: TaskVectors, two: TaskVectors) -> bool:
    """Bit by bit, types included."""
    pairs = [(getattr(one, key), getattr(two, key)) for key in ("total", "description", "examples")]
    equal = all(
        (left is None) == (right is None)
        and (left is None or (left.dtype == right.dtype == np.float32 and np.array_equal(left, right)))
        for left, right in pairs
    )
    return equal and (one.name, one.count, one.content_hash) == (two.name, two.count, two.content_hash)


def joined(blocks: Iterable[VectorBlock]) -> dict[int, tuple[int, bytes, bytes, bool]]:
    """The rows of blocks by number; the order of the numbers is that of the blocks."""
    return {
        int(key): (int(count), total.tobytes(), description.tobytes(), bool(described))
        for block in blocks
        for key, count, total, description, described in zip(
            block.ids, block.counts, block.totals, block.descriptions, block.described, strict=True
        )
    }


def narrow(item: TaskVectors) -> tuple[int, bytes, bytes, bool]:
    described = item.description is not None
    description = item.description if described else np.zeros(WIDTH, dtype=np.float32)
    return item.count, item.total.tobytes(), description.tobytes(), described


@contextmanager
def place(kind: str) -> Iterator[str]:
    """URL of an empty catalogue of a kind, which is gone in the end; skips where there is no server for it."""
    if kind == "postgres":
        url = postgres_url()
        if url is None:
            pytest.skip(why_not())
        with schema(url) as empty:
            yield empty
        return
    # In memory where there is one: a killed process loses nothing there either, and fsync costs nothing.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield f"sqlite:///{folder}/catalog.sqlite"


@contextmanager
def opener(kind: str) -> Iterator[Callable[[], Catalog]]:
    """Opens the same empty catalogue as often as it is asked."""
    with place(kind) as url, ExitStack() as opened:

        def again() -> Catalog:
            catalog = open_catalog(url)
            opened.callback(catalog.close)
            return catalog

        yield again


@dataclass
class Entry:
    """A task of the model."""

    record: TaskRecord
    vectors: TaskVectors | None = None
    heard: int = 0
    history: list[TaskVersion] = field(default_factory=list)

    @property
    def routable(self) -> bool:
        return self.record.status == "active" and self.record.version is not None


class Model:
    """A catalogue of plain dicts, slow and plain: the oracle."""

    def __init__(self) -> None:
        self.seq = self.last = self.bound = 0
        self.encoder: str | None = None
        self.tasks: dict[str, Entry] = {}
        self.tombstones: list[tuple[int, str, int]] = []

    def put(self, records: Sequence[TaskRecord], encoder: str = "", vectors: Sequence[TaskVectors] = ()) -> None:
        self.seq += 1
        self._bind(encoder)
        for record in records:
            entry = self.tasks.get(record.name)
            if entry is None:
                self.last += 1
                entry = self.tasks[record.name] = Entry(dataclasses.replace(record, id=self.last))
            if entry.record.content_hash != record.content_hash:
                entry.vectors, entry.heard = None, 0
            entry.record = dataclasses.replace(record, id=entry.record.id, seq=self.seq)
            self._remember(entry)
        for item in vectors:
            self._hear(self.tasks[item.name], item)

    def put_vectors(self, encoder: str, vectors: Sequence[TaskVectors]) -> None:
        self.seq += 1
        self._bind(encoder)
        for item in vectors:
            entry = self.tasks.get(item.name)
            if entry is not None and entry.record.content_hash == item.content_hash:
                self._hear(entry, item)

    def bind(self, encoder: str) -> None:
        self.seq += 1
        if encoder != self.encoder:
            for entry in self.tasks.values():
                entry.vectors, entry.heard = None, 0
            self.encoder, self.bound = encoder, self.seq

    def mark(self, names: Sequence[str], status: str) -> None:
        self.seq += 1
        for name in names:
            entry = self.tasks[name]
            entry.record = dataclasses.replace(entry.record, status=status, seq=self.seq)

    def delete(self, names: Sequence[str]) -> None:
        self.seq += 1
        for name in names:
            self.tombstones.append((self.seq, name, self.tasks.pop(name).record.id))

    def active(self, under: str = "") -> list[Entry]:
        found = [
            entry
            for name, entry in self.tasks.items()
            if entry.record.status == "active" and (not under or name == under or name.startswith(under + "/"))
        ]
        return sorted(found, key=lambda entry: entry.record.name)

    def children(self, under: str = "") -> list[tuple[str, int]]:
        start = f"{under}/" if under else ""
        below = [entry.record.name for entry in self.active(under) if entry.record.name != under]
        names = sorted({start + name[len(start) :].split("/")[0] for name in below})
        return [(name, len(self.active(name))) for name in names]

    def ids(self, scope: Scope) -> list[int]:
        return sorted(
            entry.record.id
            for entry in self.active(scope.under)
            if set(scope.tags) <= set(entry.record.tags)
            and scope.base_model in (None, entry.record.base_model)
            and (entry.routable or not scope.routable)
        )

    def present(self) -> dict[int, tuple[int, bytes, bytes, bool]]:
        """The rows of an index."""
        found = [entry for entry in self.tasks.values() if entry.routable and entry.vectors is not None]
        return {entry.record.id: narrow(entry.vectors) for entry in sorted(found, key=lambda one: one.record.id)}

    def deleted(self, since: int) -> set[str]:
        return {name for seq, name, _ in self.tombstones if seq > since} - set(self.tasks)

    def _bind(self, encoder: str) -> None:
        if encoder and self.encoder is None:
            self.encoder, self.bound = encoder, self.seq

    def _hear(self, entry: Entry, item: TaskVectors) -> None:
        entry.vectors = dataclasses.replace(item, content_hash=entry.record.content_hash, id=entry.record.id)
        entry.heard = self.seq

    def _remember(self, entry: Entry) -> None:
        version, sha256 = entry.record.version, entry.record.sha256
        if version is None:
            return
        for place, known in enumerate(entry.history):
            if known.version == version:
                entry.history[place] = dataclasses.replace(known, sha256=sha256)
                return
        entry.history.append(TaskVersion(version, sha256, self.seq))


def assert_agrees(catalog: Catalog, model: Model) -> None:
    """Every question that does not need an encoder's name has the model's answer."""
    assert (catalog.seq, catalog.encoder) == (model.seq, model.encoder)
    assert catalog.records() == [entry.record for entry in model.active()]
    retired = sorted(name for name, entry in model.tasks.items() if entry.record.status == "retired")
    assert [record.name for record in catalog.records(retired=True)] == retired
    assert [record.name for record in catalog.records("a", limit=1, retired=True)] == [
        name for name in retired if name == "a" or name.startswith("a/")
    ][:1]
    for name, entry in model.tasks.items():
        assert catalog.get(name) == entry.record
        assert catalog.versions(name) == sorted(entry.history, key=lambda one: (one.seq, one.version))
    for branch in {"", *(name.rsplit("/", cut)[0] for name in model.tasks for cut in range(name.count("/") + 1))}:
        names = [entry.record.name for entry in model.active(branch)]
        assert catalog.names(branch) == names
        assert catalog.count(branch) == len(names)
        assert catalog.children(branch) == model.children(branch)
        assert [record.name for record in catalog.records(branch)] == names
    for scope in scopes():
        assert catalog.ids(scope).tolist() == model.ids(scope)
    everything = catalog.changes(0)
    assert everything.seq == model.seq
    rows = sorted((entry.record for entry in model.tasks.values()), key=lambda one: (one.seq, one.name))
    assert list(everything.records) == rows
    assert set(everything.deleted) == model.deleted(0)
    numbers = np.array([entry.record.id for entry in model.tasks.values()], dtype=np.int64)
    assert catalog.names_of(numbers) == list(model.tasks)


def assert_hears(catalog: Catalog, model: Model, encoder: str) -> None:
    """The same of the questions about vectors."""
    lacking = [entry.record for entry in model.active() if entry.vectors is None]
    assert catalog.missing(encoder) == lacking
    assert catalog.missing(encoder, limit=1) == lacking[:1]
    expected = [entry.vectors for entry in model.active() if entry.vectors is not None]
    found = catalog.vectors(encoder)
    assert [item.id for item in found] == [item.id for item in expected]
    assert all(same(one, two) for one, two in zip(found, expected, strict=True))
    rows = joined(catalog.blocks(encoder, size=2))
    assert list(rows.items()) == list(model.present().items())


def apply(index: dict[int, object], catalog: Catalog, changes: VectorChanges, encoder: str) -> None:
    """Bring an index up to date as whoever keeps one does."""
    for key in changes.gone.tolist():
        index.pop(key, None)
    rows = joined(catalog.blocks(encoder, ids=changes.present))
    assert list(rows) == changes.present.tolist()
    index.update(rows)


def scopes() -> list[Scope]:
    return [
        Scope(under, tags, base, routable)
        for under in ("", "a", "a/b")
        for tags in ((), ("x",), ("x", "y"))
        for base in (None, "", "m1")
        for routable in (True, False)
    ]
