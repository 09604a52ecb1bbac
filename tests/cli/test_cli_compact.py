"""`prune`: a smaller version of an adapter, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_world import Command, fails, files, whole
from safetensors.torch import load_file
from test_cli_grouping import moods, written

from adapterhub.adapter import content_hash, dequantise, describe_base, read_adapter
from adapterhub.model import load_base
from adapterhub.registry import Registry
from adapterhub.training import base_id

pytest_plugins = ("cli_fixtures",)

WEIGHTS = "adapter_model.safetensors"


def test_pruning_registers_a_smaller_version(cli: Command, shop: Path) -> None:
    before, old = files(shop), Registry(shop)["words/colour"]
    done = cli("prune", "words/colour", "--rank", "2", "-r", shop)
    assert done.code == 0, done.err
    assert done.out.strip() == str(shop / "words/colour/v2")
    new = Registry(shop)["words/colour"]
    assert (old.adapter, new.adapter) == ("v1", "v2")
    assert new.sha256 == content_hash(shop / "words/colour/v2") != old.sha256
    assert new.metrics == {}
    sizes = [(shop / "words/colour" / version / WEIGHTS).stat().st_size for version in ("v1", "v2")]
    assert f"{sizes[0]:,} bytes before, {sizes[1]:,} now: {sizes[1] / sizes[0]:.0%}" in done.err
    assert sizes[1] < 0.6 * sizes[0]
    assert "rank 2: " in done.err
    assert "no longer stands" in done.err
    after = files(shop)
    assert {path for path in before if after.get(path) != before[path]} == {"words/colour/task.yaml"}
    whole(shop)
    assert cli("run", "a film", "-t", "words/colour", "-r", shop).code == 0


def test_pruning_says_what_each_module_loses(cli: Command, shop: Path) -> None:
    done = cli("prune", "words/mood", "--energy", "0.9", "--json", "-r", shop)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["task"] == "words/mood"
    assert told["folder"] == str(shop / "words/mood/v2")
    assert 0 < told["error"] ** 2 <= 0.1 + 1e-6
    lost = sum(module["lost"] ** 2 for module in told["modules"].values())
    norm = sum(module["norm"] ** 2 for module in told["modules"].values())
    assert told["error"] == pytest.approx((lost / norm) ** 0.5)
    assert all(module["rank"] <= module["before"] == 4 for module in told["modules"].values())
    heads = [
        {key: value for key, value in load_file(shop / "words/mood" / v / WEIGHTS).items() if "score" in key}
        for v in ("v1", "v2")
    ]
    assert heads[0].keys() == heads[1].keys() != set()
    assert all((heads[0][key] == heads[1][key]).all() for key in heads[0])


def test_rows_are_measured_before_and_after(cli: Command, shop: Path, tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", moods(0, 12))
    done = cli("prune", "words/mood", "--rank", "3", "--data", rows, "--json", "-r", shop)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["metric"], told["rows"]) == ("accuracy", 12)
    card = Registry(shop)["words/mood"]
    assert card.adapter == "v2"
    assert card.metrics["accuracy"] == told["after"]
    folder = tmp_path / "own"
    for version, value in (("v1", told["before"]), ("v2", told["after"])):
        registry = Registry(folder / version)
        alone = replace(card, adapter=None, sha256=None, metrics={}, base_model=str(shop / "_base"))
        registry.add(alone, shop / "words/mood" / version)
        written(folder / "data/words/mood/test.jsonl", moods(0, 12))
        report = cli("eval", "words/mood", "--data", folder / "data", "--json", "-r", folder / version)
        assert json.loads(report.out)["tasks"][0]["own"] == value
    whole(shop)


def test_int8_is_written_aside_and_read_by_everything(cli: Command, shop: Path, tmp_path: Path) -> None:
    before = files(shop)
    done = cli("prune", "words/mood", "--int8", "--out", tmp_path / "small", "--json", "-r", shop)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert f"Next: adapterhub add CARD --name words/mood -a {tmp_path / 'small'} --replace" in done.err
    assert told["sha256"] == content_hash(tmp_path / "small")
    assert told["bytes_after"] == (tmp_path / "small" / WEIGHTS).stat().st_size < told["bytes_before"]
    assert 0 < told["int8_error"] < 0.02
    assert "modules" not in told
    assert files(shop) == before
    place = Registry(shop).base_path("words/mood")
    base = describe_base(load_base(place)[0], base_id(place))
    dequantise(tmp_path / "small", base, tmp_path / "plain")
    answers = []
    for folder in ("small", "plain"):
        options = ("--name", "words/mood", "--replace", "--max-steal", "1", "-r", shop)
        assert cli("add", shop / "words/mood", "-a", tmp_path / folder, *options).code == 0
        answers.append(json.loads(cli("run", "a fine film", "-t", "words/mood", "--json", "-r", shop).out))
        whole(shop)
    assert answers[0]["scores"] == answers[1]["scores"]
    assert read_adapter(shop / "words/mood/v2", base).sha256 == told["sha256"]
    both = cli("prune", "words/colour", "--rank", "2", "--int8", "--out", tmp_path / "both", "--json", "-r", shop)
    assert json.loads(both.out)["rank"] == 2
    assert {low.rank for low in read_adapter(tmp_path / "both", base).modules.values()} == {2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("words/mood",), ("Found neither",)),
        (("words/mood", "--rank", "2", "--energy", "0.9"), ("Found both",)),
        (("words/mood", "--int8"), ("Give --out FOLDER",)),
        (("words/mood", "--rank", "2", "--out", "o", "--data", "x.jsonl"), ("Found --data with --out",)),
        (("words/mood", "--rank", "0"), ("`rank` should be",)),
        (("words/mood", "--rank", "4"), ("below the adapter's largest, 4",)),
        (("words/mod", "--rank", "2"), ("Did you mean `words/mood`",)),
        (("words/mood", "--rank", "2", "--data", "missing.jsonl"), ("no such data file",)),
    ],
)
def test_wrong_calls_change_nothing(cli: Command, shop: Path, arguments: tuple[str, ...], said: tuple) -> None:
    before = files(shop)
    fails(cli("prune", *arguments, "-r", shop), *said)
    assert files(shop) == before
    whole(shop)
