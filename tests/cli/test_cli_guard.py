"""The guard: `new` and `add` say whose texts a task would take, and refuse where it is too much."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_world import LISTENS, Command, fails, files

import adapterhub.cli._guard as guard
from adapterhub.errors import MissingExtraError
from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)

THIEF = ["new", "words/thief", "-d", LISTENS["words/size"][0]]
for _example in LISTENS["words/size"][1]:
    THIEF += ["-e", _example]


def test_a_task_that_takes_anothers_texts_is_refused_and_named(cli: Command, shop: Path) -> None:
    before = files(shop)
    done = cli(*THIEF, "-r", shop)
    fails(
        done,
        "error: words/thief may take at most 2.0%",
        "words/size loses 3 of 3",
        "It nearly repeats words/size: 3 examples in common.",
        "--max-steal",
    )
    assert files(shop) == before
    (shop.parent / "card.yaml").write_text((shop / "words/size/task.yaml").read_text().split("adapter:")[0])
    done = cli("add", shop.parent / "card.yaml", "-n", "words/thief", "-r", shop)
    assert (done.code, files(shop)) == (1, before)


def test_told_otherwise_it_is_registered(cli: Command, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_encoder", lambda: pytest.fail("no encoder is needed"))
    assert cli(*THIEF, "-r", shop, "--max-steal", "1").code == 0
    assert "words/thief" in Registry(shop)


def test_a_task_of_its_own_is_let_in_without_a_word(cli: Command, shop: Path) -> None:
    done = cli("new", "kitchen/soup", "-d", "Tell how long a soup is cooked.", "-e", "How long does borscht boil?",
               "-r", shop)  # fmt: skip
    assert (done.code, "takes" in done.err) == (0, False)


def test_where_no_other_task_can_lose_no_encoder_is_loaded(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_encoder", lambda: pytest.fail("no encoder is needed"))
    assert cli("new", "a/b", "-d", "x", "-r", tmp_path / "mine").code == 0
    assert cli("new", "a/c", "-d", "x", "-r", tmp_path / "mine").code == 0


def test_without_an_encoder_it_is_said_that_nothing_was_looked_at(
    cli: Command, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> object:
        raise MissingExtraError("SentenceEncoder", "encoder")

    monkeypatch.setattr(guard, "_encoder", missing)
    done = cli(*THIEF, "-r", shop)
    assert done.code == 0
    assert "Not held against the other tasks' texts: SentenceEncoder needs an optional dependency" in done.err


def test_a_share_is_between_none_and_all(cli: Command, shop: Path) -> None:
    done = cli(*THIEF, "-r", shop, "--max-steal", "2")
    assert (done.code, done.out) == (2, "")
    fails(cli(*THIEF, "-r", shop, "--max-steal", "0"), "may take at most 0.0%")
