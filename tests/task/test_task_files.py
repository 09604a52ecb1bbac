"""Cards as files: lines, inheritance, every fault of every file, and writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from adapterhub.errors import CardError
from adapterhub.task import (
    Task,
    card_schema,
    describe_group,
    read_card,
    read_group,
    read_tree,
    scan_tree,
    write_card,
)


def put(root: Path, name: str, text: str, file: str = "task.yaml") -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text, encoding="utf-8")
    return folder / file


def faults_of(root: Path, name: str = "a") -> tuple[str, ...]:
    with pytest.raises(CardError) as caught:
        read_card(root, name)
    return caught.value.faults


def test_a_card_of_every_field(tmp_path: Path) -> None:
    put(
        tmp_path,
        "language/grammar",
        "description: Rewrite.\nexamples: [She go.]\nprompt: 'Fix: {text}'\noutput: a sentence\nhead: generation\n"
        "labels: []\nmax_new_tokens: 5\nbase_model: _base\nadapter: v1\nsha256: " + "a" * 64 + "\nstack: [language]\n"
        "loss_weight: 2\nmetrics: {em: 0.5}\ndatasets: [jfleg]\nlicense: mit\ntags: [gec]\n",
    )
    task = read_card(tmp_path, "language/grammar")
    expected = Task("language/grammar", "Rewrite.", ("She go.",), "Fix: {text}", "a sentence", "generation", (), 5)
    assert task.examples == expected.examples
    assert task.adapter == "v1"
    assert task.loss_weight == 2.0
    assert Draft202012Validator(card_schema()).is_valid(task.to_dict())
    assert Task.from_dict(task.name, task.to_dict()) == task


def test_every_fault_of_a_file_with_its_line(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "a",
        "description: 3\nexmaples: [x]\nhead: classification\nlabels:\n  - yes\n  - good\nlicense: 2024-01-01\n"
        "description: again\nloss_weight: .inf\nadapter: latest\nmetrics:\n  f1: high\n  f1: 0.3\nsha256:\n",
    )
    faults = faults_of(tmp_path)
    heads = [fault.split(": ")[0] for fault in faults]
    assert heads == [f"{path}:{line}" for line in (1, 2, 5, 7, 8, 9, 10, 12, 13, 14)]
    text = "\n".join(faults)
    for part in (
        "Found 3 (a number)",
        "unknown field `exmaples`. Did you mean `examples`?",
        "Found true (yes/no). Put it in quotes",
        "2024-01-01 (timestamp)",
        "Found `description` a second time",
        "Found `f1` a second time",
        "Found inf",
        "`v1` or `hf://org/repo@",
        "Found nothing. Leave the line out.",
    ):
        assert part in text


def test_contradictions_point_at_the_line_of_the_field(tmp_path: Path) -> None:
    path = put(
        tmp_path, "a", "description: x\nhead: regression\nmax_new_tokens: 3\nlabels: [a, b]\nsha256: " + "a" * 64
    )
    assert [fault.split(": ")[0] for fault in faults_of(tmp_path)] == [f"{path}:{line}" for line in (3, 4, 5)]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("description: [x", ":2: a card is YAML"),
        ("a: b: c", ":1: a card is YAML"),
        ("- a\n- b\n", "mapping of fields"),
        ("description: x\n---\ndescription: y\n", "a card is YAML"),
        ("description: !!python/object/apply:os.system [echo]\n", "should be a text"),
        ("description: !!int many\n", "should be a text"),
        ("description: &a x\noutput: *b\n", ":2: a card is YAML"),
        ("description: " + "[" * 5000, "a card is YAML"),
        ("? [a]\n: b\n", "name is text"),
        ("<<: {a: b}\n", "name is text"),
        ("", ":1: `description` is missing"),
        ("description: \x07", "a card is YAML"),
        ("examples: [[a]]\ndescription: x\n", "item 1 should be"),
        ("metrics: {a: [1]}\ndescription: x\n", "`metrics` a should be a finite number"),
        ("#" * (1 << 20) + "\n", "1,048,577 bytes"),
    ],
)
def test_files_that_are_no_cards(tmp_path: Path, text: str, part: str) -> None:
    put(tmp_path, "a", text)
    assert part in "\n".join(faults_of(tmp_path))


def test_a_file_that_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    put(tmp_path, "a", "").write_bytes(b"description: x\noutput: \xff\n")
    assert faults_of(tmp_path) == (
        f"{tmp_path}/a/task.yaml:2: a card is UTF-8. Found the byte 0xff. Save it as UTF-8.",
    )
    assert "Found: No such file" in faults_of(tmp_path, "b")[0]


def test_aliases_do_not_grow(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 30)]
    put(tmp_path, "a", "\n".join(lines))
    assert len(faults_of(tmp_path)) == 31


def test_a_missing_field_comes_from_the_nearest_group(tmp_path: Path) -> None:
    put(tmp_path, "", "base_model: _base\nlicense: mit\nmax_new_tokens: 7\nstack: [x]\n", "_group.yaml")
    put(
        tmp_path,
        "x",
        "description: All of x.\nlicense: apache-2.0\nhead: classification\nlabels: [a, b]\n",
        "_group.yaml",
    )
    put(tmp_path, "x/y", "tags: [t]\n", "_group.yaml")
    put(tmp_path, "x", "description: x itself\n")
    put(tmp_path, "x/y/z", "description: z\n")
    put(tmp_path, "x/y/g", "description: g\nhead: generation\nlicense: ''\n")
    tasks = read_tree(tmp_path)
    assert list(tasks) == ["x", "x/y/g", "x/y/z"]
    z, g, x = tasks["x/y/z"], tasks["x/y/g"], tasks["x"]
    assert (z.base_model, z.license, z.head, z.labels, z.tags) == (
        "_base",
        "apache-2.0",
        "classification",
        ("a", "b"),
        ("t",),
    )
    assert (g.head, g.labels, g.max_new_tokens, g.license) == ("generation", (), 7, "")
    assert z.stack == ("x",)
    assert x.stack == ()
    assert describe_group(tmp_path, "x") == "All of x."
    assert describe_group(tmp_path, "") == ""
    merged = read_group(tmp_path, "x/y")
    assert merged["license"] == "apache-2.0"
    assert "description" not in merged
    assert read_group(tmp_path, "") == {"base_model": "_base", "license": "mit", "max_new_tokens": 7, "stack": ["x"]}


def test_a_groups_fault_is_told_once_and_at_its_line(tmp_path: Path) -> None:
    group = put(tmp_path, "x", "license: mit\nmetrics: {f1: 1}\nbase_modle: b\nprompt: none\n", "_group.yaml")
    put(tmp_path, "x/a", "description: a\n")
    put(tmp_path, "x/b", "description: b\nprompt: 4\n")
    put(tmp_path, "y", "labels: 3\n", "_group.yaml")
    put(tmp_path, "y/c", "description: c\n")
    with pytest.raises(CardError) as caught:
        read_tree(tmp_path)
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [
        *(f"{group}:{line}" for line in (2, 3, 4)),
        f"{tmp_path}/x/b/task.yaml:2",
        f"{tmp_path}/y/_group.yaml:1",
    ]
    assert "`metrics` belongs to one task" in caught.value.faults[0]
    for call in (lambda: read_group(tmp_path, "x"), lambda: describe_group(tmp_path, "x")):
        with pytest.raises(CardError, match="base_modle"):
            call()


def test_a_tree_skips_what_is_no_task_and_refuses_what_breaks_the_rule_of_names(tmp_path: Path) -> None:
    put(tmp_path, "_base", "not: a card\n")
    put(tmp_path, ".catalog/x", "not: a card\n")
    put(tmp_path, "a", "description: x\n")
    (tmp_path / "a" / "v1").mkdir()
    (tmp_path / "empty").mkdir()
    assert list(read_tree(tmp_path)) == ["a"]
    assert scan_tree(tmp_path) == ({"a": (tmp_path / "a" / "task.yaml",)}, {}, ())
    assert read_tree(tmp_path / "none") == {}
    put(tmp_path, "My Task", "description: x\n")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(CardError) as caught:
        read_tree(tmp_path)
    assert len(caught.value.faults) == 2
    assert "task's name is" in str(caught.value)
    assert "Found a link" in str(caught.value)


@pytest.mark.parametrize("name", ["../a", "a/../b", "/etc", "a\0", "v1"])
def test_no_name_leads_out_of_the_tree(tmp_path: Path, name: str) -> None:
    for call in (read_card, read_group, describe_group):
        with pytest.raises(CardError, match="task's name is"):
            call(tmp_path, name)


def test_a_task_is_not_stacked_on_itself(tmp_path: Path) -> None:
    put(tmp_path, "a", "description: x\nstack: [a]\n")
    assert "Found 'a' itself" in faults_of(tmp_path)[0]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
some = texts.filter(lambda text: text.strip() != "" and any(not c.isspace() for c in text))
lines = texts.map(lambda text: text.replace("\n", " ").replace("\r", " "))
heads = st.one_of(
    st.fixed_dictionaries({"max_new_tokens": st.integers(1, 99)}),
    st.just({"head": "regression"}),
    st.just({"head": "classification", "labels": ["a", "no"]}),
    st.just({"head": "token-classification", "labels": ["O", "B-X", "I-X"]}),
)
rest = st.fixed_dictionaries(
    {},
    optional={
        "output": lines,
        "license": lines,
        "base_model": lines,
        "datasets": st.lists(some, max_size=3),
        "tags": st.lists(some, max_size=3, unique=True),
        "stack": st.lists(st.sampled_from(["a", "a/b", "x"]), unique=True),
        "loss_weight": st.floats(0, 1e6),
        "prompt": st.tuples(texts, texts).map(lambda two: two[0].replace("{", "") + "{text}" + two[1].replace("{", "")),
    },
)
own = st.fixed_dictionaries(
    {"description": some},
    optional={
        "examples": st.lists(some, max_size=3),
        "metrics": st.dictionaries(some, st.floats(-1e9, 1e9)),
        "adapter": st.just("v1"),
    },
)


@settings(max_examples=100, deadline=None)
@given(group=st.tuples(heads, rest), card=st.tuples(heads, rest, own))
def test_what_is_written_is_read_back_below_any_group(
    tmp_path_factory: pytest.TempPathFactory, group: tuple[dict, dict], card: tuple[dict, dict, dict]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    defaults = Task.from_dict("g", {"description": "g", **group[0], **group[1]}).to_dict()
    defaults.pop("description")
    write_group = Task.from_dict("g", {"description": "g", **defaults})
    (root / "g").mkdir()
    write_card(root / "g" / "_group.yaml", write_group)
    task = Task.from_dict("g/t", {**card[0], **card[1], **card[2]})
    (root / "g" / "t").mkdir()
    write_card(root / "g" / "t" / "task.yaml", task, read_group(root, "g"))
    assert read_card(root, "g/t") == task
    assert [path.name for path in (root / "g" / "t").iterdir()] == ["task.yaml"]


def test_a_written_card_says_nothing_twice(tmp_path: Path) -> None:
    put(tmp_path, "", "base_model: _base\nlicense: mit\nhead: classification\nlabels: [a, b]\n", "_group.yaml")
    task = Task(
        "a", "Say.", ("e",), head="classification", labels=("a", "b"), base_model="_base", license="", tags=("t",)
    )
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "task.yaml"
    write_card(path, task, read_group(tmp_path, "a"))
    assert path.read_text() == "description: Say.\nexamples:\n- e\nlicense: ''\ntags: [t]\n"
    assert read_card(tmp_path, "a") == task
