"""What holds for a registry in a folder and in a database alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from registry_folders import make_adapter
from registry_stores import KINDS, HashEncoder, open_at, place_of

from adapterhub.adapter import content_hash
from adapterhub.errors import CardError, InputError, IntegrityError, TaskNotFoundError
from adapterhub.registry import Registry
from adapterhub.task import Task

URL = f"hf://acme/adapters@{'0' * 40}/language/grammar"


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return open_at(request.param, tmp_path / "registry")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


def again(registry: Registry) -> Registry:
    """The same registry, opened anew."""
    return Registry(registry.place)


def test_it_reads_like_a_mapping(registry: Registry, adapter: Path) -> None:
    assert (list(registry), len(registry), bool(registry), registry.under(""), registry.groups()) == (
        [],
        0,
        True,
        [],
        [],
    )
    one = registry.add(Task("a/one", "One.", ("x", "y"), base_model="m", tags=("t",), metrics={"f1": 1}), adapter)
    two = registry.add(Task("a/b/two", "Two.", adapter=URL, sha256="0" * 64))
    three = registry.add(Task("c", "Three."))
    for seen in (registry, again(registry)):
        assert list(seen) == ["a/b/two", "a/one", "c"]
        assert [seen["a/one"], seen["a/b/two"], seen["c"]] == [one, two, three]
        assert seen.under("a") == [two, one] == list(seen.tasks("a"))
        assert seen.under("a/one") == [one]
        assert seen.groups() == [("a", 2), ("c", 1)]
        assert seen.groups("a") == [("a/b", 1), ("a/one", 1)]
        assert "a/one" in seen
        assert not {"a", "", "A/one", "../c", "d"} & {name for name in ("a", "", "A/one", "../c", "d") if name in seen}
    assert (one.adapter, one.sha256, one.metrics) == ("v1", content_hash(adapter), {"f1": 1.0})
    assert registry.adapter_path("a/one") == registry.store.home("a/one") / "v1"
    assert content_hash(registry.store.home("a/one") / "v1") == one.sha256
    assert registry.adapter_path("c") is None
    assert registry.verify() == []


def test_replacing_makes_the_next_version_and_keeps_the_older(registry: Registry, tmp_path: Path) -> None:
    first, second = (make_adapter(tmp_path / name, name) for name in ("first", "second"))
    one = registry.add(Task("a", "x"), first)
    with pytest.raises(InputError, match="`replace=True`"):
        registry.add(one, second)
    two = registry.add(one, second, replace=True)
    assert [one.adapter, two.adapter] == ["v1", "v2"]
    assert registry.add(one, replace=True) == one == again(registry)["a"]
    three = registry.add(one, second, replace=True)
    hub = registry.add(dataclasses.replace(three, adapter=URL, sha256="a" * 64), replace=True)
    assert registry["a"] == hub
    assert registry.versions("a") == ["v1", "v2", "v3"]
    wanted = [("v1", one.sha256), ("v2", two.sha256), ("v3", three.sha256), (URL, "a" * 64)]
    assert [(version.version, version.sha256) for version in registry.history("a")] == wanted
    assert registry.verify() == []
    with pytest.raises(IntegrityError, match="not what the card states"):
        registry.add(dataclasses.replace(one, sha256="0" * 64), replace=True)
    with pytest.raises(IntegrityError, match="Found none"):
        registry.add(dataclasses.replace(one, adapter="v9"), replace=True)
    assert registry["a"] == hub


def test_a_retired_task_is_kept_and_comes_back(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    task = registry.add(Task("a/b", "x", ("e",)), adapter)
    registry.add(Task("a/c", "y"))
    encoder = HashEncoder()
    id = registry.heard(encoder).get("a/b").id
    for _ in range(2):
        registry.retire("a/b")
        assert list(again(registry)) == ["a/c"]
        assert "a/b" not in registry
        assert [found.name for found in registry.vectors(encoder)] == ["a/c"]
        with pytest.raises(TaskNotFoundError, match="adapterhub restore a/b"):
            registry["a/b"]
        with pytest.raises(InputError, match="retired task"):
            registry.add(Task("a/b", "another"))
        assert registry.versions("a/b") == ["v1"]
        assert registry.verify() == []
    for _ in range(2):
        registry.restore("a/b")
        assert again(registry)["a/b"] == task
    assert registry.heard(encoder).get("a/b").id == id
    registry.retire("a/b")
    replaced = registry.add(Task("a/b", "another"), make_adapter(tmp_path / "new", "1"), replace=True)
    assert (replaced.adapter, registry["a/b"].description, list(registry)) == ("v2", "another", ["a/b", "a/c"])
    registry.retire("a/b")
    registry.remove("a/b")
    assert not registry.store.home("a/b").exists()
    for call in (registry.retire, registry.restore, registry.remove, registry.versions, registry.history):
        with pytest.raises(TaskNotFoundError):
            call("a/b")
    assert registry.verify() == []


def test_removing_takes_all_of_a_task_and_nothing_else(registry: Registry, adapter: Path) -> None:
    registry.add(Task("a", "x"), adapter)
    below = registry.add(Task("a/below", "y"), adapter)
    registry.remove("a")
    assert list(registry) == ["a/below"]
    assert registry["a/below"] == below
    assert not (registry.store.home("a") / "v1").exists()
    assert registry.verify() == []
    registry.add(Task("a", "x"), adapter)
    assert registry.versions("a") == ["v1"]
    assert [version.version for version in registry.history("a")] == ["v1"]


def test_an_example_is_added_once_and_heard(registry: Registry, adapter: Path) -> None:
    task = registry.add(Task("a", "x", ("one",)), adapter)
    encoder = HashEncoder()
    assert len(registry.vectors(encoder)[0].examples) == 1
    wanted = dataclasses.replace(task, examples=("one", "two: [b]\n'"))
    assert registry.add_example("a", "two: [b]\n'") == wanted == again(registry)["a"]
    seq = registry.refresh()
    assert registry.add_example("a", "one") == wanted
    assert registry.refresh() == seq
    assert np.array_equal(registry.vectors(encoder)[0].examples[1], encoder.stored("two: [b]\n'"))
    for wrong in ("", "  ", "x" * 10_001):
        with pytest.raises(CardError, match="`examples`"):
            registry.add_example("a", wrong)
    with pytest.raises(TaskNotFoundError):
        registry.add_example("b", "x")
    assert registry["a"] == wanted


def test_the_catalogue_holds_what_the_encoder_hears(registry: Registry, adapter: Path) -> None:
    encoder = HashEncoder()
    registry.add(Task("a", "One.", ("x", "y")), adapter)
    catalog = registry.heard(encoder)
    assert catalog is registry.heard(encoder)
    assert (catalog.encoder, sorted(encoder.heard)) == ("fake", ["One.", "x", "y"])
    (found,) = catalog.vectors("fake")
    assert np.array_equal(found.examples, np.stack([encoder.stored("x"), encoder.stored("y")]))
    other = again(registry)
    other.add(Task("b", "Two."))
    assert [found.name for found in registry.heard(encoder).vectors("fake")] == ["a", "b"]
    encoder.heard.clear()
    other.heard(encoder)
    assert encoder.heard == []


def test_reindexing_binds_another_encoder_and_goes_on_where_it_was(registry: Registry) -> None:
    for number in range(5):
        registry.add(Task(f"t{number}", f"Task {number}.", (f"e{number}",)))
    registry.heard(HashEncoder())
    other, done = HashEncoder("other"), []
    assert registry.reindex(other, done.append) == 5
    assert (registry.catalog.encoder, sum(done), len(other.heard)) == ("other", 5, 10)
    assert np.array_equal(registry.vectors(other)[3].examples[0], other.stored("e3"))
    again(registry).reindex(other)
    assert len(other.heard) == 10


def test_a_stack_names_tasks_and_leads_nowhere_back(registry: Registry, adapter: Path) -> None:
    registry.add(Task("a", "x"), adapter)
    registry.add(Task("b", "y", stack=("a",)))
    registry.add(Task("c", "z", stack=("b",)))
    with pytest.raises(CardError, match="Found a circle"):
        registry.add(Task("a", "x", stack=("c",)), replace=True)
    with pytest.raises(CardError, match="Found 'none'"):
        registry.add(Task("d", "x", stack=("a", "none")))
    registry.retire("b")
    with pytest.raises(CardError, match="Found 'b'"):
        registry.add(Task("d", "x", stack=("b",)))
    assert [fault.split(":")[0] for fault in registry.verify()] == ["c"]
    assert list(registry) == ["a", "c"]


def test_a_stack_is_pinned_by_the_seal(registry: Registry, tmp_path: Path) -> None:
    group = registry.add(Task("a", "A group."), make_adapter(tmp_path / "group", "group"))
    child = make_adapter(tmp_path / "child", "child", stack={"a": str(group.sha256)})
    with pytest.raises(CardError, match=r"a/x: `stack` should be what its adapter was trained on top of: \['a'\]"):
        registry.add(Task("a/x", "X."), child)
    stranger = make_adapter(tmp_path / "stranger", "child", stack={"a": "0" * 64})
    with pytest.raises(CardError, match=r"trained on top of a with sha256 0{64}. Found v1 with others"):
        registry.add(Task("a/x", "X.", stack=("a",)), stranger)
    assert list(registry) == ["a"]
    registry.add(Task("a/x", "X.", stack=("a",)), child)
    registry.add(group, make_adapter(tmp_path / "newer", "newer"), replace=True)
    for seen in (registry, again(registry)):
        assert seen.pinned_path("a", str(group.sha256)) == seen.store.home("a") / "v1"
        assert seen.adapter_path("a") == seen.store.home("a") / "v2"
    with pytest.raises(IntegrityError, match="Found v1, v2, none with that hash"):
        registry.pinned_path("a", "0" * 64)
    assert registry.verify() == []


def test_labels_keep_the_order_of_the_adapters_outputs(registry: Registry, tmp_path: Path, adapter: Path) -> None:
    task = registry.add(Task("a", "x", head="classification", labels=("bad", "good")), adapter)
    turned = dataclasses.replace(task, labels=("good", "bad"))
    with pytest.raises(CardError, match="order of the outputs of the adapter v1: bad, good"):
        registry.add(turned, replace=True)
    assert registry["a"] == task
    assert registry.add(dataclasses.replace(task, labels=("bad", "good"), license="mit"), replace=True).license == "mit"
    assert registry.add(turned, make_adapter(tmp_path / "b", "b"), replace=True).labels == ("good", "bad")


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc", "a/./b", "_base", "a\0b", "v1", "a\\b", "~", "a//b", "x" * 201]
)
def test_no_name_leads_out(registry: Registry, adapter: Path, name: str) -> None:
    calls: list[Callable[[str], object]] = [
        registry.__getitem__, registry.remove, registry.retire, registry.restore, registry.versions, registry.history,
        registry.adapter_path, registry.base_path, registry.under, registry.groups,
        lambda name: registry.add_example(name, "x"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(CardError, match="task's name is"):
            call(name)
    assert name not in registry
    assert sorted(path.name for path in adapter.parent.iterdir()) == ["adapter", "registry"]


@pytest.mark.parametrize(
    ("name", "plain"),
    [("Language/gec", "language/gec"), ("ﬁrst", "first"), ("ｌａｎｇ", "lang"), ("K-1", "k-1"), ("ſ", "s")],
)
def test_names_that_differ_in_case_or_form_only_are_told_so(registry: Registry, name: str, plain: str) -> None:
    registry.add(Task(plain, "x"))
    with pytest.raises(CardError, match=f"differ in case or in the form of a letter only. Write `{plain}`"):
        Task(name, "x")
    with pytest.raises(CardError, match="in the form of a letter"):
        registry[name]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"description": "x" * 10_000_000}, "It has 10,000,000 characters, and 10,000 are the most"),
        ({"examples": ("x" * 10_001,)}, "`examples` item 1"),
        ({"tags": ("a\0b",)}, "NUL"),
        ({"examples": tuple(map(str, range(10_001)))}, "It has 10,001 items, and 10,000 are the most"),
        ({"examples": tuple(f"{n:4}" + "x" * 9_000 for n in range(200))}, "1,048,576"),
    ],
)
def test_what_is_too_large_is_refused_and_nothing_stays(registry: Registry, fields: dict, said: str) -> None:
    registry.add(Task("a", "x"))
    with pytest.raises(CardError) as caught:
        registry.add(Task("b", **{"description": "x", **fields}))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert list(registry) == ["a"]
    assert registry.verify() == []


class NanEncoder(HashEncoder):
    def one(self, text: str) -> np.ndarray:
        return super().one(text) * (np.nan if text == "y" else 1)


def test_an_encoder_that_breaks_its_promise_is_refused(registry: Registry) -> None:
    registry.add(Task("a", "One.", ("x", "y")))
    for encoder, said in ((HashEncoder(scale=2.0), "length 1"), (NanEncoder(), "length 1. Found nan")):
        with pytest.raises(InputError, match=said):
            registry.heard(encoder)
    wide = HashEncoder()
    wide.dimension = 9
    with pytest.raises(InputError, match=r"\(3, 9\)"):
        registry.heard(wide)
    assert len(registry.vectors(HashEncoder())) == 1


def test_an_unknown_task_is_told_with_the_nearest_and_a_group_that_exists(registry: Registry) -> None:
    registry.add(Task("language/grammar", "x"))
    registry.add(Task("reasoning/math", "x"))
    with pytest.raises(TaskNotFoundError) as caught:
        registry["language/gramar"]
    assert str(caught.value) == (
        f"No task 'language/gramar' in {registry.place} (2 tasks). Did you mean `language/grammar`? "
        "See `adapterhub ls language`."
    )
    with pytest.raises(TaskNotFoundError, match=r"See `adapterhub ls`\.$"):
        registry["nope/deep/task"]
    with pytest.raises(TaskNotFoundError, match="Did you mean `language`"):
        registry.under("langage")
    with pytest.raises(TaskNotFoundError, match=r"\(2 tasks\)"):
        registry["language"]


def test_the_bases_of_all_tasks(registry: Registry, adapter: Path) -> None:
    assert registry.bases() == []
    (registry.root / "_base").mkdir(parents=True)
    registry.add(Task("a", "x", base_model="_base"), adapter)
    registry.add(Task("b", "x", base_model="org/model"), adapter)
    registry.add(Task("c", "x", base_model="_base"), adapter)
    registry.add(Task("d", "x", base_model="without/adapter"))
    assert registry.bases() == sorted([str(registry.root / "_base"), "org/model"])
    assert registry.base_path("a") == str(registry.root / "_base")


@pytest.mark.parametrize("kind", KINDS)
def test_reading_what_is_not_there_leaves_nothing(kind: str, tmp_path: Path) -> None:
    registry = Registry(place_of(kind, tmp_path))
    assert (list(registry), len(registry), registry.under(""), registry.bases(), registry.groups()) == (
        [],
        0,
        [],
        [],
        [],
    )
    assert (registry.verify(), registry.repair(), registry.index_folder, "a" in registry) == ([], [], None, False)
    assert registry.vectors(HashEncoder()) == []
    with pytest.raises(TaskNotFoundError, match=r"\(0 tasks\)"):
        registry["a"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_heard_of_an_empty_registry_sees_what_comes(
    kind: str, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "registry"
    if made or kind == "sqlite":
        root.mkdir()
    registry, encoder = Registry(place_of(kind, root)), HashEncoder()
    catalog = registry.heard(encoder)
    registry.add(Task("a", "x"))
    Registry(registry.place).add(Task("b", "y"))
    assert registry.heard(encoder) is catalog
    assert [found.name for found in catalog.vectors("fake")] == ["a", "b"]
    assert registry.verify() == []
