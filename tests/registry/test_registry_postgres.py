"""A registry in PostgreSQL does what one in SQLite does; what the tables hold is tested in the catalogue's room."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_postgres import postgres_url, schema, why_not
from registry_folders import make_adapter
from registry_stores import HashEncoder, open_at

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.registry import Imported, Registry, export_tasks, import_tasks
from adapterhub.task import Task


@pytest.fixture
def url() -> Iterator[str]:
    server = postgres_url()
    if server is None:
        pytest.skip(why_not())
    with schema(server) as found:
        yield found


@pytest.fixture
def registry(url: str, tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(url, adapters=tmp_path / "shared")
    yield registry
    registry.store.catalog.close()


def test_a_task_lives_retires_and_goes(registry: Registry, url: str, tmp_path: Path) -> None:
    first, second = (make_adapter(tmp_path / name, name) for name in ("first", "second"))
    one = registry.add(Task("a/b", "One.", ("e",), tags=("t",)), first)
    two = registry.add(one, second, replace=True)
    registry.add(Task("a/c", "C.", stack=("a/b",)))
    other = Registry(url, adapters=tmp_path / "shared")
    assert (list(other), other["a/b"], other.versions("a/b")) == (["a/b", "a/c"], two, ["v1", "v2"])
    assert other.add_example("a/b", "f").examples == ("e", "f")
    assert [found.count for found in registry.vectors(HashEncoder())] == [2, 0]
    with pytest.raises(InputError, match="adapterhub reindex --encoder"):
        registry.heard(HashEncoder("other"))
    registry.retire("a/b")
    with pytest.raises(TaskNotFoundError, match="adapterhub restore a/b"):
        other["a/b"]
    assert [fault.split(":")[0] for fault in other.verify()] == ["a/c"]
    registry.restore("a/b")
    assert (other.verify(), other.repair(), other.groups()) == ([], [], [("a", 2)])
    registry.remove("a/b")
    assert not (tmp_path / "shared/a/b").exists()
    assert list(other) == ["a/c"]
    other.store.catalog.close()


def test_lines_and_vectors_there_and_back_lose_nothing(registry: Registry, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    task = registry.add(Task("a", "A.", ("x", "y")), adapter)
    registry.add(dataclasses.replace(task, metrics={"f1": 0.5}), adapter, replace=True)
    registry.add(Task("gone", "Gone."), adapter)
    registry.retire("gone")
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"name": f"g{n % 9}/t{n}", "description": f"{n}"}) + "\n" for n in range(500)))
    for wanted in (Imported(500, 0, 0), Imported(0, 0, 500)):
        assert import_tasks(registry, path) == wanted
    registry.heard(HashEncoder())
    export_tasks(registry, tmp_path / "one.jsonl", vectors=tmp_path / "one.safetensors")
    copy = open_at("sqlite", tmp_path / "copy")
    import_tasks(copy, tmp_path / "one.jsonl", vectors=tmp_path / "one.safetensors")
    export_tasks(copy, tmp_path / "two.jsonl", vectors=tmp_path / "two.safetensors")
    for suffix in ("jsonl", "safetensors"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_threads_that_register_at_once_lose_nothing(registry: Registry, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    faults: list[Exception] = []

    def register(part: int) -> None:
        try:
            for number in range(5):
                registry.add(Task(f"p{part}/t{number}", "x"), adapter)
                registry.add(Task("shared", f"{part} {number}"), adapter, replace=True)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=register, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(registry) == 16
    assert registry.versions("shared") == [f"v{number}" for number in range(1, 16)]
    assert registry.verify() == []
