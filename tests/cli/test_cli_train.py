"""`train`: a few steps on the tiny base; faulty data registers nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import Command, fails, files, whole
from workshop import COLOURS, rows

from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)


def written(path: Path, found: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_train_registers_an_adapter_that_answers(cli: Command, card: Path, tmp_path: Path) -> None:
    before = files(card)
    data = written(tmp_path / "rows.jsonl", rows("classification", 40))
    options = ("--epochs", "1", "--batch-size", "8", "--rank", "4", "-r", card)
    done = cli("train", "words/kind", "-d", data, "--json", *options)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["task"], told["steps"]) == ("words/kind", 5)
    assert told["metrics"] == dict(Registry(card)["words/kind"].metrics)
    assert Path(told["folder"]) == card / "words/kind/v1"
    whole(card)
    after = files(card)
    assert {path for path in before if after.get(path) != before[path]} == {"words/kind/task.yaml"}
    answer = json.loads(cli("run", "the apple is red", "-t", "words/kind", "--json", "-r", card).out)
    assert set(answer["predictions"]) <= set(COLOURS)


def test_train_without_validation_rows_says_so(cli: Command, card: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", rows("classification", 1))
    done = cli("train", "words/kind", "-d", data, "--epochs", "1", "--rank", "2", "--validation", "0", "-r", card)
    assert done.code == 0, done.err
    assert done.out.startswith("not validated after 1 steps")
    assert "adapterhub run -t words/kind" in done.err


def test_validation_rows_of_their_own(cli: Command, card: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", rows("classification", 8))
    other = written(tmp_path / "other.jsonl", rows("classification", 4, seed=1))
    options = ("--epochs", "1", "--rank", "2", "--validation", other, "-r", card)
    done = cli("train", "words/kind", "-d", data, *options)
    assert done.code == 0, done.err
    assert done.out.startswith("validation_accuracy ")


def test_rows_with_missing_fields_are_listed_and_nothing_is_registered(
    cli: Command, card: Path, tmp_path: Path
) -> None:
    good = rows("classification", 3)
    bad = [{"input": "a"}, {"label": COLOURS[0]}, {"inptu": "a", "label": COLOURS[0]}, {"input": "a", "label": "x"}]
    data = written(tmp_path / "rows.jsonl", [good[0], bad[0], good[1], bad[1], bad[2], good[2], bad[3]])
    before = files(card)
    done = cli("train", "words/kind", "-d", data, "-r", card)
    fails(done, *(f"{data}:{line}:" for line in (2, 4, 5, 7)), "Did you mean `inptu`?")
    assert not any(f"{data}:{line}:" in done.err for line in (1, 3, 6))
    assert files(card) == before
    whole(card)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("words/knd", ("-d", "rows.jsonl"), "Did you mean `words/kind`?"),
        ("words/kind", ("-d", "none.jsonl"), "no such data file"),
        ("words/kind", ("-d", "rows.jsonl", "--rank", "0"), "rank"),
        ("words/kind", ("-d", "rows.jsonl", "--resume"), "checkpoints"),
    ],
)
def test_bad_arguments(
    cli: Command, card: Path, tmp_path: Path, name: str, options: tuple[str, ...], said: str
) -> None:
    written(tmp_path / "rows.jsonl", rows("classification", 3))
    before = files(card)
    fails(cli("train", name, *options, "-r", card), said)
    assert files(card) == before


def test_a_card_without_a_base_says_where_to_name_it(cli: Command, tmp_path: Path) -> None:
    cli("new", "a/b", "-d", "Text.", "-r", tmp_path / "r")
    data = written(tmp_path / "rows.jsonl", rows("generation", 3))
    fails(cli("train", "a/b", "-d", data, "-r", tmp_path / "r"), "`base_model`")


def test_a_group_is_trained_before_its_children(cli: Command, card: Path, tmp_path: Path) -> None:
    for name in ("words/kind", "words/mood"):
        labels = Registry(card)[name].labels or ("x",)
        lines = [{"input": f"word {n}", "label": labels[n % len(labels)]} for n in range(8)]
        path = tmp_path / "data" / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--children", "--epochs", "1", "--rank", "2", "--validation", "0", "-r", card)
    done = cli("train", "words", "-d", tmp_path / "data", *options)
    assert done.code == 0, done.err
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["words", "words/kind", "words/mood"]
    assert Registry(card)["words/kind"].stack == ("words",)
    pairs = [argument for name in ("kind", "mood")
             for argument in ("-d", f"words/{name}={tmp_path}/data/words/{name}/train.jsonl")]  # fmt: skip
    told = json.loads(cli("train", "words", *pairs, *options, "--weighting", "uncertainty", "--json").out)
    assert [fields["task"] for fields in told] == ["words", "words/kind", "words/mood"]
    assert Registry(card).versions("words") == ["v1", "v2"]
    fails(cli("train", "words", "-d", "x.jsonl", *options), "each source is NAME=FILE. Found 'x.jsonl'")
    (tmp_path / "none").mkdir()
    fails(cli("train", "words", "-d", tmp_path / "none", *options), "a task's rows lie in <task>/train.jsonl")
    fails(cli("train", "words", *pairs, *options, "--sampling", "often"), "Found 'often'")
    fails(cli("train", "words/kind", *pairs, "-r", card), "A task is trained on one source. Found 2 times --data")


def test_training_begins_with_a_named_adapter(cli: Command, card: Path, tmp_path: Path) -> None:
    data = tmp_path / "kind.jsonl"
    labels = Registry(card)["words/kind"].labels
    data.write_text("".join(json.dumps({"input": f"w {n}", "label": labels[n % len(labels)]}) + "\n" for n in range(8)))
    options = ("-d", data, "--epochs", "1", "--rank", "2", "--validation", "0", "-r", card)
    assert cli("train", "words/kind", *options).code == 0
    assert cli("train", "words/kind", *options, "--init-from", "words/kind").code == 0
    fails(cli("train", "words/kind", *options, "--init-from", "words/knd"), "words/knd")
