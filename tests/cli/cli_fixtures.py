"""The command as a fixture, and registries to call it on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cli_world import LISTENS, Command, run_main
from model_hub import build
from workshop import COLOURS


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in an empty folder: `cli("ls", "-r", root)`."""
    monkeypatch.delenv("ADAPTERHUB_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, stdin="": run_main(arguments, stdin, capsys)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registry's folder; never changed."""
    registry = build(tmp_path_factory.mktemp("world")).registry
    registry.remove("words/names")
    (registry.root / "_group.yaml").write_text("base_model: _base\n", encoding="utf-8")
    for name, (description, examples) in LISTENS.items():
        registry.add(replace(registry[name], description=description, examples=examples), replace=True)
    return registry.root


@pytest.fixture
def shop(world: Path, tmp_path: Path) -> Path:
    """A registry's folder of one's own, to change."""
    root = tmp_path / "shop"
    shutil.copytree(world, root, ignore=shutil.ignore_patterns(".catalog"))
    return root


@pytest.fixture
def card(cli: Command, shop: Path) -> Path:
    """The registry with a card to train."""
    labels = [part for colour in COLOURS for part in ("-l", colour)]
    done = cli(
        "new", "words/kind", "-d", "Name it.", "--prompt", "{text}", "--head", "classification", *labels, "-r", shop
    )
    assert done.code == 0, done.err
    return shop
