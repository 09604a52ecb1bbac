"""Evaluation equals a plain loop over the rows; what cannot be evaluated is one clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_hub import Hub, build, tokens
from sklearn.metrics import accuracy_score

from adapterhub.errors import DataError, InputError, TaskNotFoundError
from adapterhub.evaluation import EvaluationRow, TaskReport, evaluate, read_evaluation_rows
from adapterhub.evaluation._baseline import base_answers
from adapterhub.evaluation._rows import aligned_tags
from adapterhub.model import Entity, RoutedModel, load_base
from adapterhub.route import Route
from adapterhub.task import Task

THINGS = ("apple", "stone", "horse", "river", "table")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return build(tmp_path_factory.mktemp("hub"))


def rows_of(name: str) -> list[EvaluationRow]:
    """Rows of one head, some of which the routing policy of the tiny hub sends elsewhere."""
    kind = name.split("/")[1]
    starts = (f"{kind}:", f"{kind}:", "mood:", "nobody knows")
    texts = [f"{start} the {thing} is red" for thing in THINGS for start in starts]
    if kind == "colour":
        return [EvaluationRow(text, ["red", text]) for text in texts]
    if kind == "mood":
        return [EvaluationRow(text, ("bad", "good", "so")[i % 3]) for i, text in enumerate(texts)]
    if kind == "size":
        return [EvaluationRow(text, float(i % 5)) for i, text in enumerate(texts)]
    found = []
    for text in texts:
        words = tuple(text.replace(":", " :").split())
        found.append(EvaluationRow(text, ["B-PER" if word in THINGS else "O" for word in words], words))
    return found


# Against a loop that does one row at a time


def one_by_one(hub: Hub, name: str, rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """Own and routed metric and the share routed here, through `predict` and nothing shared between rows."""
    task = hub.registry[name]
    own, routed, chosen = [], [], 0
    for row in rows:
        own.append(plain(task, row, hub.model.predict(row.text, task=name)))
        live = hub.model.predict(row.text)
        chosen += live["task"] == name
        routed.append(plain(task, row, live))
    right = [row.reference for row in rows]
    return {"own": measure(task, own, right), "routed": measure(task, routed, right), "routing": chosen / len(rows)}


def plain(task: Task, row: EvaluationRow, found: dict[str, object]) -> object:
    answers = found["predictions"]
    if task.head == "token-classification":
        tags, position = [], 0
        inside = [a for a in answers if isinstance(a, dict)]
        before = None
        for word in row.words:
            start = row.text.index(word, position)
            position = start + len(word)
            hit = next((a for a in inside if a["start"] <= start < a["end"]), None)
            tags.append("O" if hit is None else ("I-" if hit is before else "B-") + hit["label"])
            before = hit
        return tags
    if task.head == "regression":
        return answers[0] if answers and isinstance(answers[0], float) else 0.0
    return str(answers[0]) if answers else ""


def measure(task: Task, found: list, right: list) -> float:
    if task.head == "generation":
        return sum(text in accepted for text, accepted in zip(found, right, strict=True)) / len(right)
    if task.head == "classification":
        return float(accuracy_score(right, found))
    if task.head == "regression":
        return sum(abs(a - b) for a, b in zip(found, right, strict=True)) / len(right)
    told, true = ({(i, *span) for i, tags in enumerate(rows) for span in spans(tags)} for rows in (found, right))
    return 2 * len(told & true) / max(len(told) + len(true), 1)


def spans(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    start = 0
    for end in range(1, len(tags) + 1):
        if end == len(tags) or not tags[end].startswith("I-"):
            if tags[start] != "O":
                yield start, end, tags[start][2:]
            start = end


@pytest.mark.parametrize("name", ["words/colour", "words/mood", "words/names", "words/size"])
def test_a_report_equals_a_plain_loop(hub: Hub, name: str) -> None:
    rows = rows_of(name)
    expected = one_by_one(hub, name, rows)
    done: list[int] = []
    (report,) = evaluate(hub.model, {name: rows}, done.append)
    assert (report.task, report.rows, sum(done)) == (name, len(rows), len(rows))
    assert report.own == pytest.approx(expected["own"], abs=1e-4)
    assert report.routed == pytest.approx(expected["routed"], abs=1e-4)
    assert report.routing == expected["routing"]
    assert report.metrics[report.metric] == report.own
    assert 0 < report.routing < 1


def test_reports_come_in_the_order_of_names_and_do_not_depend_on_each_other(hub: Hub) -> None:
    names = ["words/size", "words/mood"]
    together = evaluate(hub.model, {name: rows_of(name) for name in names})
    assert [report.task for report in together] == sorted(names)
    assert together == [evaluate(hub.model, {name: rows_of(name)})[0] for name in sorted(names)]


# The bare base


def test_the_base_writes_its_own_text_for_a_generating_task(hub: Hub) -> None:
    task, row = hub.registry["words/colour"], EvaluationRow("colour: the apple", ["red"])
    model, tokenizer = load_base(hub.base)
    inputs = tokens(hub, task.format(row.text))
    out = model.generate(**inputs, max_new_tokens=task.max_new_tokens, do_sample=False)
    expected = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert base_answers(hub.model, task, [row]) == [expected]


def test_the_base_says_the_label_that_it_finds_likeliest(hub: Hub) -> None:
    task, rows = hub.registry["words/mood"], rows_of("words/mood")
    model, _ = load_base(hub.base)
    expected = []
    for row in rows:
        prompt, means = f"{task.format(row.text)}\n=>", []
        start = tokens(hub, prompt)["input_ids"].shape[1]
        for label in task.labels:
            ids = tokens(hub, f"{prompt} {label}")["input_ids"][0]
            with torch.no_grad():
                steps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            means.append(sum(steps[i - 1, ids[i]].item() for i in range(start, len(ids))) / (len(ids) - start))
        expected.append(task.labels[means.index(max(means))])
    assert base_answers(hub.model, task, rows) == expected


def test_the_base_has_no_head_for_tags_and_numbers(hub: Hub) -> None:
    row = rows_of("words/names")[0]
    assert base_answers(hub.model, hub.registry["words/names"], [row]) == [["O"] * len(row.words)]
    assert base_answers(hub.model, hub.registry["words/size"], [row, row]) == [0.0, 0.0]


# What the numbers mean


def report(metric: str, base: float, own: float) -> TaskReport:
    return TaskReport("a/b", 1, metric, base, own, own, 1.0, 0.0, {})


def test_a_positive_margin_is_better_for_every_metric() -> None:
    assert report("accuracy", 0.5, 0.75).margin == pytest.approx(0.25)
    assert report("accuracy", 0.75, 0.5).margin == pytest.approx(-0.25)
    assert report("mae", 4.0, 1.0).margin == pytest.approx(3.0)
    assert report("mae", 1.0, 4.0).margin == pytest.approx(-3.0)


class Sends:
    """A policy that sends every text to one task, or to the base."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def route(self, texts: Sequence[str], k: int = 1) -> list[Route]:
        return [Route.to(self.name) if self.name else Route() for _ in texts]


