"""Long and mixed inputs: split into parts, each of which asks for itself.

Every part is held against the threshold for one text. So each part that belongs to a known task is lost with
probability alpha at most, and a text with such a part gets *none* with probability alpha at most, however many parts
it has: the best of several scores is no smaller than any of them. That same maximum lets more foreign texts pass, and
filler between the parts asks too; so beside the best part only those count whose own task is clearly first.

Measured on texts of two tasks' inputs and two foreign sentences, among 12 and 40 tasks: 53 and 44 % of their tasks were
found, and 60 and 57 % of those called were right. With Bonferroni's alpha / C for each of C parts, which bounds the
loss of any part: 55 and 44 %, and 55 and 53 %. With alpha^(1 / C), the quantile of the largest of C scores: 20 and
28 %, and 88 and 71 %.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adapterhub.route import Route
from adapterhub.router._types import Decision

__all__ = ["MOST_CHUNKS", "Part", "Parts", "split", "united"]

MOST_CHUNKS = 32
SHORTEST = 12  # characters; what is shorter belongs to its neighbour
MOST_WORDS = 80  # of a chunk: an encoder cuts texts off, and one vector says little of many sentences

# An end of a sentence, with the quotes and brackets that close it; or the end of a line.
_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\s*\n\s*|(?<=[。！？])")


@dataclass(frozen=True)
class Part:
    """One part of a text and what was decided for it.

    Args:
        text: The part.
        start: Where it begins in the whole text, in characters.
        decision: Who would answer it alone.
    """

    text: str
    start: int
    decision: Decision


@dataclass(frozen=True)
class Parts:
    """What the parts of one text ask for.

    Args:
        text: The whole text.
        route: The union of the parts' routes, each adapter at full scale; empty where no part asks for any.
        parts: The parts, in the order of the text.
        evidence: For each adapter of the route, in its order, the index of the part that asks for it most.
    """

    text: str
    route: Route
    parts: tuple[Part, ...]
    evidence: tuple[int, ...]


def split(text: str, most: int = MOST_CHUNKS) -> list[tuple[int, str]]:
    """Cut a text into sentences and lines.

    A very short piece is joined to the one after it, a very long one is cut between words, and where there are more
    than `most` pieces neighbours are joined.

    Args:
        text: A text, not empty.
        most: At most so many pieces.

    Returns:
        (start, piece) of each piece, stripped; the pieces hold every visible character of the text.
    """
    spans = [span for whole in _sentences(text) for span in _cut(text, *whole)]
    spans = _joined(spans)
    group = -(-len(spans) // most)
    spans = [(part[0][0], part[-1][1]) for part in (spans[at : at + group] for at in range(0, len(spans), group))]
    return [(start, text[start:end]) for start, end in spans]


def united(text: str, pieces: Sequence[tuple[int, str]], decisions: Sequence[Decision], k: int) -> Parts:
    """The union of what the parts ask for, of those that are sure; where none is, what the best part asks for.

    An adapter ranks by the part that asks for it with the largest probability. Each runs at the scale it was trained
    at, and the engine sums them exactly.

    Args:
        text: The whole text.
        pieces: (start, piece) of its parts.
        decisions: Of each part, with k = 1.
        k: At most so many adapters, the best ones.
    """
    sure = [index for index, decision in enumerate(decisions) if decision.kind in ("sure", "branch")]
    best: dict[str, tuple[float, int]] = {}
    for index in sure or range(len(decisions)):
        for task in decisions[index].route.adapters:
            claim = _claim(decisions[index], task)
            if task not in best or claim > best[task][0]:
                best[task] = claim, index
    chosen = sorted(best, key=lambda task: (-best[task][0], best[task][1]))[: k if sure else 1]
    return Parts(
        text=text,
        route=Route(tuple(chosen), (1.0,) * len(chosen)),
        parts=tuple(Part(piece, start, each) for (start, piece), each in zip(pieces, decisions, strict=True)),
        evidence=tuple(best[task][1] for task in chosen),
    )


def _claim(decision: Decision, task: str) -> float:
    """Probability of a task, or of a branch that answers for its tasks."""
    if decision.kind == "branch":
        return dict(decision.branches)[task]
    return next(candidate.probability for candidate in decision.candidates if candidate.task == task)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for end in _END.finditer(text):
        yield start, end.end()
        start = end.end()
    yield start, len(text)


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence in pieces of at most 80 words, without the space around it; nothing for one without any character."""
    words = [(start + word.start(), start + word.end()) for word in re.finditer(r"\S+", text[start:end])]
    for at in range(0, len(words), MOST_WORDS):
        piece = words[at : at + MOST_WORDS]
        yield piece[0][0], piece[-1][1]


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Short pieces joined to the next one, the last one to the one before."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] - joined[-1][0] < SHORTEST:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    if len(joined) > 1 and joined[-1][1] - joined[-1][0] < SHORTEST:
        _, end = joined.pop()
        joined[-1] = joined[-1][0], end
    return joined
