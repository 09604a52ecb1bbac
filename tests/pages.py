"""Pages of documentation as programs: their blocks in order, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import NamedTuple

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"#.*\bstatus (\d+)")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Line:
    """A line of a console block: a command with its arguments, or a setting.

    Args:
        words: What the shell would give to the program, comments left out.
        stdin: File behind `<`, or empty.
        status: The exit status that a comment tells (`# … status 1`), else 0.
    """

    words: tuple[str, ...]
    stdin: str = ""
    status: int = 0

    @property
    def setting(self) -> tuple[str, str] | None:
        """Name and value of `export NAME=VALUE`."""
        if self.words[0] != "export":
            return None
        name, _, value = self.words[1].partition("=")
        return name, value


def blocks_of(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page in order; of one language if it is given."""
    found = [Block(match[1], match[2], page.count("\n", 0, match.start()) + 1) for match in _BLOCK.finditer(page)]
    return [block for block in found if language in (None, block.language)]


def lines_of(block: Block) -> list[Line]:
    """The commands of a console block; a backslash at the end of a line joins it with the next."""
    found = []
    for text in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(text, comments=True)
        if not words:
            continue
        status = _STATUS.search(text)
        stdin = ""
        if "<" in words:
            place = words.index("<")
            stdin, words = words[place + 1], words[:place]
        found.append(Line(tuple(words), stdin, int(status[1]) if status else 0))
    return found
