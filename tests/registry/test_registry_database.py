"""What is peculiar to a registry in a database."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest
from registry_folders import make_adapter
from registry_stores import HashEncoder

from adapterhub.errors import CardError, InputError
from adapterhub.registry import Registry
from adapterhub.task import Task


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/tasks.db")


def test_the_address_says_where_the_files_are(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Registry("sqlite:///mine.db").add(Task("a/b", "x"), adapter)
    assert (tmp_path / "mine.adapters/a/b/v1/adapterhub.json").is_file()
    Registry(f"sqlite:///{tmp_path}/other.db", adapters=tmp_path / "elsewhere").add(Task("a", "x"), adapter)
    assert (tmp_path / "elsewhere/a/v1").is_dir()
    assert not (tmp_path / "other.adapters").exists()
    assert list(Registry("sqlite:///mine.db")) == ["a/b"]
    for wrong in ("mysql://host/db", "sqlite://x.db", "sqlite:///"):
        with pytest.raises(InputError, match="sqlite:///relative"):
            Registry(wrong)
    with pytest.raises(InputError, match="Leave it out"):
        Registry(tmp_path / "folder", adapters=tmp_path)


def test_another_encoder_needs_to_be_asked_for(registry: Registry) -> None:
    registry.add(Task("a", "x"))
    registry.heard(HashEncoder())
    seq = registry.refresh()
    for call in (registry.heard, registry.vectors):
        with pytest.raises(InputError, match=r"vectors of fake\. Found other.*adapterhub reindex --encoder"):
            call(HashEncoder("other"))
    assert (registry.refresh(), registry.catalog.encoder) == (seq, "fake")
    registry.reindex(HashEncoder("other"))
    assert len(registry.vectors(HashEncoder("other"))) == 1
    with pytest.raises(InputError, match="adapterhub reindex"):
        registry.heard(HashEncoder())


def test_verify_finds_rows_that_say_something_else(registry: Registry, adapter: Path) -> None:
    for name in ("card", "fields", "column", "stack", "fine"):
        registry.add(Task(name, "x"), adapter)
    catalog = registry.catalog
    for name, change in {
        "card": {"card": "{"},
        "fields": {"card": '{"descripton":"x"}'},
        "column": {"base_model": "m", "tags": ("t",)},
        "stack": {"card": '{"adapter":"v1","description":"x","sha256":"%s","stack":["none"]}'},
    }.items():
        record = catalog.get(name)
        told = {key: value % record.sha256 if "%s" in value else value for key, value in change.items()}
        catalog.put([dataclasses.replace(record, **told)])
    faults = registry.verify()
    assert [fault.split(":")[0] for fault in faults] == ["card", "column", "column", "fields", "fields", "stack"]
    assert "Found another tags" in faults[2]
    assert "Found 'none'" in faults[5]


def test_verify_finds_missing_changed_and_foreign_adapters(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    for name in ("gone", "cut", "old", "fine"):
        registry.add(Task(name, "x"), adapter)
    registry.add(registry["old"], make_adapter(tmp_path / "b", "b"), replace=True)
    home = registry.store.home
    shutil.rmtree(home("gone") / "v1")
    for place in (home("cut") / "v1", home("old") / "v1"):
        (place / "adapter_model.safetensors").write_bytes(b"")
    shutil.copytree(adapter, home("foreign/task") / "v1")
    faults = registry.verify()
    assert len(faults) == 4
    for place, fault in zip(("cut/v1", "gone/v1", "old/v1", "foreign/task/v1"), faults, strict=True):
        assert place in fault


def test_a_damaged_file_is_found_and_repaired(registry: Registry, tmp_path: Path) -> None:
    for number in range(60):
        registry.add(Task(f"t{number}", "x" * 3000, (f"example {number}",)))
    registry.store.catalog.close()
    path = tmp_path / "tasks.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    raw = bytearray(path.read_bytes())
    for page in (len(raw) // 2, len(raw) // 3):
        raw[page : page + 2000] = b"\xa5" * 2000
    path.write_bytes(raw)
    damaged = Registry(f"sqlite:///{path}")
    assert damaged.verify() != []
    done = damaged.repair()
    assert done != []
    assert Registry(f"sqlite:///{path}").verify() == []
    left = list(damaged)
    assert 0 < len(left) <= 60
    assert damaged[left[0]].description == "x" * 3000


def test_a_database_without_a_folder_of_adapters_takes_those_on_the_hub(
    registry: Registry, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry.store, "_adapters", None)  # as it is for PostgreSQL
    url = f"hf://acme/adapters@{'0' * 40}/x"
    registry.add(Task("a", "x", adapter=url, sha256="0" * 64))
    for task, folder in ((Task("b", "x"), adapter), (Task("b", "x", adapter="v1"), None)):
        with pytest.raises(InputError, match="adapters=FOLDER"):
            registry.add(task, folder)
    assert (list(registry), registry.versions("a"), registry["a"].adapter) == (["a"], [], url)
    assert [version.version for version in registry.history("a")] == [url]
    assert registry.verify() == []
    registry.remove("a")
    assert list(registry) == []


def test_cards_are_stored_complete(registry: Registry, tmp_path: Path) -> None:
    folder = Registry(tmp_path / "cards")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/_group.yaml").write_text("license: mit\n")
    folder.add(Task("a", "x", license="mit"))
    registry.add(folder["a"])
    assert registry["a"].license == "mit"
    assert registry.inherited("a") == {}
    with pytest.raises(CardError):
        registry.inherited("../a")
