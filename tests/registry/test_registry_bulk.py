"""Import and export: all faults at once, nothing half-imported, killed and resumed, back without loss."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_folders import make_adapter, tree
from registry_stores import KINDS, HashEncoder, open_at
from safetensors.numpy import load_file, save_file

import adapterhub.registry._import as importing
from adapterhub.adapter import content_hash
from adapterhub.errors import DataError, InputError
from adapterhub.registry import Exported, Imported, Registry, export_tasks, import_tasks
from adapterhub.task import Task

URL = f"hf://acme/adapters@{'0' * 40}/x"


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def many(count: int) -> list[object]:
    return [
        {"name": f"g{number % 7}/t{number}", "description": f"Task {number}.",
         "examples": [f"a {number}", f"b {number}"], "adapter": URL, "sha256": "0" * 64, "tags": ["x"]}
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return open_at(request.param, tmp_path / "registry")


def filled(registry: Registry, tmp_path: Path) -> Registry:
    """Versions, a roll-back, a retired task, a stack, places on the Hub, tags, a group with a task of its own."""
    first, second = (make_adapter(tmp_path / name, name) for name in ("first", "second"))
    below = {"a": str(registry.add(Task("a", "A branch.", base_model="_base"), first).sha256)}
    upper = [make_adapter(tmp_path / name, name, stack=below) for name in ("third", "fourth")]
    task = registry.add(Task("a/one", "One: “é”\n🙂", ("x", "y"), stack=("a",), tags=("t", "u")), upper[0])
    registry.add(task, upper[1], replace=True)
    registry.add(task, replace=True)
    hub = registry.add(Task("b/hub", "Hub.", adapter=URL, sha256="a" * 64))
    registry.add(dataclasses.replace(hub, adapter=URL + "/newer", sha256="b" * 64), replace=True)
    registry.add(Task("c", "Bare.", head="classification", labels=("no", "yes"), metrics={"f1": 0.5}))
    registry.add(Task("d/gone", "Gone.", ("z",)), second)
    registry.retire("d/gone")
    return registry


@pytest.mark.parametrize("into", KINDS)
def test_lines_and_vectors_there_and_back_lose_nothing(registry: Registry, into: str, tmp_path: Path) -> None:
    encoder = HashEncoder()
    catalog = filled(registry, tmp_path).heard(encoder)
    lines, vectors = tmp_path / "out.jsonl", tmp_path / "out.safetensors"
    assert export_tasks(registry, lines, vectors=vectors) == Exported(tasks=5, adapters=4, heard=4)
    copy = open_at(into, tmp_path / "copy")
    for wanted in (Imported(5, 0, 0), Imported(0, 0, 5)):
        assert import_tasks(copy, lines, vectors=vectors) == wanted
    assert copy.under("") == registry.under("")
    for name in (*registry, "d/gone"):
        for versions in (Registry.versions, lambda seen, name: [(v.version, v.sha256) for v in seen.history(name)]):
            assert versions(copy, name) == versions(registry, name)
        for version in copy.versions(name):
            assert content_hash(copy.store.home(name) / version) == content_hash(registry.store.home(name) / version)
    assert copy.store.status("d/gone") == "retired"
    heard = [(found.name, found.description.tobytes(), found.examples.tobytes()) for found in catalog.vectors("fake")]
    copied = copy.catalog.vectors("fake")
    assert [(found.name, found.description.tobytes(), found.examples.tobytes()) for found in copied] == heard
    encoder.heard.clear()
    copy.heard(encoder)
    assert encoder.heard == []
    assert copy.verify() == []
    export_tasks(copy, tmp_path / "again.jsonl", vectors=tmp_path / "again.safetensors")
    assert (tmp_path / "again.jsonl").read_bytes() == lines.read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == vectors.read_bytes()
    assert tree(tmp_path / "again.adapters") == tree(tmp_path / "out.adapters")


def test_tasks_that_were_not_heard_travel_without_vectors(registry: Registry, tmp_path: Path) -> None:
    import_tasks(registry, write(tmp_path / "t.jsonl", [*many(30), {"name": "a", "description": "x"}]))
    registry.heard(HashEncoder())
    import_tasks(registry, write(tmp_path / "u.jsonl", [{"name": f"z{n}", "description": "x"} for n in range(9)]))
    done = export_tasks(registry, tmp_path / "o.jsonl", vectors=tmp_path / "o.safetensors")
    assert done == Exported(tasks=40, adapters=0, heard=31)
    copy = open_at("sqlite", tmp_path / "copy")
    import_tasks(copy, tmp_path / "o.jsonl", vectors=tmp_path / "o.safetensors")
    encoder = HashEncoder()
    copy.heard(encoder)
    assert encoder.heard == ["x"] * 9


def test_a_folder_of_cards_there_and_back_loses_nothing(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    export_tasks(registry, tmp_path / "before.jsonl")
    assert export_tasks(registry, tmp_path / "cards") == Exported(tasks=5, adapters=4, heard=0)
    cards = Registry(tmp_path / "cards")
    assert cards.verify() == []
    assert cards.under("") == registry.under("")
    export_tasks(cards, tmp_path / "after.jsonl")
    assert (tmp_path / "after.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()
    for target in (tmp_path / "cards", tmp_path / "before.jsonl" / "below"):
        with pytest.raises((InputError, OSError)):
            export_tasks(registry, target)


def test_a_folders_groups_are_exported_with_its_cards(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    (root / "a").mkdir(parents=True)
    (root / "a/_group.yaml").write_text("description: All of a.\nlicense: mit\n")
    Registry(root).add(Task("a/b", "x", license="mit"))
    export_tasks(Registry(root), tmp_path / "cards")
    assert tree(tmp_path / "cards") == tree(root)


@pytest.mark.parametrize("into", KINDS)
def test_a_base_model_in_the_registrys_folder_travels_with_its_tasks(
    registry: Registry, tmp_path: Path, into: str
) -> None:
    registry.add(Task("a", "x", base_model="_base"), make_adapter(tmp_path / "adapter"))
    (registry.root / "_base").mkdir()
    (registry.root / "_base/config.json").write_text("{}")
    export_tasks(registry, tmp_path / "out.jsonl")
    other = open_at(into, tmp_path / "other")
    import_tasks(other, tmp_path / "out.jsonl")
    export_tasks(other, tmp_path / "cards")
    for copy in (other, Registry(tmp_path / "cards")):
        assert (Path(copy.base_path("a")) / "config.json").read_text() == "{}"
        assert copy.bases() == [str(copy.root / "_base")]
        assert copy.verify() == []


def test_an_import_is_resumed_where_it_was_killed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_LINES", 20)
    path, batches = write(tmp_path / "t.jsonl", many(100)), []

    class KilledError(Exception):
        pass

    def guard(tasks: object) -> None:
        batches.append(tasks)
        if len(batches) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        import_tasks(registry, path, guard=guard)
    assert (len(registry), [len(batch) for batch in batches]) == (40, [20, 20, 20])
    assert import_tasks(registry, path) == Imported(60, 0, 40)
    assert import_tasks(registry, path) == Imported(0, 0, 100)
    assert [task.name for task in registry.tasks()] == sorted(row["name"] for row in many(100))
    assert registry["g3/t10"].examples == ("a 10", "b 10")
    assert registry.verify() == []


def test_progress_counts_the_bytes_of_both_passes(registry: Registry, tmp_path: Path) -> None:
    path, seen = write(tmp_path / "t.jsonl", many(100)), {"check": 0, "import": 0}

    def step(what: str, done: int, size: int) -> None:
        assert size == path.stat().st_size
        seen[what] += done

    import_tasks(registry, path, progress=step)
    assert set(seen.values()) == {path.stat().st_size}


def test_every_fault_is_listed_with_its_line_and_nothing_is_imported(registry: Registry, tmp_path: Path) -> None:
    registry.add(Task("there", "Mine."))
    registry.add(Task("hidden", "Mine."))
    registry.retire("hidden")
    rows: list[object] = [
        {"name": "fine", "description": "x"},
        "{broken",
        "",
        [1],
        {"name": "../up", "descripton": "x", "labels": ["a"]},
        {"name": "Fine", "description": "x"},
        {"name": "there", "description": "Theirs."},
        {"name": "hidden", "description": "Mine."},
        {"name": "fine", "description": "again"},
        {"name": "points", "description": "x", "adapter": "v3"},
        {"name": "hub", "description": "x", "adapter": URL},
        {"name": "big", "description": "x" * 20_000},
        {"name": "s1", "description": "x", "stack": ["s2"]},
        {"name": "s2", "description": "x", "stack": ["s1", "none"]},
        {"name": "v", "description": "x", "versions": [{"version": "v1"}], "status": "asleep"},
        {"name": "w", "description": "x", "adapter": URL, "sha256": "0" * 64,
         "versions": [{"version": "v1", "sha256": "0"}]},
        '{"name": "u", "description": "\\ud800"}',
    ]  # fmt: skip
    path = write(tmp_path / "t.jsonl", rows)
    with path.open("ab") as file:
        file.write(b'{"name": "latin", "description": "\xe9"}\n')
    before = export_lines(registry, tmp_path)
    with pytest.raises(DataError) as caught:
        import_tasks(registry, path)
    lines = str(caught.value).splitlines()
    found = [int(line.split(":")[1]) for line in lines[:-1]]
    assert found == [2, 4, 5, 5, 5, 5, 6, 7, 8, 10, 11, 12, 15, 15, 16, 17, 18, 9, 13, 14, 14]
    said = "\n".join(lines)
    for text in (
        "Did you mean `description`?", "in the form of a letter only. Write `fine`", "`description` is missing",
        "is in", "as retired", "Found it in line 1 too", "Found no folder", "states its `sha256`", "20,000 characters",
        "Found a circle", "Found 'none'", "active or retired", "item 1", "not Unicode",
        f"Nothing was imported: {len(found)} faults",
    ):  # fmt: skip
        assert text in said, text
    assert export_lines(registry, tmp_path) == before


def export_lines(registry: Registry, tmp_path: Path) -> str:
    export_tasks(registry, tmp_path / "seen.jsonl")
    return (tmp_path / "seen.jsonl").read_text()


def test_a_thousand_faults_are_shown_and_all_are_counted(registry: Registry, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", ["{}"] * 1500)
    with pytest.raises(DataError) as caught:
        import_tasks(registry, path)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-2], "3,000 faults" in lines[-1]) == (1002, "and 2,000 more", True)
    assert list(registry) == []


def test_what_is_there_is_replaced_only_if_told(registry: Registry, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    registry.add(Task("a", "Old.", head="classification", labels=("x", "y")), adapter)
    registry.add(Task("b", "Old."))
    line = {"name": "b", "description": "New.", "examples": ["e"]}
    path = write(tmp_path / "t.jsonl", [{"name": "c", "description": "New."}, line])
    with pytest.raises(DataError, match="Give --replace"):
        import_tasks(registry, path)
    assert "c" not in registry
    assert import_tasks(registry, path, replace=True) == Imported(1, 1, 0)
    assert (registry["b"].examples, registry["c"].description) == (("e",), "New.")
    registry.retire("b")
    assert import_tasks(registry, path, replace=True) == Imported(0, 1, 1)
    assert "b" in registry
    card = registry["a"].to_dict()
    turned = write(tmp_path / "u.jsonl", [{"name": "a", **card, "labels": ["y", "x"]}])
    with pytest.raises(DataError, match="order of the outputs"):
        import_tasks(registry, turned, replace=True)
    assert registry["a"].labels == ("x", "y")


def test_adapters_come_along_and_are_held_against_their_hashes(registry: Registry, tmp_path: Path) -> None:
    adapters = tmp_path / "box"
    sha256 = content_hash(make_adapter(adapters / "a/v2", "2"))
    make_adapter(adapters / "b/v1", "1")
    path = write(
        tmp_path / "t.jsonl",
        [{"name": "a", "description": "x", "adapter": "v2", "sha256": sha256},
         {"name": "b", "description": "x", "adapter": "v1"}],
    )  # fmt: skip
    with pytest.raises(DataError, match="Give it with --adapters"):
        import_tasks(registry, path)
    wrong = write(tmp_path / "w.jsonl", [{"name": "a", "description": "x", "adapter": "v2", "sha256": "0" * 64}])
    with pytest.raises(DataError, match="Found"):
        import_tasks(registry, wrong, adapters=adapters)
    assert list(registry) == []
    assert import_tasks(registry, path, adapters=adapters) == Imported(2, 0, 0)
    assert (registry["a"].sha256, registry["b"].sha256) == (sha256, content_hash(adapters / "b/v1"))
    assert import_tasks(registry, path, adapters=adapters) == Imported(0, 0, 2)
    assert registry.verify() == []
    shutil.rmtree(adapters / "a/v2")
    make_adapter(adapters / "a/v2", "another")
    other = write(tmp_path / "o.jsonl", [{"name": "a", "description": "y", "adapter": "v2"}])
    with pytest.raises(DataError, match="a version never changes"):
        import_tasks(registry, other, adapters=adapters, replace=True)
    assert registry.add(registry["a"], make_adapter(tmp_path / "next"), replace=True).adapter == "v3"


def test_vectors_that_do_not_belong_are_refused(registry: Registry, tmp_path: Path) -> None:
    source = open_at("sqlite", tmp_path / "source")
    path = write(tmp_path / "t.jsonl", many(50))
    import_tasks(source, path)
    source.heard(HashEncoder())
    lines, good = tmp_path / "o.jsonl", tmp_path / "o.safetensors"
    export_tasks(source, lines, vectors=good)
    parts = load_file(good)
    told = {"encoder": "fake", "format": "1"}

    def harmed(**change: np.ndarray) -> Path:
        path = tmp_path / f"bad{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({**parts, **change}, path, told)
        return path

    nan, long = parts["examples"].copy(), parts["descriptions"].copy()
    nan[7] = np.nan
    long[5] *= 3
    fewer = parts["counts"].copy()
    fewer[2:4] = 1, 3
    for bad, said in (
        (harmed(examples=nan), "o.jsonl:4: its vectors should be finite. Found NaN"),
        (harmed(descriptions=long), "o.jsonl:6: its vectors should have length 1. Found 3"),
        (harmed(counts=fewer), "o.jsonl:3: its vectors should be of a description and 2 examples"),
        (harmed(counts=parts["counts"][:49], described=parts["described"][:49]), "should hold descriptions"),
        (harmed(examples=parts["examples"][:99]), "should sum up"),
        (harmed(examples=parts["examples"].astype(np.float32)), "should hold"),
        (lines, "should be a safetensors file"),
        (tmp_path / "none", "should be a safetensors file"),
    ):
        with pytest.raises(DataError) as caught:
            import_tasks(registry, lines, vectors=bad)
        assert said in str(caught.value)
        assert list(registry) == []
    with pytest.raises(DataError, match=r"a row of vectors for each of 1 lines. Found 50"):
        import_tasks(registry, write(tmp_path / "one.jsonl", many(1)), vectors=good)
    import_tasks(registry, lines)
    assert import_tasks(registry, lines, vectors=good) == Imported(0, 0, 50)
    encoder = HashEncoder()
    assert len(registry.vectors(encoder)) == 50
    assert encoder.heard == []


def test_vectors_of_another_encoder_are_refused_by_a_database(tmp_path: Path) -> None:
    source, target = (open_at("sqlite", tmp_path / name) for name in ("source", "target"))
    source.add(Task("a", "x"))
    with pytest.raises(InputError, match="reindex"):
        export_tasks(source, tmp_path / "o.jsonl", vectors=tmp_path / "o.safetensors")
    source.heard(HashEncoder())
    export_tasks(source, tmp_path / "o.jsonl", vectors=tmp_path / "o.safetensors")
    target.add(Task("b", "x"))
    target.heard(HashEncoder("other"))
    with pytest.raises(InputError, match="adapterhub reindex --encoder"):
        import_tasks(target, tmp_path / "o.jsonl", vectors=tmp_path / "o.safetensors")
    assert list(target) == ["b"]


def test_a_file_that_changes_between_the_passes_is_noticed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.jsonl", many(3))
    survey = importing.Survey

    def changed(*arguments: object) -> object:
        done = survey(*arguments)
        path.write_text(path.read_text().replace("Task 2", "Task 3"))
        return done

    monkeypatch.setattr(importing, "Survey", changed)
    with pytest.raises(DataError, match=r"t.jsonl:3: the file was changed"):
        import_tasks(registry, path)


def test_what_another_process_adds_meanwhile_is_not_overwritten(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_LINES", 2)
    path = write(tmp_path / "t.jsonl", many(6))
    other = Registry(registry.place)

    def guard(tasks: object) -> None:
        if len(other) == 2:
            other.add(Task("g4/t4", "Theirs."))

    with pytest.raises(InputError, match="Another process has changed g4/t4"):
        import_tasks(registry, path, guard=guard)
    assert registry["g4/t4"].description == "Theirs."
    assert len(registry) == 5


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(str.strip)
cards = st.fixed_dictionaries(
    {"description": texts},
    optional={
        "examples": st.lists(texts, max_size=3), "tags": st.lists(texts, max_size=2, unique=True),
        "metrics": st.dictionaries(texts, st.floats(-1e9, 1e9), max_size=2), "loss_weight": st.floats(0, 9),
        "head": st.just("regression"), "datasets": st.lists(texts, max_size=2),
    },
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tasks=st.dictionaries(st.from_regex(r"[a-c](/[d-e]){0,2}", fullmatch=True), cards, max_size=5),
    retired=st.sets(st.integers(0, 4)),
)
def test_any_tasks_come_back_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, tasks: dict[str, dict], retired: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [
        {"name": name, **card, **({"status": "retired"} if place in retired else {})}
        for place, (name, card) in enumerate(sorted(tasks.items()))
    ]
    wanted = {row["name"]: Task.from_dict(row["name"], tasks[row["name"]]) for row in rows}
    path = write(folder / "t.jsonl", list(rows))
    for kind in KINDS:
        registry = open_at(kind, folder / kind)
        assert import_tasks(registry, path).added == len(rows)
        assert import_tasks(registry, path).same == len(rows)
        active = {name: task for place, (name, task) in enumerate(wanted.items()) if place not in retired}
        assert {task.name: task for task in registry.tasks()} == active
        assert registry.verify() == []
        path = folder / f"{kind}.jsonl"
        export_tasks(registry, path)
    assert (folder / "folder.jsonl").read_bytes() == (folder / "sqlite.jsonl").read_bytes()
