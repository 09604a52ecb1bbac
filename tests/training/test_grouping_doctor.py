"""`examine`: planted faults are found, each once; clean data has none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from workshop import COLOURS, card, rows

from adapterhub.errors import DataError
from adapterhub.training.grouping import Finding, examine

HEADS = ["generation", "classification", "token-classification", "regression"]


def kinds(found: list[Finding]) -> list[str]:
    return sorted(finding.kind for finding in found)


def clean(head: str) -> dict[str, list[Mapping[str, object]]]:
    """Numbers in the inputs make them different."""
    every = rows(head, 200)
    return {"train": every[:120], "validation": every[120:160], "test": every[160:]}


@pytest.mark.parametrize("head", HEADS)
def test_clean_data_has_no_findings(head: str) -> None:
    assert examine(card(head), clean(head)) == []
    assert examine(card(head), {}) == []


def test_three_planted_faults_are_three_findings() -> None:
    data = clean("classification")
    train = data["train"]
    data["train"] = [*train, *train[:5]]  # repeated
    data["test"] = [*data["test"], train[7]]  # leaked
    data["validation"][3] = dict(data["validation"][3]) | {"label": "purple"}  # outside the card
    found = examine(card("classification"), data)
    assert kinds(found) == ["duplicates", "labels", "leakage"]
    by_kind = {finding.kind: finding for finding in found}
    assert {kind: finding.count for kind, finding in by_kind.items()} == {"duplicates": 5, "labels": 1, "leakage": 1}
    assert "purple" in by_kind["labels"].text
    assert "tests/classification validation row 4" in by_kind["labels"].text
    assert "tests/classification test row 41" in by_kind["leakage"].text
    assert {finding.task for finding in found} == {"tests/classification"}


def test_three_more_planted_faults() -> None:
    data = clean("classification")
    few = [row for row in data["train"] if row["label"] == COLOURS[0]][:1]
    data["train"] = [row for row in data["train"] if row["label"] in COLOURS[1:3]][:30] + few
    other = dict(data["train"][0]) | {"label": COLOURS[2] if data["train"][0]["label"] == COLOURS[1] else COLOURS[1]}
    data["train"].append(other)  # the same input with another answer
    found = examine(card("classification"), data)
    assert kinds(found) == ["contradiction", "imbalance", "too-little"]
    text = {finding.kind: finding.text for finding in found}
    assert "Found 31. Add rows" in text["too-little"]
    assert "black 0, red 1" in text["imbalance"]
    assert "tests/classification train row 1 and tests/classification train row 32" in text["contradiction"]


@pytest.mark.parametrize("head", HEADS)
def test_leaks_between_each_two_splits_are_counted(head: str) -> None:
    data = clean(head)
    data["validation"] = [*data["validation"], *data["train"][:2]]
    data["test"] = [*data["test"], data["train"][0], data["validation"][0]]
    found = examine(card(head), data)
    assert kinds(found) == ["leakage"] * 3
    assert [finding.count for finding in found] == [2, 1, 2]  # the row in all three is in two pairs


def test_white_space_does_not_hide_a_repeated_input() -> None:
    data = {"train": clean("generation")["train"]}
    data["test"] = [dict(data["train"][0]) | {"input": f"  {data['train'][0]['input']} "}]
    assert kinds(examine(card("generation"), data)) == ["leakage"]


def test_one_repeated_row_in_many_is_let_pass() -> None:
    train = clean("generation")["train"]
    assert examine(card("generation"), {"train": [*train, train[0]]}) == []
    assert kinds(examine(card("generation"), {"train": [*train, train[0]]}, max_duplicates=0)) == ["duplicates"]


def test_several_right_texts_are_no_contradiction() -> None:
    train = clean("generation")["train"]
    twice = [*train, *(dict(row) | {"output": "another"} for row in train[:5])]
    assert examine(card("generation"), {"train": twice}) == []
    numbers = clean("regression")["train"]
    again = [*numbers, dict(numbers[0]) | {"value": -1.0}]
    assert kinds(examine(card("regression"), {"train": again})) == ["contradiction"]


def test_tags_outside_the_card_and_rows_that_cannot_be_read() -> None:
    data = clean("token-classification")
    data["train"][0] = {"tokens": ["a", "b"], "tags": ["O", "B-SIZE"]}
    data["train"][1] = {"tokens": ["a", "b"], "tags": ["O"]}
    data["train"][2] = {"tokens": []}
    found = examine(card("token-classification"), data)
    assert kinds(found) == ["labels", "rows"]
    assert {finding.kind: finding.count for finding in found} == {"labels": 1, "rows": 2}
    assert "B-SIZE" in found[0].text
    assert "train row 2" in found[1].text


def test_an_unbalanced_label_by_ratio() -> None:
    every = rows("classification", 400)
    many = [row for row in every if row["label"] == COLOURS[0]]
    train = many + [row for row in every if row["label"] != COLOURS[0]][:21]
    found = examine(card("classification"), {"train": train})
    assert kinds(found) == ["imbalance"]
    assert f"at most {len(many)}" in found[0].text
    assert examine(card("classification"), {"train": train}, max_ratio=100) == []


def test_an_unknown_split_or_file_is_an_error() -> None:
    with pytest.raises(DataError, match=r"splits are train, validation, test\. Found dev"):
        examine(card(), {"dev": []})
    with pytest.raises(DataError, match="no such data file"):
        examine(card(), {"train": "missing.jsonl"})
    assert kinds(examine(card(), {"train": []})) == ["too-little"]
