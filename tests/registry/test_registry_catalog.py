"""The catalogue follows the cards, and vectors are computed once."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from registry_folders import make_adapter
from registry_stores import HashEncoder

from adapterhub.errors import CardError, InputError
from adapterhub.registry import Registry
from adapterhub.task import Task


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a/one", "One.", ("x", "y")))
    registry.add(Task("a/two", "Two."))
    registry.add(Task("b", "Three.", ("z",)))
    return registry


def rows(registry: Registry) -> dict[str, tuple[str, str]]:
    return {record.name: (record.card, record.content_hash) for record in registry.catalog.records()}


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
    encoder = HashEncoder()
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


@pytest.mark.parametrize("harm", ["foreign", "page", "cut", "empty"])
def test_a_damaged_catalogue_is_made_again(registry: Registry, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(40):
        registry.add(Task(f"many/t{number}", "x" * 2000))
    encoder = HashEncoder()
    wanted = [(found.name, found.examples.tobytes()) for found in registry.vectors(encoder)]
    cards = [registry[name] for name in registry]
    damage(registry, harm)
    for again in (registry, Registry(registry.root)):
        assert again.add(Task("c", "Four."), replace=True) == again["c"]
        assert again.under("") == sorted([*cards, again["c"]], key=lambda task: task.name)
        heard = [(found.name, found.examples.tobytes()) for found in again.vectors(encoder) if found.name != "c"]
        assert heard == wanted
        assert again.verify() == []
        damage(registry, harm)


def damage(registry: Registry, harm: str) -> None:
    """Harm the file of the catalogue, all of which is in it and nothing in a log."""
    path = registry.root / ".catalog" / "catalog.sqlite"
    registry.store.catalog.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = bytearray(path.read_bytes())
    if harm == "foreign":
        raw = bytearray(b"not a database, though it is long enough" * 100)
    elif harm == "page":
        for page in range(8192, len(raw), 8192):
            raw[page : page + 4000] = b"\xa5" * 4000
    else:
        del raw[len(raw) // 2 if harm == "cut" else 0 :]
    path.write_bytes(raw)


def test_a_catalogue_that_says_something_else_is_found_and_made_again(registry: Registry) -> None:
    catalog = registry.catalog
    record = catalog.get("b")
    assert record is not None
    catalog.put([dataclasses.replace(record, card='{"description":"Other."}')])
    (fault,) = registry.verify()
    assert fault.startswith("b: the catalogue differs from the card.")
    (done,) = registry.repair()
    assert done == f"{fault} Done: it was made again from the cards."
    assert (registry.verify(), registry.under("b")[0].description) == ([], "Three.")


def test_only_new_content_is_encoded(registry: Registry, tmp_path: Path) -> None:
    encoder = HashEncoder()
    vectors = registry.vectors(encoder)
    assert sorted(encoder.heard) == ["One.", "Three.", "Two.", "x", "y", "z"]
    assert [found.name for found in vectors] == ["a/one", "a/two", "b"]
    one = vectors[0]
    assert one.count == 2
    assert one.description is not None
    assert np.array_equal(one.description, encoder.stored("One."))
    assert np.array_equal(one.examples, np.stack([encoder.stored("x"), encoder.stored("y")]))
    assert np.allclose(one.total, encoder.stored("x") + encoder.stored("y"))
    assert (vectors[1].count, vectors[1].examples.shape, vectors[1].total.tolist()) == (0, (0, 8), [0.0] * 8)

    encoder.heard.clear()
    registry.vectors(encoder)
    registry.add(registry["b"], make_adapter(tmp_path / "adapter"), replace=True)
    Registry(registry.root).vectors(encoder)
    assert encoder.heard == []

    registry.add(Task("c", "Four.", ("x",)))
    registry.add(Task("twin", "Two."))
    after = registry.vectors(encoder)
    assert encoder.heard == ["Four.", "x", "Two."]
    assert [found.name for found in after] == ["a/one", "a/two", "b", "c", "twin"]
    for old, new in zip(vectors, after, strict=False):
        assert old.examples.tobytes() == new.examples.tobytes()
        assert old.total.tobytes() == new.total.tobytes()

    other = HashEncoder("other")
    registry.vectors(other)  # a folder's catalogue is derived, so it follows
    assert (len(other.heard), registry.catalog.encoder) == (9, "other")


def test_many_examples_are_encoded_in_batches(registry: Registry) -> None:
    encoder = HashEncoder()
    for name in ("m1", "m2"):
        registry.add(Task(name, name, tuple(f"{name} {n}" for n in range(1100))))
    found = {vectors.name: vectors for vectors in registry.vectors(encoder)}
    assert (len(encoder.heard), found["m1"].count, len(found)) == (6 + 2202, 1100, 5)
    assert np.array_equal(found["m2"].examples[7], encoder.stored("m2 7"))


def test_an_encoder_that_breaks_its_promise_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError, match="length 1"):
        registry.vectors(HashEncoder(scale=2.0))
    wide = HashEncoder()
    wide.dimension = 9
    with pytest.raises(InputError, match=r"\(6, 9\)"):
        registry.vectors(wide)
    (registry.root / "b/task.yaml").write_text("x: y\n")
    with pytest.raises(CardError):
        registry.vectors(HashEncoder())
    assert Registry(registry.root / "none").vectors(HashEncoder()) == []
