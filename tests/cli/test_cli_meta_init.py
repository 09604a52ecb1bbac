"""`meta-init`: a folder to begin with, and `train --init-from` that begins there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import Command, fails, files, whole
from safetensors.torch import load_file
from test_cli_grouping import moods, sizes, texts, written

from adapterhub.adapter import content_hash

pytest_plugins = ("cli_fixtures",)

WEIGHTS = "adapter_model.safetensors"
FEW = ("--steps", "2", "--inner-steps", "2", "--rank", "2", "--batch-size", "8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with training rows of three tasks, of which two are given to meta-init."""
    for name, made in (("words/mood", moods), ("words/colour", texts), ("words/size", sizes)):
        written(tmp_path / "data" / name / "train.jsonl", made(0, 24))
    return tmp_path / "data"


def test_a_starting_point_is_made_and_training_begins_there(
    cli: Command, shop: Path, data: Path, tmp_path: Path
) -> None:
    before = files(shop)
    start = tmp_path / "start"
    names = ("words/mood", "words/colour")
    done = cli("meta-init", *names, "--data", data, "--out", start, *FEW, "-r", shop)
    assert done.code == 0, done.err
    assert done.out.strip() == str(start)
    assert "2 tasks: mean loss at inner step 2 " in done.err
    assert f"Next: adapterhub train GROUP/TASK --data rows.jsonl --init-from {start} --rank 2" in done.err
    assert files(shop) == before
    options = ("-d", data / "words/size/train.jsonl", "--rank", "2", "--validation", "0", "--epochs", "0.3")
    begun = cli("train", "words/size", *options, "--init-from", start, "--lr", "1e-12", "-r", shop)
    assert begun.code == 0, begun.err
    trained = load_file(shop / "words/size/v2" / WEIGHTS)
    for key, value in load_file(start / WEIGHTS).items():
        assert (trained[key] - value).abs().max() < 1e-6, key
    whole(shop)
    other = cli("train", "words/size", *options[:2], "--rank", "4", "--init-from", start, "-r", shop)
    assert (other.code, other.out) == (1, "")
    assert "error: Training begins with an adapter of the same method, rank and targets" in other.err


def test_json_and_a_source_for_each_task(cli: Command, shop: Path, data: Path, tmp_path: Path) -> None:
    sources = [part for name in ("words/mood", "words/colour")
               for part in ("-d", f"{name}={data / name / 'train.jsonl'}")]  # fmt: skip
    runs = [
        json.loads(cli("meta-init", *sources, "-o", tmp_path / place, *FEW, "--json", "-r", shop).out)
        for place in ("a", "b")
    ]
    assert runs[0]["tasks"] == ["words/mood", "words/colour"]
    assert len(runs[0]["losses"]) == 2
    assert set(runs[0]["losses"][0]) == {"begin", "end"}
    assert runs[0]["sha256"] == content_hash(tmp_path / "a")
    assert runs[0] == runs[1] | {"folder": str(tmp_path / "a")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("words/mood",), ("two tasks or more. Found 1",)),
        (("words/mood", "words/colour", "--epsilon", "2"), ("`epsilon` should be a number in (0, 1]. Found 2.0",)),
        (("words/mood", "words/colour", "--steps", "0", "--inner-steps", "0"), ("`steps`", "`inner_steps`")),
        (("words/mood", "words/colour", "--rank", "0"), ("`rank`",)),
        (("words/mood", "words/colors"), ("no rows of words/colors",)),
        (("words/mood", "words/colour", "--out", "taken"), ("Found something at taken",)),
        ((), ("Rows are given by task",)),
    ],
)
def test_wrong_calls_write_nothing(
    cli: Command, shop: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    (tmp_path / "taken").mkdir()
    before = files(tmp_path)
    place = () if "--out" in arguments else ("--out", "start")
    fails(cli("meta-init", *arguments, *place, "--data", data, "-r", shop), *said)
    assert files(tmp_path) == before


def test_begin_from_is_for_one_task(cli: Command, shop: Path, data: Path) -> None:
    fails(cli("train", "words", "--children", "-d", data, "--init-from", "start", "-r", shop), "is for one task")
    rows = ("-d", data / "words/mood/train.jsonl")
    fails(cli("train", "words/mood", *rows, "--init-from", "./none", "-r", shop), "Found neither at ./none")
