"""`verify` holds what seals pin: there with that hash, whatever the cards name by now."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from registry_folders import make_adapter
from registry_stores import KINDS, open_at

import adapterhub.registry._hub as hub
from adapterhub.errors import IntegrityError
from adapterhub.registry import Registry
from adapterhub.task import CARD, Task, write_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD, NEW = "Restore it from a copy, or train a/x again.", "Restore it from a copy, or train a/y again."


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """`a/x` stands on the first version of `a`, `a/y` on the second, and `a` has a third."""
    registry = open_at(request.param, tmp_path / "registry")
    for number, name in enumerate(("a/x", "a/y"), start=1):
        group = make_adapter(tmp_path / f"a{number}", f"a{number}")
        stored = registry.add(Task("a", "A group."), group, replace=True)
        child = make_adapter(tmp_path / f"c{number}", name, stack={"a": str(stored.sha256)})
        registry.add(Task(name, "A child.", stack=("a",)), child)
    registry.add(Task("a", "A group."), make_adapter(tmp_path / "a3", "a3"), replace=True)
    return registry


def pins(registry: Registry) -> list[str]:
    """Faults that are about what adapters stand on."""
    found = [fault for fault in registry.verify() if "stands on" in fault]
    assert all("\n" not in fault for fault in found)
    return found


def sha256_of(registry: Registry, version: str) -> str:
    return next(item.sha256 for item in registry.history("a") if item.version == version)


def test_older_versions_that_are_there_are_no_fault(registry: Registry) -> None:
    assert registry["a"].adapter == "v3"
    assert registry.verify() == []


def test_a_version_that_is_gone_is_told_with_those_that_stand_on_it(registry: Registry) -> None:
    sha256 = sha256_of(registry, "v1")
    shutil.rmtree(registry.store.home("a") / "v1")
    (fault,) = pins(registry)
    assert fault.startswith(f"a/x: its adapter stands on a with sha256 {sha256}. Found ")
    assert fault.endswith(OLD)
    with pytest.raises(IntegrityError, match="none with that hash"):  # what a route to a/x would meet
        registry.pinned_path("a", sha256)


def test_other_bytes_with_an_honest_seal_are_not_taken_for_it(registry: Registry, tmp_path: Path) -> None:
    known = sha256_of(registry, "v2")
    folder = registry.store.home("a") / "v2"
    shutil.rmtree(folder)
    shutil.copytree(make_adapter(tmp_path / "other", "other"), folder)
    (fault,) = pins(registry)
    assert known in fault
    assert str(folder) in fault
    assert fault.endswith(NEW)


def test_a_pinned_version_without_its_weights_is_told(registry: Registry) -> None:
    (registry.store.home("a") / "v1" / "adapter_model.safetensors").unlink()
    (fault,) = pins(registry)
    assert "adapter_model.safetensors is missing" in fault
    assert fault.endswith(OLD)


def test_a_group_that_was_removed_and_added_again_has_other_hashes(registry: Registry, tmp_path: Path) -> None:
    registry.retire("a/y")
    registry.remove("a")
    other, retired = registry.verify()  # each is told once
    assert other.startswith("a/x: `stack` should name tasks of the registry. Found 'a'.")
    assert retired.startswith("a/y: its adapter stands on a with sha256")
    assert retired.endswith("Found no task a. " + NEW)
    registry.restore("a/y")
    registry.add(Task("a", "A group."), make_adapter(tmp_path / "a4", "a4"))
    found = pins(registry)
    assert len(found) == 2
    assert all("Found v1 with others." in fault for fault in found)
    registry.add(Task("a", "A group."), tmp_path / "a1", replace=True)  # the same bytes under another number will do
    (fault,) = pins(registry)
    assert fault.startswith("a/y:")


def test_what_stands_on_a_retired_group_still_stands(registry: Registry) -> None:
    registry.retire("a")
    assert pins(registry) == []


def test_a_retired_task_may_be_restored_so_it_counts_too(registry: Registry) -> None:
    registry.retire("a/x")
    assert registry.verify() == []
    shutil.rmtree(registry.store.home("a") / "v1")
    (fault,) = pins(registry)
    assert fault.startswith("a/x:")


def test_every_seal_names_all_that_lies_below(registry: Registry, tmp_path: Path) -> None:
    stack = {"a": sha256_of(registry, "v2"), "a/y": str(registry["a/y"].sha256)}
    top = make_adapter(tmp_path / "top", "top", stack=stack)
    registry.add(Task("a/y/top", "On top.", stack=("a", "a/y")), top)
    assert registry.verify() == []
    shutil.rmtree(registry.store.home("a") / "v2")
    assert [fault.partition(":")[0] for fault in pins(registry)] == ["a/y", "a/y/top"]


def test_a_pin_on_the_hub_is_pulled_at_its_first_use(registry: Registry, tmp_path: Path, monkeypatch) -> None:
    source = make_adapter(tmp_path / "hub", "hub")

    def pull(repo_id: str, *, path_in_repo: str, revision: str, into: Path) -> str:
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, into)
        return revision

    monkeypatch.setattr(hub, "pull", pull)
    url = f"hf://acme/adapters@{COMMIT}/b"
    group = registry.add(Task("b", "On the Hub.", adapter=url))
    registry.add(
        Task("b/x", "A child.", stack=("b",)),
        make_adapter(tmp_path / "bx", "bx", stack={"b": str(group.sha256)}),
    )
    assert registry.verify() == []
    folder = registry.adapter_path("b")
    assert folder is not None
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (fault,) = pins(registry)
    assert fault.startswith("b/x: its adapter stands on b")
    shutil.rmtree(folder)
    assert registry.verify() == []


def test_a_card_that_lost_its_stack_is_told(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    group = registry.add(Task("a", "A group."), make_adapter(tmp_path / "g", "g"))
    child = make_adapter(tmp_path / "c", "c", stack={"a": str(group.sha256)})
    registry.add(Task("a/x", "X.", stack=("a",)), child)
    write_card(registry.root / "a/x" / CARD, dataclasses.replace(registry["a/x"], stack=()), {})
    (fault,) = registry.verify()
    assert fault == (
        "a/x: `stack` should be what its adapter was trained on top of: ['a']. Found []. Correct the card."
    )


def test_a_seal_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a", "A task."), make_adapter(tmp_path / "g", "g"))
    seal = registry.root / "a/v1/adapterhub.json"
    seal.write_text(seal.read_text().replace('"format": 1', '"format": 2, "stack": [{"task": "x"}]'))
    faults = registry.verify()
    assert any("`stack` should be a list of tasks with their sha256" in fault for fault in faults)
    assert all("\n" not in fault for fault in faults)
