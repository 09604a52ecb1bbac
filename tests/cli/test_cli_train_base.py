"""`train --norms` and `train --base-bits`: what is trained beside the adapter, and how the base is held."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from cli_world import Command, fails, whole
from workshop import rows

from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)


@pytest.fixture
def options(tmp_path: Path, card: Path) -> tuple[object, ...]:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("classification", 8)))
    return ("words/kind", "-d", data, "--epochs", "1", "--rank", "2", "--validation", "0", "-r", card)


def test_norms_are_stored_beside_the_adapter(cli: Command, card: Path, options: tuple[object, ...]) -> None:
    saved = {}
    for switch in ((), ("--norms",)):
        done = cli("train", *options, *switch, "--json")
        assert done.code == 0, done.err
        config = json.loads((Path(json.loads(done.out)["folder"]) / "adapter_config.json").read_text())
        saved[switch] = set(config["modules_to_save"])
    assert saved[()] == {"classifier", "score"}
    assert saved["--norms",] > saved[()]
    whole(card)
    assert cli("run", "the apple is red", "-t", "words/kind", "-r", card).code == 0


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", ["4", "8"])
def test_bits_without_bitsandbytes_are_refused(
    cli: Command, card: Path, options: tuple[object, ...], bits: str
) -> None:
    fails(cli("train", *options, "--base-bits", bits), "bitsandbytes")
    assert Registry(card)["words/kind"].adapter is None