def routed_to(hub: Hub, name: str | None) -> RoutedModel:
    return RoutedModel(hub.model.engine, hub.model.tokenizer, hub.registry, Sends(name))


def test_negative_transfer_counts_what_the_base_had_right_and_the_route_has_wrong(hub: Hub) -> None:
    task, rows = hub.registry["words/mood"], rows_of("words/mood")
    base = base_answers(hub.model, task, rows)
    own = [hub.model.predict(row.text, task=task.name)["predictions"][0] for row in rows]
    assert base != own, "the case needs a base and an adapter that differ"
    as_base = [replace(row, reference=label) for row, label in zip(rows, base, strict=True)]
    (found,) = evaluate(routed_to(hub, task.name), {task.name: as_base})
    assert found.base == 1.0
    assert found.negative_transfer == sum(a != b for a, b in zip(base, own, strict=True)) / len(rows)
    as_own = [replace(row, reference=label) for row, label in zip(rows, own, strict=True)]
    (found,) = evaluate(routed_to(hub, task.name), {task.name: as_own})
    assert (found.own, found.negative_transfer) == (1.0, 0.0)


def test_negative_transfer_of_texts_folds_white_space_as_the_metric_does(hub: Hub) -> None:
    name, text = "words/colour", "colour: the apple"
    (said,) = base_answers(hub.model, hub.registry[name], [EvaluationRow(text, [""])])
    spaced = [EvaluationRow(text, ["  " + "   ".join(str(said).split()) + " "])]
    (lost,) = evaluate(routed_to(hub, name), {name: spaced})
    assert (lost.base, lost.routed, lost.negative_transfer) == (1.0, 0.0, 1.0)
    (kept,) = evaluate(routed_to(hub, "words/mood"), {name: [EvaluationRow(text, ["so"])]})
    assert kept.negative_transfer == 0.0


