"""The card in Python: its rules, its words, and the JSON Schema that must agree with them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from adapterhub.errors import CardError
from adapterhub.task import Task, card_schema, check_name

SCHEMA = Draft202012Validator(card_schema())
PARTIAL = Draft202012Validator(card_schema(partial=True))

POOL: dict[str, list[object]] = {
    "description": ["Say it.", " ", "", 3, None, "a\0", "x" * 10_001],
    "examples": [[], ["a"], ["a", "a"], ["a", " "], "a", [1], None],
    "prompt": ["{text}", "Q: {text}\nA:", "no place", "{text}{text}", "{x} {text}", 1],
    "output": ["", "one word", "two\nlines", False],
    "head": ["generation", "classification", "token-classification", "regression", "Generation", "", 0],
    "labels": [
        [],
        ["a", "b"],
        ["a"],
        ["a", "a"],
        ["O", "B-PER"],
        ["O", "B-"],
        ["O"],
        ["B-X", "I-X"],
        [True, False],
        "ab",
    ],
    "max_new_tokens": [1, 32, 32.0, 0, -1, 1.5, True, "32"],
    "base_model": ["", "_base", "org/model", "a\nb", []],
    "adapter": [
        "v1",
        "v0",
        "v12",
        "1",
        "v1\n",
        f"hf://org/repo@{'a' * 40}",
        f"hf://o/r@{'0' * 40}/x/y",
        None,
        f"hf://o/r@{'0' * 40}/../x",
        "hf://o/r@main/x",
        f"hf://o/r@{'0' * 40}/.git",
    ],
    "sha256": ["0" * 64, "0" * 63, "A" * 64, "0" * 64 + "\n", 0],
    "stack": [[], ["language"], ["language", "language"], ["../x"], ["a/v1"], ["A"], "language"],
    "loss_weight": [0, 1, 0.5, -0.1, "1", True],
    "metrics": [{}, {"f1": 0.5, "n": 3}, {"f1": "0.5"}, {"f1": True}, [0.5], {"a\0": 1}],
    "datasets": [[], ["jfleg"], [""], None],
    "license": ["", "apache-2.0", "a\nb", 2],
    "tags": [
        [],
        ["gec"],
        ["x", "x"],
        [None],
        ["a\0b"],
        ["x" * 10_000],
        ["x" * 10_001],
        [str(n) for n in range(10_001)],
    ],
    "exmaples": [["a"]],
}


def accepted(fields: dict[str, object]) -> bool:
    try:
        Task.from_dict("a/b", fields)
    except CardError:
        return False
    return True


cards = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in POOL.items()})
mild = st.fixed_dictionaries(
    {"description": st.just("Say it.")},
    optional={key: st.sampled_from(POOL[key]) for key in ("head", "labels", "max_new_tokens", "adapter", "sha256")},
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(cards, mild))
def test_the_schema_and_the_parser_agree(fields: dict[str, object]) -> None:
    assert SCHEMA.is_valid(fields) == accepted(fields)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in POOL.items() for value in values])
def test_the_schema_and_the_parser_agree_on_each_field(key: str, value: object) -> None:
    fields = {"description": "Say it.", key: value}
    assert SCHEMA.is_valid(fields) == accepted(fields)


def test_the_schema_is_a_schema_and_json() -> None:
    for partial in (False, True):
        schema = card_schema(partial=partial)
        Draft202012Validator.check_schema(schema)
        assert json.loads(json.dumps(schema)) == schema
    assert set(card_schema()["properties"]) == {f.name for f in dataclasses.fields(Task)} - {"name"}


def test_the_partial_schema_lets_a_file_leave_to_its_group_what_it_inherits() -> None:
    assert PARTIAL.is_valid({"labels": ["a", "b"]})
    assert not SCHEMA.is_valid({"labels": ["a", "b"], "description": "x"})
    assert PARTIAL.is_valid({"head": "classification"})
    assert not PARTIAL.is_valid({"head": "regression", "labels": ["a", "b"]})
    assert not PARTIAL.is_valid({"exmaples": []})


def test_the_defaults_of_the_table_are_those_of_the_class() -> None:
    task = Task("a", "x")
    assert task.to_dict() == {"description": "x"}
    assert Task.from_dict("a", {"description": "x"}) == task


def test_the_eight_words_of_a_task() -> None:
    task = Task("language/gec/en", "Correct.", prompt="Fix: {text}", output="a sentence", loss_weight=2)
    assert (task.type, task.group, task.name) == ("language", "language/gec", "language/gec/en")
    assert (task.input_format, task.output_format, task.description) == ("Fix: {text}", "a sentence", "Correct.")
    assert (task.loss_weight, task.is_generation, task.is_classification) == (2.0, True, False)
    assert Task("a", "x", head="token-classification", labels=("O", "B-X")).is_classification
    assert not Task("a", "x", head="regression").is_generation
    assert Task("a", "x").group == ""


def test_only_the_place_of_the_text_is_replaced() -> None:
    task = Task("a", "x", prompt='{"q": {text}} {other}')
    assert task.format("{text} {0} %s") == '{"q": {text} {0} %s} {other}'


def test_the_content_hash_is_of_what_the_router_hears() -> None:
    task = Task("a", "x", examples=("e", "f"))
    assert task.content_hash == dataclasses.replace(task, name="b", license="mit", tags=("t",)).content_hash
    others = [dataclasses.replace(task, description="y"), dataclasses.replace(task, examples=("f", "e"))]
    assert len({task.content_hash, *(other.content_hash for other in others)}) == 3


def test_a_list_becomes_a_tuple_and_a_task_can_be_hashed() -> None:
    task = Task("a", "x", examples=["e"], metrics={"f1": 1})  # type: ignore[arg-type]
    assert task.examples == ("e",)
    assert hash(task) == hash(Task("a", "x", examples=("e",), metrics={"f1": 1}))


def test_contradictory_heads_cannot_be_expressed() -> None:
    with pytest.raises(CardError, match="`labels` is only for `head: classification` or"):
        Task("a", "x", labels=("a", "b"))
    with pytest.raises(CardError, match="`max_new_tokens` is only for `head: generation`"):
        Task("a", "x", head="regression", max_new_tokens=5)
    with pytest.raises(CardError, match="at least two"):
        Task("a", "x", head="classification", labels=("a",))
    with pytest.raises(CardError, match="`O`, `B-…` or `I-…`"):
        Task("a", "x", head="token-classification", labels=("O", "PER"))


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(CardError) as caught:
        Task.from_dict(
            "A", {"exmaples": [], "head": "clasification", "prompt": "x", "loss_weight": -1, "tags": [1, "", "a"]}
        )
    text = str(caught.value)
    assert len(caught.value.faults) == 8
    assert "unknown field `exmaples`. Did you mean `examples`?" in text
    assert "Did you mean `classification`?" in text
    assert "`tags` item 1 should be" in text
    assert "`description` is missing" in text


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**400])
def test_numbers_are_finite(number: float) -> None:
    for fields in ({"loss_weight": number}, {"metrics": {"f1": number}}):
        assert not accepted({"description": "x", **fields})


def test_text_is_unicode() -> None:
    assert not accepted({"description": "\ud800"})


GOOD = ["a", "a/b", "language/grammar-2", "0", "-", "t" * 200, "1/2/3", "version/vx"]
BAD = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    "..",
    "a/../b",
    "../a",
    "A",
    "a_b",
    "a.b",
    "a b",
    "a\\b",
    "ä",
    "a\n",
    "a/b\n",
    "t" * 201,
]
BAD += ["v1", "a/v1", "v2/a", "_base", ".catalog", "a\0", "C:/a", "hf://a"]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_follow_the_rule(name: str) -> None:
    assert check_name(name) == name
    assert Task(name, "x").name == name


@pytest.mark.parametrize("name", BAD)
def test_names_that_break_the_rule(name: str) -> None:
    with pytest.raises(CardError, match="task's name is"):
        check_name(name)
    with pytest.raises(CardError, match="task's name is"):
        Task(name, "x")
    assert not accepted({"description": "x", "stack": [name]})


def test_a_name_that_is_no_text() -> None:
    with pytest.raises(CardError, match="task's name is"):
        check_name(3)  # type: ignore[arg-type]
