"""A full disk, a place that cannot be written to, a clock that jumps, files that are damaged."""

from __future__ import annotations

import errno
import json
import os
import resource
import time
from pathlib import Path

import pytest
from registry_folders import make_adapter, tree
from registry_stores import KINDS, HashEncoder, open_at, place_of

import adapterhub.registry._place as place
from adapterhub.adapter import content_hash
from adapterhub.errors import AdapterHubError, InputError, IntegrityError
from adapterhub.registry import Registry, export_tasks, import_tasks
from adapterhub.task import Task


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    registry = open_at(request.param, tmp_path / "registry")
    registry.add(Task("old", "Old.", ("e",)), make_adapter(tmp_path / "adapter"))
    return registry


def whole(registry: Registry) -> list[str]:
    """Names of the tasks, once every fault was looked for and nothing is left aside."""
    again = Registry(registry.place)
    assert again.verify() == []
    assert list(registry.store.derived.glob("staging-*")) == []
    for name in again:
        path = again.adapter_path(name)
        assert path is None or content_hash(path) == again[name].sha256
    return list(again)


ACTIONS = {
    "add": lambda registry, folder: registry.add(Task("new/task", "New."), folder),
    "replace": lambda registry, folder: registry.add(Task("old", "Newer."), folder, replace=True),
    "example": lambda registry, folder: registry.add_example("old", "another"),
    "remove": lambda registry, folder: registry.remove("old"),
    "import": lambda registry, folder: import_tasks(
        registry, folder.parent / "t.jsonl", adapters=folder.parent / "box"
    ),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_disk_that_is_full_at_any_moment_loses_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    new = make_adapter(tmp_path / "new", "1")
    make_adapter(tmp_path / "box/new/task/v1", "2")
    (tmp_path / "t.jsonl").write_text(json.dumps({"name": "new/task", "description": "x", "adapter": "v1"}) + "\n")
    sync, before, refused = os.fsync, registry["old"], 0
    for moment in range(1, 60):
        left = [moment]

        def full(file: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        monkeypatch.setattr(os, "fsync", full)
        fault = ""
        try:
            ACTIONS[action](registry, new)
        except IntegrityError as error:
            fault = str(error)
        monkeypatch.setattr(os, "fsync", sync)
        names = whole(registry)
        if not fault:
            break
        assert f"{registry.place} cannot be written to: No space left on device" in fault
        refused += 1
        if "old" in names and registry["old"] == before and names == ["old"]:
            continue
        # The commit stood before the disk was full: then it stands whole, and is not done again.
        break
    assert action in ("example", "remove") or refused >= 4
    wanted = {"add": ["new/task", "old"], "import": ["new/task", "old"], "remove": []}.get(action, ["old"])
    assert whole(registry) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_cannot_grow_are_one_error(kind: str, tmp_path: Path) -> None:
    """The same with a limit of the system, which SQLite feels too."""
    adapter = make_adapter(tmp_path / "adapter", size=400_000)
    registry = open_at(kind, tmp_path / "registry")
    registry.add(Task("old", "Old."), adapter)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            told = 0
            for number in range(3):
                try:
                    Registry(registry.place).add(Task(f"t{number}", "x"), adapter)
                except IntegrityError as error:
                    told += "too large" in str(error)
            for number in range(2000):
                try:
                    Registry(registry.place).add(Task(f"u{number}", "y" * 9000))
                except IntegrityError:
                    break
            code = 0 if told == 3 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    names = whole(registry)
    assert names[0] == "old"
    assert not [name for name in names if name.startswith("t")]
    assert all(registry[name].description == "y" * 9000 for name in names[1:])
    registry.add(Task("t0", "x"), adapter)
    assert "t0" in whole(registry)


def test_a_place_that_cannot_be_written_to_is_read_all_the_same(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry.heard(HashEncoder())
    allowed, root = os.access, registry.store.home("old").parent
    monkeypatch.setattr(place.os, "access", lambda path, mode: allowed(path, mode) and root not in (path, path.parent))
    again = Registry(registry.place)
    before = tree(tmp_path / "registry")
    assert (list(again), again["old"], again.verify(), again.repair()) == (["old"], registry["old"], [], [])
    assert len(again.heard(HashEncoder()).vectors("fake")) == 1
    assert again.index_folder is not None
    assert again.index_folder.is_relative_to(tmp_path / "cache")
    for call in (
        lambda: again.add(Task("new", "x")),
        lambda: again.remove("old"),
        lambda: again.retire("old"),
        lambda: again.add_example("old", "x"),
    ):
        with pytest.raises(InputError, match="where it can be written to"):
            call()
    assert tree(tmp_path / "registry") == before


def test_a_clock_that_jumps_changes_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, numbers = HashEncoder(), []
    for jump, name in ((10**9, "a"), (-(10**9), "b"), (0, "c")):
        now = time.time() + jump
        monkeypatch.setattr(time, "time", lambda now=now: now)
        registry.add(Task(name, f"Task {name}."))
        for path in (tmp_path / "registry").rglob("task.yaml"):
            os.utime(path, (max(now, 0), max(now, 0)))
        numbers.append(registry.refresh())
        assert [found.name for found in registry.vectors(encoder)][:-1] == ["a", "b", "c"][: len(numbers)]
    assert numbers == sorted(set(numbers))
    if (tmp_path / "registry/a/task.yaml").is_file():
        path = tmp_path / "registry/a/task.yaml"
        path.write_text(path.read_text().replace("Task a.", "Task z."))
        os.utime(path, (0, 0))
        assert registry.under("a")[0].description == "Task z."
    assert whole(registry) == ["a", "b", "c", "old"]


def test_a_damaged_index_is_found_and_deleted(registry: Registry) -> None:
    folder = registry.index_folder
    assert folder is not None
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}" if name == "one" else "")
    faults = registry.verify()
    assert len(faults) == 2
    assert all("manifest.json" in fault for fault in faults)
    done = registry.repair()
    assert [text.endswith("It was deleted.") for text in done] == [True, True]
    assert (registry.verify(), list(folder.iterdir())) == ([], [])


def test_leftovers_of_killed_writers_are_settled_by_whoever_looks(registry: Registry) -> None:
    aside = registry.store.derived / "staging-killed"
    aside.mkdir()
    (aside / "intent.json").write_text(json.dumps(["add", "new/task", ["v1"]]))
    (aside / "task.yaml").write_text("description: x\n")
    make_adapter(registry.store.home("new/task") / "v1")
    assert whole(registry) == ["old"]
    assert not registry.store.home("new").exists()
    assert (registry.store.home("old") / "v1").is_dir()


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_to_a_full_disk_leaves_the_older_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_at(kind, tmp_path / "registry")
    registry.add(Task("a", "x"))
    target = tmp_path / "out.jsonl"
    target.write_text("older")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterHubError, match="No space left"):
        export_tasks(registry, target)
    monkeypatch.undo()
    assert target.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "registry"]
    assert place_of(kind, tmp_path / "registry") == registry.place
