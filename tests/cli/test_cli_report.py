"""`report` and `stats`: what they print, in three forms, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import Command, fails

from adapterhub.evaluation import Outcome, Trace, write_records
from adapterhub.model import Prediction, UsageLog

pytest_plugins = ("cli_fixtures",)


def accuracy(task: str, method: str, right: int, **more) -> list[Outcome]:
    """Three seeds, 50 rows of which so many are right."""
    rows = tuple([1.0] * right + [0.0] * (50 - right))
    return [Outcome(task, method, seed, "accuracy", right / 50, rows, **more) for seed in range(3)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A planted harm under `group`, none under `sum`."""
    path = tmp_path / "runs" / "a.jsonl"
    held = [
        *accuracy("words/mood", "single-task", 40, seconds=1.0), *accuracy("words/mood", "group", 20, seconds=3.0),
        *accuracy("words/mood", "sum", 40, seconds=2.0),
        *accuracy("words/size", "single-task", 25, seconds=1.0), *accuracy("words/size", "group", 45, seconds=3.0),
        *accuracy("words/size", "sum", 25, seconds=2.0),
        Trace("single-task", 0, "validation_accuracy", (10, 20), (0.5, 0.8), "words/mood"),
        Trace("group", 0, "validation_accuracy", (10, 20), (0.9, 0.8), "words/mood"),
        Trace("group", 0, "weight", (10, 20), (0.9, 0.8), "words/mood"),
    ]  # fmt: skip
    write_records(path, held)
    return path


def test_the_report_names_the_harmed_task(cli: Command, runs: Path) -> None:
    done = cli("report", runs)
    assert done.code == 0
    assert "positive is better" in done.out
    assert "Harmed: words/mood under group." in done.err
    mood = next(line for line in done.out.splitlines() if line.startswith("group") and "harmed" in line)
    assert "words/mood" in mood
    assert "-0.400" in mood


def test_json_holds_the_same_figures(cli: Command, runs: Path) -> None:
    found = json.loads(cli("report", runs.parent, "--json").out)
    group, plain_sum = found["sections"][0]["summaries"]
    assert group["delta"]["value"]["mean"] == pytest.approx(100 * (-0.5 + 0.8) / 2)
    assert "positive is better" in group["delta"]["convention"]
    mood = group["ledger"]["gains"][0]
    assert (mood["measure"]["task"], mood["harmed"], mood["negative_transfer"]) == ("words/mood", True, 0.5)
    assert plain_sum["delta"]["value"]["mean"] == 0
    assert {one["method"]: one["seconds"]["mean"] for one in found["sections"][0]["costs"]} == {
        "group": 1.5, "single-task": 0.5, "sum": 1.0,
    }  # fmt: skip
    assert [(one["method"], one["median"]) for one in found["steps"]["validation_accuracy"]] == [
        ("group", 10), ("single-task", 20),
    ]  # fmt: skip


def test_markdown_and_a_drop(cli: Command, runs: Path) -> None:
    done = cli("report", runs, "--markdown", "--drop", "--interval", "percentile")
    assert done.code == 0
    assert "| words/mood | accuracy ↑ | 0.800 ± 0.000 |" in done.out
    assert "as a drop: lower is better" in done.out
    assert "| group | -15.00 ± 0.00 " in done.out
    assert "seeds and rows drawn again" in done.out


def test_without_harm_it_is_said(cli: Command, tmp_path: Path) -> None:
    write_records(tmp_path / "b.jsonl", accuracy("words/mood", "single-task", 40))
    done = cli("report", tmp_path / "b.jsonl", "--baseline", "other")
    assert done.code == 0
    assert "no outcome of the baseline `other`" in done.out


def test_bad_files_are_named(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"task": "a"}\n', encoding="utf-8")
    fails(cli("report", tmp_path / "c.jsonl"), "c.jsonl:1: ")
    fails(cli("report", tmp_path / "d.jsonl"), "d.jsonl: no such file")
    (tmp_path / "empty").mkdir()
    fails(cli("report", tmp_path / "empty"), "Found none in")
    (tmp_path / "e.jsonl").write_text("\n", encoding="utf-8")
    fails(cli("report", tmp_path / "e.jsonl"), "at least one outcome")


def logged(path: Path, texts: list[tuple[str | None, str]]) -> Path:
    log = UsageLog(path)
    for task, text in texts:
        log.record([Prediction(task, text, ("x",), (0.5,), ((task, 1.0),) if task else ())], 0.01)
    return path


def test_stats_of_a_known_log(cli: Command, tmp_path: Path) -> None:
    log = logged(tmp_path / "u.jsonl", [("words/mood", "short text")] * 40 + [("words/mood", "a long text " * 40)] * 40
                 + [(None, "odd")] * 20)  # fmt: skip
    with log.open("a", encoding="utf-8") as file:
        file.write('{"time": 1')
    done = cli("stats", log)
    assert done.code == 0
    assert "100 texts, 100 of them routed; no adapter fitted 20.0% of these" in done.out
    assert "1 lines" in done.err
    found = json.loads(cli("stats", log, "--json").out)
    assert (found["calls"], found["abstain_rate"], found["torn_lines"]) == (100, 0.2, 1)
    assert [(one["name"], one["calls"]) for one in found["adapters"]] == [("words/mood", 80), (None, 20)]
    assert {one["signal"] for one in found["drifts"] if one["flagged"]} == {"length", "task"}


def test_stats_against_a_reference(cli: Command, tmp_path: Path) -> None:
    texts = [("words/mood", "word " * (1 + place % 7)) for place in range(70)]
    log, other = logged(tmp_path / "u.jsonl", texts), logged(tmp_path / "v.jsonl", texts)
    found = json.loads(cli("stats", log, "--reference", other, "--json").out)
    assert len(found["drifts"]) == 5
    assert not any(one["flagged"] for one in found["drifts"])
    few = cli("stats", logged(tmp_path / "w.jsonl", texts[:3]))
    assert (few.code, "Too few texts" in few.err) == (0, True)
    fails(cli("stats", tmp_path / "x.jsonl"), "Found no file")


def test_suggest_wants_kept_texts_and_proposes_their_topics(cli: Command, tmp_path: Path) -> None:
    fails(cli("suggest", logged(tmp_path / "u.jsonl", [(None, "odd")] * 3)), "keep_abstained=True")
    log = UsageLog(tmp_path / "v.jsonl", keep_abstained=True)
    texts = [
        f"How do I boil {food} in a pot of water?" for food in ("rice", "pasta", "eggs", "beans", "corn", "lentils")
    ]
    log.record([Prediction(None, text, ("x",), (0.5,), ()) for text in texts], 0.01)
    (found,) = json.loads(cli("suggest", log.path, "--json").out)
    assert (sorted(found["examples"]), found["texts"], found["share"]) == (sorted(texts), 6, 1.0)
    shown = cli("suggest", log.path)
    assert found["name"] in shown.out
    assert "adapterhub new" in shown.err
    assert "No topic has 9" in cli("suggest", log.path, "--least", "9").err
