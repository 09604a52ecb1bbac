"""Killed at any moment a task is there whole or not at all; several processes may write at once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_folders import die_at_each, kill_at_random, make_adapter, register_many, tree

from adapterhub.adapter import content_hash
from adapterhub.registry import Registry
from adapterhub.task import Task

# One warm process forks all others: each of them would need seconds to import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["adapterhub.adapter", "adapterhub.registry"])


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing there either, and fsync costs nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def assert_whole(registry: Registry, name: str) -> None:
    folder = registry.adapter_path(name)
    assert folder is not None
    assert content_hash(folder) == registry[name].sha256


def leftovers(root: Path) -> list[Path]:
    return [*root.glob(".catalog/staging-*"), *root.rglob(".task.yaml.*")]


def test_killed_at_fifteen_random_moments(memory_path: Path) -> None:
    adapter = make_adapter(memory_path / "adapter", size=200_000)
    root, acknowledged = memory_path / "registry", memory_path / "acknowledged"
    acknowledged.touch()
    worker = CONTEXT.Process(target=kill_at_random, args=(str(root), str(adapter), str(acknowledged), 15))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    registry = Registry(root)
    assert registry.verify() == []
    assert leftovers(root) == []
    names = acknowledged.read_text().split()
    assert len(names) >= 15
    assert set(names) <= set(registry)
    for name in registry:
        assert_whole(registry, name)


@pytest.mark.parametrize("action", ["add", "replace", "remove"])
def test_killed_before_each_file_operation(memory_path: Path, action: str) -> None:
    first, second = (make_adapter(memory_path / name, name) for name in ("first", "second"))
    template = memory_path / "template"
    Registry(template).add(Task("old/task", "Old."), first)
    Registry(template).add(Task("old/task/below", "Below."), first)
    untouched = {
        path: data for path, data in tree(template).items() if not path.startswith("old/task/") or "below" in path
    }
    folder = memory_path / "copies"
    folder.mkdir()
    worker = CONTEXT.Process(target=die_at_each, args=(str(template), str(folder), str(second), action))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    name = "new/one/task" if action == "add" else "old/task"
    seen = [check_after_death(root, name, untouched) for root in sorted(folder.iterdir())]
    before, after = {"add": (None, "New."), "replace": ("Old.", "Another."), "remove": ("Old.", None)}[action]
    cut = seen.index(after)
    assert cut > 5
    assert seen == [before] * cut + [after] * (len(seen) - cut)


def check_after_death(root: Path, name: str, untouched: dict[str, bytes]) -> str | None:
    """What is left of one task: its description if it is there, and then whole; all else must be as it was."""
    registry = Registry(root)
    assert registry.verify() == []
    assert leftovers(root) == []
    state = tree(root)
    assert untouched.items() <= state.items()
    assert sorted(registry) == sorted(({"old/task", "old/task/below"} - {name}) | ({name} & set(registry)))
    if name in registry:
        assert_whole(registry, name)
        assert registry.versions(name) == [f"v{n}" for n in range(1, 1 + int(str(registry[name].adapter)[1:]))]
        return registry[name].description
    assert not [path for path in state if path.startswith(f"{name}/") and "below" not in path]
    assert not (root / "new").exists()
    return None


def test_two_processes_register_ten_tasks_each_at_once(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    root = tmp_path / "registry"
    workers = [
        CONTEXT.Process(
            target=register_many, args=(str(root), str(adapter), f"group/p{n}", 10, str(tmp_path / f"ack{n}"))
        )
        for n in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    registry = Registry(root)
    assert registry.verify() == []
    assert sorted(registry) == sorted(f"group/p{n}/t{k}" for n in range(2) for k in range(10))
    for name in registry:
        assert_whole(registry, name)


def test_threads_replace_one_task_and_every_version_is_kept(tmp_path: Path) -> None:
    adapters = [make_adapter(tmp_path / f"adapter{n}", str(n)) for n in range(4)]
    registry = Registry(tmp_path / "registry")
    faults: list[Exception] = []

    def write(adapter: Path) -> None:
        try:
            registry.add(Task("a", "x"), adapter, replace=True)
            registry.refresh()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(adapter,)) for adapter in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert registry.versions("a") == ["v1", "v2", "v3", "v4"]
    hashes = {content_hash(registry.root / "a" / version) for version in registry.versions("a")}
    assert hashes == {content_hash(adapter) for adapter in adapters} or len(hashes) == 4
    assert registry.verify() == []
