"""The registry as its users see it: reading, adding, removing, versions, bad input."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from registry_folders import make_adapter, tree

import adapterhub.registry._place as place
from adapterhub.adapter import content_hash
from adapterhub.errors import CardError, InputError, IntegrityError, TaskNotFoundError
from adapterhub.registry import Registry
from adapterhub.task import Task


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def registry(tmp_path: Path, adapter: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    (registry.root / "language").mkdir(parents=True)
    (registry.root / "_group.yaml").write_text("base_model: _base\nlicense: mit\n")
    registry.add(Task("language/grammar", "Correct.", ("She go.",), base_model="_base", license="mit"), adapter)
    registry.add(Task("language/translation", "Translate.", base_model="org/model", license="mit"))
    registry.add(Task("reasoning/math", "Add.", base_model="_base", license="mit"), adapter)
    return registry


def test_it_reads_like_a_mapping(registry: Registry) -> None:
    assert list(registry) == ["language/grammar", "language/translation", "reasoning/math"]
    assert len(registry) == 3
    assert "language/grammar" in registry
    assert not {"language", "../registry/language/grammar", "", "x"} & {
        n for n in ["language", "", "x"] if n in registry
    }
    task = registry["language/grammar"]
    assert (task.adapter, task.examples, task.license) == ("v1", ("She go.",), "mit")
    assert [task.name for task in registry.under("language")] == ["language/grammar", "language/translation"]
    assert [task.name for task in registry.under("")] == list(registry)
    assert registry.under("language/grammar") == [task]
    assert registry.versions("language/translation") == []
    assert registry.verify() == []


def test_add_returns_what_is_stored(registry: Registry, adapter: Path) -> None:
    stored = registry.add(Task("a", "x"), adapter)
    assert stored == registry["a"]
    assert stored.sha256 == content_hash(adapter)
    path = registry.adapter_path("a")
    assert path == registry.root / "a" / "v1"
    assert sorted(file.name for file in path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapterhub.json",
    ]
    assert registry.adapter_path("language/translation") is None


def test_adding_changes_no_other_files_bytes(registry: Registry, adapter: Path) -> None:
    before = tree(registry.root)
    registry.add(Task("language/new", "x"), adapter)
    after = tree(registry.root)
    assert before.items() <= after.items()
    new = {"adapter_config.json", "adapter_model.safetensors", "adapterhub.json"}
    assert after.keys() - before.keys() == {"language/new/task.yaml", *(f"language/new/v1/{name}" for name in new)}


def test_a_card_says_nothing_twice(registry: Registry) -> None:
    text = (registry.root / "reasoning/math/task.yaml").read_text()
    assert "base_model" not in text
    assert "license" not in text


def test_replacing_makes_the_next_version_and_keeps_the_older(registry: Registry, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other", "1")
    first = registry["language/grammar"]
    before = tree(registry.root)
    with pytest.raises(InputError, match="`replace=True`"):
        registry.add(first, other)
    assert tree(registry.root) == before
    second = registry.add(first, other, replace=True)
    assert (second.adapter, second.sha256) == ("v2", content_hash(other))
    assert registry.versions("language/grammar") == ["v1", "v2"]
    back = registry.add(first, replace=True)
    assert back == first == registry["language/grammar"]
    third = registry.add(first, other, replace=True)
    assert third.adapter == "v3"
    assert registry.verify() == []
    after = tree(registry.root)
    assert all(after[path] == data for path, data in before.items() if "/v" in path)


def test_a_card_is_changed_without_touching_its_adapter(registry: Registry) -> None:
    task = registry["language/grammar"]
    registry.add(dataclasses.replace(task, metrics={"f1": 0.5}), replace=True)
    assert registry["language/grammar"] == dataclasses.replace(task, metrics={"f1": 0.5})
    assert registry.versions("language/grammar") == ["v1"]
    with pytest.raises(IntegrityError, match="not what the card states"):
        registry.add(dataclasses.replace(task, sha256="0" * 64), replace=True)
    with pytest.raises(IntegrityError, match="Found none"):
        registry.add(dataclasses.replace(task, adapter="v7"), replace=True)
    stated = registry.add(dataclasses.replace(task, sha256=None), replace=True)
    assert stated.sha256 == task.sha256


def test_removing_takes_all_of_a_task_and_nothing_else(registry: Registry, adapter: Path) -> None:
    registry.add(Task("language/grammar/english", "x"), adapter)
    (registry.root / "language/grammar/_group.yaml").write_text("tags: [t]\n")
    (registry.root / "language/grammar/README.md").write_text("about")
    before = tree(registry.root)
    registry.remove("language/grammar")
    gone = {
        path
        for path in before
        if path.startswith(("language/grammar/v1/", "language/grammar/task", "language/grammar/R"))
    }
    assert tree(registry.root) == {path: data for path, data in before.items() if path not in gone}
    assert "language/grammar" not in list(registry)
    assert registry.verify() == []
    registry.remove("reasoning/math")
    assert not (registry.root / "reasoning").exists()
    with pytest.raises(TaskNotFoundError):
        registry.remove("reasoning/math")
    registry.add(Task("reasoning/math", "x"), adapter)
    assert registry.versions("reasoning/math") == ["v1"]


def test_a_branch_may_have_an_adapter_of_its_own_and_tasks_stack_on_it(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    group = registry.add(Task("language", "All of it."), adapter)
    child = make_adapter(tmp_path / "child", stack={"language": str(group.sha256)})
    registry.add(Task("language/x", "x", stack=("language",)), child)
    assert registry.under("language")[0].name == "language"
    before = tree(registry.root)
    with pytest.raises(CardError, match="Did you mean `language/grammar`"):
        registry.add(Task("language/y", "y", stack=("language/gramar",)))
    with pytest.raises(CardError, match="Found a circle"):
        registry.add(Task("language", "All of it.", stack=("language/x",)), replace=True)
    assert tree(registry.root) == before
    registry.remove("language")
    (fault,) = registry.verify()
    assert fault.startswith("language/x: `stack` should name tasks of the registry. Found 'language'.")


def test_an_unknown_task_is_told_with_the_nearest(registry: Registry) -> None:
    calls = (registry.__getitem__, registry.remove, registry.versions, registry.adapter_path, registry.base_path)
    for call in calls:
        with pytest.raises(TaskNotFoundError) as caught:
            call("language/gramar")
        assert str(caught.value) == (
            f"No task 'language/gramar' in {registry.root} (3 tasks). Did you mean `language/grammar`? "
            "See `adapterhub ls language`."
        )
    with pytest.raises(TaskNotFoundError, match="Did you mean `language`"):
        registry.under("langage")


@pytest.mark.parametrize("name", ["../outside", "language/../../outside", "/etc", "a/./b", "_base", "a\0b", "A", "v1"])
def test_no_name_leads_out_of_the_registry(registry: Registry, name: str) -> None:
    (registry.root.parent / "outside").mkdir()
    (registry.root.parent / "outside" / "task.yaml").write_text("description: x\n")
    calls = (registry.__getitem__, registry.remove, registry.versions, registry.adapter_path, registry.base_path)
    for call in (*calls, registry.under):
        with pytest.raises(CardError, match="task's name is"):
            call(name)
    assert name not in registry


def test_links_do_not_lead_out_of_the_registry(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (registry.root / "link").symlink_to(outside)
    with pytest.raises(CardError, match="Found a link"):
        registry.add(Task("link/task", "x"), adapter)
    assert list(outside.iterdir()) == []
    assert any("Found a link" in fault for fault in registry.verify())


def test_the_base_is_a_folder_of_the_registry_or_what_the_card_says(registry: Registry) -> None:
    assert registry.base_path("language/grammar") == "_base"
    (registry.root / "_base").mkdir()
    assert registry.base_path("language/grammar") == str(registry.root / "_base")
    assert registry.base_path("language/translation") == "org/model"
    registry.add(Task("a", "x", base_model="../adapter", license=""))
    assert registry.base_path("a") == "../adapter"
    registry.add(Task("b", "x", base_model="", license=""))
    assert registry.base_path("b") == ""


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapterhub.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_a_damaged_adapter_is_refused_and_nothing_stays_behind(
    registry: Registry, adapter: Path, file: str, harm: str
) -> None:
    damage(adapter / file, harm)
    before = tree(registry.root)
    if (file, harm) == ("adapterhub.json", "flipped"):
        return  # a changed seal that is still JSON may be honest; its base is checked when the adapter is read
    with pytest.raises(IntegrityError):
        registry.add(Task("new/task", "x"), adapter)
    assert tree(registry.root) == before
    assert not (registry.root / "new").exists()
    assert list((registry.root / ".catalog").glob("staging-*")) == []
    assert "new/task" not in list(registry)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapterhub.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_verify_finds_damage_in_current_and_older_versions(
    registry: Registry, adapter: Path, file: str, harm: str
) -> None:
    registry.add(registry["reasoning/math"], adapter, replace=True)
    damage(registry.root / "language/grammar/v1" / file, harm)
    faults = registry.verify()
    assert len(faults) == 1
    assert "language/grammar/v1" in faults[0]
    if (file, harm) not in {("adapterhub.json", "missing"), ("adapterhub.json", "flipped")}:
        damage(registry.root / "reasoning/math/v1" / file, harm)
        assert len(registry.verify()) == 2


def damage(path: Path, harm: str) -> None:
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        place = data.find(b'tiny"') if path.name == "adapterhub.json" else len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_verify_lists_all_there_is(registry: Registry, adapter: Path) -> None:
    root = registry.root
    shutil.rmtree(root / "reasoning/math/v1")
    shutil.copytree(adapter, root / "lonely/task/v1")
    (root / "broken").mkdir()
    (root / "broken/task.yaml").write_text("descripton: x\nprompt: y\nstack: [none]\n")
    (root / "Bad Name").mkdir()
    (root / "Bad Name/task.yaml").write_text("description: x\n")
    (root / "unhashed").mkdir()
    (root / "unhashed/task.yaml").write_text("description: x\nadapter: v1\n")
    shutil.copytree(adapter, root / "unhashed/v1")
    faults = "\n".join(registry.verify())
    for part in (
        "reasoning/math/v1",
        "lonely/task/v1: a version lies beside a card",
        "broken/task.yaml:1: unknown field `descripton`",
        "broken/task.yaml:1: `description` is missing",
        "broken/task.yaml:2: `prompt` should be",
        "Found 'Bad Name'",
        "unhashed/task.yaml:1: a card states the `sha256`",
    ):
        assert part in faults
    assert len(faults.splitlines()) == 7
    with pytest.raises(IntegrityError, match="Found no version"):
        registry.adapter_path("reasoning/math")


def test_a_broken_group_lets_nothing_in(registry: Registry, adapter: Path) -> None:
    (registry.root / "language/_group.yaml").write_text("licence: mit\nprompt: none\n")
    before = tree(registry.root)
    with pytest.raises(CardError) as caught:
        registry.add(Task("language/new", "x"), adapter)
    assert len(caught.value.faults) == 2
    assert tree(registry.root) == before
    assert list((registry.root / ".catalog").glob("staging-*")) == []


def test_a_broken_card_lists_every_fault_and_stops_no_other_task(registry: Registry, adapter: Path) -> None:
    (registry.root / "broken").mkdir()
    (registry.root / "broken/task.yaml").write_text("descripton: x\nprompt: y\n")
    for call in (registry.refresh, lambda: list(registry), lambda: registry.under("")):
        with pytest.raises(CardError) as caught:
            call()
        assert len(caught.value.faults) == 3
    registry.add(Task("new", "x"), adapter)
    assert registry["new"].adapter == "v1"
    registry.remove("language/grammar")
    shutil.rmtree(registry.root / "broken")
    assert list(registry) == ["language/translation", "new", "reasoning/math"]


def test_a_registry_is_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="Found the file"):
        Registry(file)
    none = Registry(tmp_path / "none")
    assert (list(none), len(none), bool(none), none.under("")) == ([], 0, True, [])
    assert none.verify() == [f"{tmp_path}/none: a registry is a folder. Found none. Check the path."]
    assert not none.root.exists()
    with pytest.raises(TaskNotFoundError, match=r"\(0 tasks\)"):
        none["a"]


def test_where_nothing_can_be_written_the_catalogue_lies_in_the_cache(
    registry: Registry, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(registry.root / ".catalog")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    allowed = os.access
    monkeypatch.setattr(
        place.os, "access", lambda path, mode: allowed(path, mode) and registry.root not in (path, path.parent)
    )
    registry = Registry(registry.root)
    assert len(registry) == 3
    assert registry.verify() == []
    assert list((tmp_path / "cache/adapterhub").glob("*/catalog.sqlite"))
    for call in (lambda: registry.add(Task("a", "x"), adapter), lambda: registry.remove("reasoning/math")):
        with pytest.raises(InputError, match="Copy it elsewhere"):
            call()
    assert len(registry) == 3