def test_numbers_take_no_part_in_negative_transfer(hub: Hub) -> None:
    (found,) = evaluate(routed_to(hub, None), {"words/size": [EvaluationRow("size: x", 0.0)]})
    assert (found.base, found.negative_transfer, found.routing) == (0.0, 0.0, 0.0)


# Entities as tags

WORDS = st.lists(st.sampled_from(["Anna", "an", "Rome", "R", ",", "said"]), min_size=1, max_size=9)


@given(WORDS, st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC"]), min_size=9, max_size=9), st.booleans())
def test_tags_of_entities_on_whole_words_are_the_tags_they_came_from(words: list[str], tags: list[str], dense: bool):
    text = ("" if dense else " ").join(words)
    tags = tags[: len(words)]
    tags = ["B-PER" if t == "I-PER" and (i == 0 or not tags[i - 1].endswith("PER")) else t for i, t in enumerate(tags)]
    gap, places, position = 0 if dense else 1, [], 0
    for word in words:
        places.append((position, position + len(word)))
        position += len(word) + gap
    found = [
        Entity(text[places[a][0] : places[b - 1][1]], label, places[a][0], places[b - 1][1])
        for a, b, label in spans(tags)
    ]
    assert aligned_tags(EvaluationRow(text, tags, tuple(words)), found[::-1]) == tags


def test_an_entity_that_covers_part_of_a_word_has_the_word() -> None:
    row = EvaluationRow("Anna's dog", None, ("Anna's", "dog"))
    assert aligned_tags(row, [Entity("Anna", "PER", 0, 4), "noise", 1.0]) == ["B-PER", "O"]
    assert aligned_tags(row, []) == ["O", "O"]
    assert aligned_tags(EvaluationRow("", None), [Entity("x", "PER", 0, 1)]) == []


# Reading rows

TASKS = {
    "generation": Task("t/text", "Text.", ("seen",)),
    "classification": Task("t/label", "Label.", ("seen",), head="classification", labels=("yes", "no")),
    "token-classification": Task("t/tags", "Tags.", head="token-classification", labels=("O", "B-X")),
    "regression": Task("t/value", "Value.", head="regression"),
}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("head", "row", "expected"),
    [
        ("generation", {"input": "a", "output": "b"}, EvaluationRow("a", ["b"])),
        ("generation", {"text": "a", "output": "b", "outputs": ["b", "c"]}, EvaluationRow("a", ["b", "c"])),
        ("classification", {"input": "a", "label": "no"}, EvaluationRow("a", "no")),
        (
            "token-classification",
            {"tokens": ["a", "b"], "tags": ["B-X", "O"]},
            EvaluationRow("a b", ["B-X", "O"], ("a", "b")),
        ),
        (
            "token-classification",
            {"input": "a.", "tokens": ["a", "."], "tags": ["B-X", "O"]},
            EvaluationRow("a.", ["B-X", "O"], ("a", ".")),
        ),
        ("regression", {"input": "a", "value": 2}, EvaluationRow("a", 2.0)),
    ],
)  # fmt: skip
def test_rows_of_every_head(tmp_path: Path, head: str, row: object, expected: EvaluationRow) -> None:
    assert read_evaluation_rows(written(tmp_path, row), TASKS[head]) == [expected]


