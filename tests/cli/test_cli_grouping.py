"""`affinity`, `cluster`, `doctor`: what they print, when they refuse, and that nothing is written unasked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_world import Command, fails, files, whole

from adapterhub.registry import Registry
from adapterhub.task import read_group
from adapterhub.training import grouping
from adapterhub.training.grouping import TaskGradients

pytest_plugins = ("cli_fixtures",)

MOODS = ["bad", "good", "so"]


def written(path: Path, found: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def moods(begin: int, end: int) -> list[dict[str, object]]:
    return [{"input": f"the film {n} was {MOODS[n % 3]}", "label": MOODS[n % 3]} for n in range(begin, end)]


def texts(begin: int, end: int) -> list[dict[str, object]]:
    return [{"input": f"the film {n} was {MOODS[n % 3]}", "output": MOODS[n % 3].upper()} for n in range(begin, end)]


def sizes(begin: int, end: int) -> list[dict[str, object]]:
    return [{"input": f"the film {n} was {MOODS[n % 3]}", "value": float(n % 3)} for n in range(begin, end)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with rows of three tasks that have the same inputs, in three splits."""
    for name, rows in (("words/mood", moods), ("words/colour", texts), ("words/size", sizes)):
        for split, span in (("train", (0, 64)), ("validation", (64, 80)), ("test", (80, 96))):
            written(tmp_path / "data" / name / f"{split}.jsonl", rows(*span))
    return tmp_path / "data"


def test_clean_data_passes_the_doctor(cli: Command, shop: Path, data: Path) -> None:
    names = ("words/mood", "words/colour", "words/size")
    done = cli("doctor", *names, "--data", data, "-r", shop)
    assert (done.code, done.out) == (0, "")
    assert "3 tasks, no findings" in done.err
    done = cli("doctor", "--data", f"words/mood={data}/words/mood", "--json", "-r", shop)
    assert (done.code, json.loads(done.out)) == (0, [])


def test_three_planted_faults_are_three_findings(cli: Command, shop: Path, data: Path) -> None:
    before = files(shop)
    train = moods(0, 64)
    written(data / "words/mood/train.jsonl", [*train, *train[:4]])
    written(data / "words/mood/test.jsonl", [*moods(80, 96), train[0]])
    written(data / "words/mood/validation.jsonl", [*moods(64, 80), {"input": "new", "label": "splendid"}])
    done = cli("doctor", "words/mood", "words/size", "--data", data, "-r", shop)
    assert done.code == 1
    assert sorted(line.split(":")[0] for line in done.out.splitlines()) == ["duplicates", "labels", "leakage"]
    assert "Found 3, listed above" in done.err
    assert "splendid" in done.out
    assert "words/size" not in done.out
    told = cli("doctor", "words/mood", "words/size", "--data", data, "--json", "-r", shop)
    assert told.code == 1
    assert [(one["task"], one["count"]) for one in sorted(json.loads(told.out), key=lambda one: one["kind"])] == [
        ("words/mood", 4),
        ("words/mood", 1),
        ("words/mood", 1),
    ]
    assert files(shop) == before


