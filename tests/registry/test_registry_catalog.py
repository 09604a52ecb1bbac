"""The catalogue follows the cards, and vectors are computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from registry_folders import make_adapter

from adapterhub.catalog import SqliteCatalog
from adapterhub.errors import CardError, InputError, IntegrityError
from adapterhub.registry import Registry
from adapterhub.task import Task


class CountingEncoder:
    """Each text's vector follows from its hash; every text asked for is noted."""

    dimension = 8

    def __init__(self, fingerprint: str = "fake", scale: float = 1.0) -> None:
        self.fingerprint, self.scale = fingerprint, scale
        self.heard: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.heard += texts
        return np.stack([self.one(text) for text in texts])

    def one(self, text: str) -> np.ndarray:
        row = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.int32).astype(np.float32)
        return (self.scale * row / np.linalg.norm(row)).astype(np.float32)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a/one", "One.", ("x", "y")))
    registry.add(Task("a/two", "Two."))
    registry.add(Task("b", "Three.", ("z",)))
    return registry


def rows(registry: Registry) -> dict[str, tuple[str, str]]:
    catalog = SqliteCatalog(registry.root / ".catalog" / "catalog.sqlite")
    return {record.name: (record.card, record.content_hash) for record in catalog.records()}


def test_the_catalogue_follows_edits_by_hand(registry: Registry) -> None:
    seq = registry.refresh()
    assert registry.refresh() == seq
    path = registry.root / "a/one/task.yaml"
    path.write_text(path.read_text().replace("One.", "Uno."))
    assert registry.refresh() == seq + 1
    assert registry.under("a")[0].description == "Uno."
    (registry.root / "a/_group.yaml").write_text("license: mit\n")
    assert {task.license for task in registry.under("a")} == {"mit"}
    (registry.root / "a/_group.yaml").unlink()
    assert {task.license for task in registry.under("a")} == {""}
    shutil.move(registry.root / "b", registry.root / "c")
    assert list(registry) == ["a/one", "a/two", "c"]
    assert registry.verify() == []


def test_an_edit_of_the_same_size_within_one_tick_is_seen(registry: Registry) -> None:
    path = registry.root / "b/task.yaml"
    stat = path.stat()
    registry.refresh()
    path.write_text(path.read_text().replace("Three.", "Tres!!"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert registry.under("b")[0].description == "Tres!!"


def test_the_catalogue_can_be_deleted_at_any_time(registry: Registry) -> None:
    before = rows(registry)
    encoder = CountingEncoder()
    vectors = registry.vectors(encoder)
    shutil.rmtree(registry.root / ".catalog")
    assert list(registry) == list(before)
    assert rows(registry) == before
    again = registry.vectors(encoder)
    assert [np.array_equal(one.examples, two.examples) for one, two in zip(vectors, again, strict=True)] == [True] * 3
    shutil.rmtree(registry.root / ".catalog")
    registry.add(Task("c", "Four."))
    assert len(registry) == 4
    assert registry.verify() == []


def test_a_damaged_catalogue_stops_before_anything_changes(registry: Registry) -> None:
    (registry.root / ".catalog" / "catalog.sqlite").write_bytes(b"not a database, though it is long enough" * 100)
    with pytest.raises(IntegrityError, match="Delete it"):
        registry.add(Task("c", "Four."))
    assert not (registry.root / "c").exists()
    assert any("Delete it" in fault for fault in registry.verify())
    assert registry["b"].description == "Three."


def test_a_catalogue_that_says_something_else_is_found(registry: Registry) -> None:
    catalog = SqliteCatalog(registry.root / ".catalog" / "catalog.sqlite")
    record = catalog.get("b")
    assert record is not None
    catalog.put([dataclasses.replace(record, card='{"description":"Other."}')])
    assert registry.verify() == ["b: the catalogue differs from the card. Delete `.catalog`; it is made again."]


def test_only_new_content_is_encoded(registry: Registry, tmp_path: Path) -> None:
    encoder = CountingEncoder()
    vectors = registry.vectors(encoder)
    assert sorted(encoder.heard) == ["One.", "Three.", "Two.", "x", "y", "z"]
    assert [found.name for found in vectors] == ["a/one", "a/two", "b"]
    one = vectors[0]
    assert one.count == 2
    assert one.description is not None
    assert np.array_equal(one.description, encoder.one("One."))
    assert np.array_equal(one.examples, np.stack([encoder.one("x"), encoder.one("y")]))
    assert np.allclose(one.total, encoder.one("x") + encoder.one("y"))
    assert (vectors[1].count, vectors[1].examples.shape, vectors[1].total.tolist()) == (0, (0, 8), [0.0] * 8)

    encoder.heard.clear()
    registry.vectors(encoder)
    registry.add(registry["b"], make_adapter(tmp_path / "adapter"), replace=True)
    Registry(registry.root).vectors(encoder)
    assert encoder.heard == []

    registry.add(Task("c", "Four.", ("x",)))
    registry.add(Task("twin", "Two."))
    after = registry.vectors(encoder)
    assert encoder.heard == ["Four.", "x"]
    assert [found.name for found in after] == ["a/one", "a/two", "b", "c", "twin"]
    for old, new in zip(vectors, after, strict=False):
        assert old.examples.tobytes() == new.examples.tobytes()
        assert old.total.tobytes() == new.total.tobytes()

    other = CountingEncoder("other")
    registry.vectors(other)
    assert len(other.heard) == 8
    encoder.heard.clear()
    registry.vectors(encoder)
    assert encoder.heard == []


def test_many_examples_are_encoded_in_batches(registry: Registry) -> None:
    encoder = CountingEncoder()
    for name in ("m1", "m2"):
        registry.add(Task(name, name, tuple(f"{name} {n}" for n in range(1100))))
    found = {vectors.name: vectors for vectors in registry.vectors(encoder)}
    assert (len(encoder.heard), found["m1"].count, len(found)) == (6 + 2202, 1100, 5)
    assert np.array_equal(found["m2"].examples[7], encoder.one("m2 7"))


def test_an_encoder_that_breaks_its_promise_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError, match="length 1"):
        registry.vectors(CountingEncoder(scale=2.0))
    wide = CountingEncoder()
    wide.dimension = 9
    with pytest.raises(InputError, match=r"\(6, 9\)"):
        registry.vectors(wide)
    (registry.root / "b/task.yaml").write_text("x: y\n")
    with pytest.raises(CardError):
        registry.vectors(CountingEncoder())
    assert Registry(registry.root / "none").vectors(CountingEncoder()) == []