def test_rows_that_are_examples_of_the_card_are_left_out_before_the_limit(tmp_path: Path) -> None:
    inputs = ["seen", "a", "seen", "b", "c"]
    path = written(tmp_path, *({"input": text, "output": "x"} for text in inputs))
    assert [row.text for row in read_evaluation_rows(path, TASKS["generation"])] == ["a", "b", "c"]
    assert [row.text for row in read_evaluation_rows(path, TASKS["generation"], 2)] == ["a", "b"]
    assert read_evaluation_rows(written(tmp_path, {"input": "seen", "output": "x"}), TASKS["generation"]) == []


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"input": "a", "label": "yes"},
        "{no json",
        {"input": "a"},
        {"label": "yes"},
        {"input": " ", "label": "yes"},
        {"input": "a", "label": "yess"},
        "[1]",
    )
    with pytest.raises(DataError) as error:
        read_evaluation_rows(path, TASKS["classification"])
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{n}" for n in range(2, 8)]
    for line, said in zip(
        lines, ("JSON", "`label`", "`input`", "not empty", "Did you mean `yes`?", "object"), strict=True
    ):
        assert said in line


@pytest.mark.parametrize(
    ("head", "row", "said"),
    [
        ("generation", {"input": "a", "output": 3}, "`output` is text"),
        ("regression", {"input": "a", "value": "much"}, "finite number"),
        ("regression", '{"input": "a", "value": NaN}', "finite number"),
        ("token-classification", {"tokens": ["a"], "tags": ["B-X", "O"]}, "one length"),
        ("token-classification", {"input": "b", "tokens": ["a"], "tags": ["O"]}, "Found no 'a'"),
        ("token-classification", {"tokens": ["a"], "tags": ["B-Y"]}, "B-X"),
    ],
)
def test_an_answer_of_another_kind_is_a_fault(tmp_path: Path, head: str, row: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        read_evaluation_rows(written(tmp_path, row), TASKS[head])
    assert "test.jsonl:1" in str(error.value)


def test_no_file_bytes_that_are_no_text_and_a_limit_below_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        read_evaluation_rows(tmp_path / "none.jsonl", TASKS["generation"])
    (tmp_path / "raw.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_evaluation_rows(tmp_path / "raw.jsonl", TASKS["generation"])
    with pytest.raises(InputError, match=r"at least 1\. Found 0"):
        read_evaluation_rows(written(tmp_path), TASKS["generation"], 0)


# What cannot be evaluated


def test_a_task_without_rows_is_one_clear_error(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"at least one row.*Found none for words/mood, words/size"):
        evaluate(hub.model, {"words/size": [], "words/mood": [], "words/colour": rows_of("words/colour")})
    assert evaluate(hub.model, {}) == []


def test_unknown_tasks_and_tasks_without_an_adapter(hub: Hub) -> None:
    with pytest.raises(TaskNotFoundError, match="Did you mean `words/mood`"):
        evaluate(hub.model, {"words/moood": rows_of("words/mood")})
    hub.registry.add(Task("words/bare", "No adapter.", base_model="_base"))
    try:
        with pytest.raises(TaskNotFoundError, match="words/bare has none"):
            evaluate(hub.model, {"words/bare": rows_of("words/colour")})
    finally:
        hub.registry.remove("words/bare")


def test_a_reference_that_is_no_label_is_an_error(hub: Hub) -> None:
    with pytest.raises(InputError, match="Did you mean `good`"):
        evaluate(hub.model, {"words/mood": [EvaluationRow("mood: x", "goood")]})