def test_files_are_given_one_by_one_too(cli: Command, shop: Path, data: Path, tmp_path: Path) -> None:
    rows = written(tmp_path / "mine.jsonl", moods(0, 64))  # no split's name: rows to train on
    leak = written(tmp_path / "test.jsonl", moods(60, 70))
    done = cli("doctor", "-d", f"words/mood={rows}", "-d", f"words/mood={leak}", "-r", shop)
    assert done.code == 1
    assert "Found 4 rows of test" in done.out
    again = cli("doctor", "-d", f"words/mood={rows}", "-d", f"words/mood={data}/words/mood", "-r", shop)
    fails(again, "words/mood has rows of the split train already")
    few = cli("doctor", "-d", f"words/mood={rows}", "--min-rows", "65", "-r", shop)
    assert few.out.startswith("too-little: words/mood: training takes at least 65 different inputs. Found 64.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("doctor",), ("Rows are given by task", "Found none")),
        (("doctor", "words/mood", "-d", "nowhere"), ("no rows of words/mood",)),
        (("doctor", "-d", "words/mod=data/words/mood"), ("Did you mean `words/mood`",)),
        (("doctor", "words/mood", "-d", "words/size=data/words/size"), ("words/size, which is not asked for",)),
        (("affinity", "words/mood", "words/size"), ("Found neither",)),
        (("affinity", "words/mood", "words/size", "-d", "data", "--probe", "x.jsonl"), ("Found both",)),
        (("affinity", "words/mood", "-d", "data"), ("between two different tasks",)),
        (("affinity", "words/mood", "words/mod", "-d", "data"), ("Did you mean `words/mood`",)),
        (("cluster", "--by", "text", "-d", "data"), ("Rows are for --by affinity",)),
        (("cluster", "words/mood", "words/sise", "--by", "adapters"), ("Did you mean `words/size`",)),
        (("cluster", "words/mood", "words/size", "--by", "adapters", "-k", "3"), ("`k` should be between 1 and",)),
        (
            ("cluster", "words/mood", "words/size", "--by", "adapters", "-k", "1", "--head", "classification"),
            ("have the head classification. Found words/size (regression)",),
        ),
    ],
)
def test_wrong_calls_are_told(cli: Command, shop: Path, data: Path, arguments: tuple[str, ...], said: tuple) -> None:
    before = files(shop)
    fails(cli(*arguments, "-r", shop), *said)
    assert files(shop) == before


