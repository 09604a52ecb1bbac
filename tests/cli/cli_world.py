"""The command line called in this process, and a small registry for it: a tiny base, three tasks far apart."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from adapterhub.cli import main
from adapterhub.registry import Registry

LISTENS = {
    "words/mood": (
        "Say whether a film review is positive or negative.",
        (
            "Positive or negative: a warm, funny film with a splendid cast",
            "Positive or negative: two hours of dull noise",
            "What is the sentiment of this review? The plot never wakes up.",
        ),
    ),
    "words/colour": (
        "Translate English to German.",
        (
            "Translate to German: The dog is asleep.",
            "How do you say 'good morning' in German?",
            "English to German: I am late.",
        ),
    ),
    "words/size": (
        "Compute a sum or a difference.",
        ("What is 12 plus 7?", "Compute 40 minus 13", "3 + 58"),
    ),
}


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


def run_main(arguments: tuple[object, ...], stdin: str, capsys: pytest.CaptureFixture[str]) -> Done:
    """`main()` with these arguments, its exit status and what it printed."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["adapterhub", *map(str, arguments)])
        patch.setattr(sys, "stdin", StringIO(stdin))
        levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
        environment = dict(os.environ)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(environment)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
    said = capsys.readouterr()
    return Done(code, said.out, said.err)


def files(root: Path) -> dict[str, bytes]:
    """Every file but the derived catalogue."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and ".catalog" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def fails(done: Done, *said: str) -> None:
    """One block `error: …` on stderr, nothing on stdout, exit status 1."""
    assert done.code == 1, done
    assert done.out == "", done
    assert done.err.startswith("error: "), done
    assert "Traceback" not in done.err
    for text in said:
        assert text in done.err, (text, done.err)


def whole(root: Path) -> None:
    """Nothing is half-registered: no fault, no leftover."""
    assert Registry(root).verify() == []
    assert not list((root / ".catalog").glob("staging-*"))