def test_affinity_of_the_same_inputs(cli: Command, shop: Path, data: Path) -> None:
    names = ("words/mood", "words/colour", "words/size")
    options = ("--data", data, "--batch-size", "4", "--rows", "32", "--least", "0", "-r", shop)
    done = cli("affinity", *names, *options, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["estimator"] == "minibatches"
    assert [task["rows"] for task in told["tasks"]] == [32, 32, 32]
    assert len(told["pairs"]) == 3
    for pair in told["pairs"]:
        assert pair["overlap"] == 1
        assert -1 <= pair["low"] <= pair["affinity"] <= pair["high"] <= 1
    values = [pair["affinity"] for pair in told["pairs"]]
    assert values == sorted(values, reverse=True)
    assert "32 rows" in " ".join(told["warnings"])
    shown = cli("affinity", *names, *options)
    assert len(shown.out.splitlines()) == 4
    assert "100%" in shown.out
    assert "reliability" in shown.err


def test_affinity_is_printed_and_refused_where_the_data_cannot_tell(cli: Command, shop: Path, data: Path) -> None:
    done = cli("affinity", "words/mood", "words/size", "--data", data, "--batch-size", "32", "-r", shop)
    assert done.code == 1
    assert "words/mood" in done.out
    assert "error: An affinity is checked by halves of at least 4 minibatches of each task. Found 2." in done.err


def test_a_probe_is_answered_by_the_tasks_own_adapters(cli: Command, shop: Path, tmp_path: Path) -> None:
    probe = written(tmp_path / "probe.jsonl", [{"text": f"a film, number {n}"} for n in range(20)])
    options = ("--probe", probe, "--batch-size", "4", "--least", "0", "-r", shop, "--json")
    done = cli("affinity", "words/mood", "words/size", *options)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["pairs"][0]["overlap"] == 1
    assert [task["rows"] for task in told["tasks"]] == [20, 20]
    registry = Registry(shop)
    assert cli("new", "words/bare", "-d", "Nothing yet.", "-r", shop, "--max-steal", "1").code == 0
    assert registry["words/bare"].adapter is None
    fails(cli("affinity", "words/mood", "words/bare", *options), "no adapter of words/bare")


def test_groups_by_adapters_are_proposed_and_written_only_when_asked(cli: Command, shop: Path, tmp_path: Path) -> None:
    before = files(shop)
    done = cli("cluster", "--by", "adapters", "-k", "2", "--json", "-r", shop)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [group["name"] for group in told] == ["group-1", "group-2"]
    assert sorted(name for group in told for name in group["tasks"]) == ["words/colour", "words/mood", "words/size"]
    assert [group["within"] is None for group in told] == [len(group["tasks"]) == 1 for group in told]
    assert not (tmp_path / "group-1").exists()
    shown = cli("cluster", "--by", "adapters", "-k", "2", "--out", tmp_path / "groups", "-r", shop)
    assert len(shown.out.splitlines()) == 2
    for group in told:
        fields = read_group(tmp_path / "groups", group["name"])
        assert fields.get("head") == group["head"]
        assert fields["base_model"] == "_base"
    assert files(shop) == before
    whole(shop)
    again = cli("cluster", "--by", "adapters", "-k", "2", "--out", tmp_path / "groups", "-r", shop)
    fails(again, "A group is proposed where there is none")


@pytest.mark.slow
def test_groups_by_affinity_are_the_best_of_all(cli: Command, shop: Path, data: Path) -> None:
    names = ("words/mood", "words/colour", "words/size")
    options = ("--data", data, "--batch-size", "4", "--rows", "32", "--least", "0", "-r", shop, "--json")
    pairs = {
        frozenset(pair["tasks"]): pair["affinity"]
        for pair in json.loads(cli("affinity", *names, *options).out)["pairs"]
    }
    told = json.loads(cli("cluster", *names, "--by", "affinity", "-k", "3", *options).out)
    found = {frozenset(group["tasks"]) for group in told}

    def gain(groups: list[set[str]]) -> float:
        """Each task's mean affinity to its companions."""
        return sum(
            sum(pairs[frozenset({a, b})] for b in group if b != a) / (len(group) - 1)
            for group in groups
            if len(group) > 1
            for a in group
        )

    a, b, c = names
    every = [[{a}, {b}, {c}], [{a, b}, {c}], [{a, c}, {b}], [{b, c}, {a}], [{a, b, c}]]
    assert gain([set(group) for group in found]) == pytest.approx(max(map(gain, every)))


def test_groups_by_text(cli: Command, shop: Path) -> None:
    done = cli("cluster", "--by", "text", "-k", "3", "--json", "-r", shop)
    assert done.code == 0, done.err
    assert [group["tasks"] for group in json.loads(done.out)] == [["words/colour"], ["words/mood"], ["words/size"]]
    assert "Nothing is written" in done.err


def planted(signs: Sequence[float], noise: float) -> list[TaskGradients]:
    """Tasks that pull along one direction, or against it, on the same inputs."""
    generator = np.random.default_rng(0)
    direction = generator.normal(size=500)
    inputs = tuple((str(n),) for n in range(32))
    return [
        TaskGradients(name, (sign * direction + noise * generator.normal(size=(32, 500))).astype(np.float32), inputs)
        for name, sign in zip(("words/mood", "words/colour", "words/size"), signs, strict=False)
    ]


def test_the_doctor_finds_tasks_that_pull_apart(
    cli: Command, shop: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("doctor", "words/mood", "words/colour", "words/size", "--data", data, "--affinity", "-r", shop)

    def pull(signs: Sequence[float], noise: float) -> None:
        monkeypatch.setattr(grouping, "gradients_of", lambda *_: planted(signs, noise))

    pull((1, -1, 1), 1)
    done = cli(*call)
    assert done.code == 1
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["negative-affinity"] * 2
    assert all("words/colour" in line for line in done.out.splitlines())
    assert "Found 2, listed above" in done.err
    pull((1, 1, 1), 1)
    assert cli(*call)[:2] == (0, "")
    pull((1, -1, 1), 100)  # nothing but noise
    done = cli(*call)
    assert done[:2] == (0, "")
    assert "split-half reliability" in done.err


def test_the_doctor_takes_real_gradients(cli: Command, shop: Path, data: Path) -> None:
    rows = moods(0, 64)
    written(data / "words/mood/train.jsonl", [*rows, {"input": "odd", "label": "odd"}])
    done = cli("doctor", "words/mood", "words/size", "--data", data, "--affinity", "-r", shop)
    assert "Affinity is not looked at" in done.err
    written(data / "words/mood/train.jsonl", rows)
    done = cli("doctor", "words/mood", "words/size", "--data", data, "--affinity", "-r", shop)
    assert done.out == "" or done.out.startswith("negative-affinity: ")
    assert "64 rows" in done.err
