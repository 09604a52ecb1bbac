"""New tasks proposed from texts that no task fitted.

Texts are merged bottom-up by the mean cosine of all pairs of two groups (average linkage) for as long as it is at least
`similarity`; groups that are large enough become proposals. A person names them and says what the answer is: a proposal
is a draft of a card and is never added by itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import Encoder
from adapterhub.errors import InputError
from adapterhub.task import Task

__all__ = ["Suggestion", "suggest_tasks"]

SIMILARITY = 0.25  # test texts of the nine bundled tasks, all-MiniLM-L6-v2: 10 topics, adjusted Rand index 0.90
MOST = 1500
_EXAMPLES = 20
_WORD = re.compile(r"[a-z][a-z0-9]{2,}")


@dataclass(frozen=True)
class Suggestion:
    """A task that seems to be missing.

    Args:
        task: A draft of its card: the name is made of its most telling words, the examples are the texts nearest to the
            middle.
        texts: How many texts belong to it.
        share: Of all texts that no task fitted.
        cohesion: Mean cosine between its texts.
    """

    task: Task
    texts: int
    share: float
    cohesion: float


def suggest_tasks(
    texts: Sequence[str],
    encoder: Encoder,
    *,
    group: str = "new",
    least: int = 5,
    similarity: float = SIMILARITY,
) -> list[Suggestion]:
    """Propose a task for every topic among texts that no task fitted.

    Args:
        texts: The texts, oldest first; of more than 1,500 different ones the newest count.
        encoder: Turns them into vectors.
        group: Where the proposals go in the tree.
        least: A topic has at least so many texts.
        similarity: Mean cosine from which on two groups of texts are one topic.

    Returns:
        Proposals, largest first.

    Raises:
        InputError: If `least` is below 2 or `similarity` not a cosine.
    """
    if least < 2 or not -1 <= similarity <= 1:
        raise InputError(f"`least` is at least 2, `similarity` a cosine. Found {least} and {similarity}. Correct them.")
    different = list(dict.fromkeys(text.strip() for text in reversed(texts) if text.strip()))[:MOST]
    if len(different) < least:
        return []
    rows = np.asarray(encoder.encode(different), dtype=np.float64)
    groups = [places for places in merged(rows, similarity) if len(places) >= least]
    spread = Counter(word for text in different for word in _words(text))
    found, taken = [], set[str]()
    for places in sorted(groups, key=lambda held: (-len(held), held)):
        middle = rows[places].mean(axis=0)
        nearest = [different[place] for place in sorted(places, key=lambda place: -float(rows[place] @ middle))]
        name = _name(group, nearest, spread, len(different), taken)
        taken.add(name)
        count = len(places)
        # The mean over pairs of different texts, from the length of the middle.
        cohesion = (count * float(middle @ middle) - 1) / (count - 1)
        task = Task(name, f"Answer inputs such as: {_shortened(nearest[0])}", tuple(nearest[:_EXAMPLES]))
        found.append(Suggestion(task, count, count / len(different), cohesion))
    return found


def merged(rows: NDArray[np.float64], similarity: float) -> list[list[int]]:
    """Groups of rows by average linkage.

    Args:
        rows: (n, d) unit vectors.
        similarity: Two groups are merged while the mean cosine of their pairs is at least this.

    Returns:
        The places of each group's rows, rising.
    """
    sums = rows @ rows.T  # of all pairs of two groups
    sizes, alive = np.ones(len(rows)), np.ones(len(rows), dtype=bool)
    groups = {place: [place] for place in range(len(rows))}
    means = sums.copy()
    np.fill_diagonal(means, -np.inf)
    while len(groups) > 1:
        a, b = divmod(int(means.argmax()), len(rows))
        if means[a, b] < similarity:
            break
        groups[a] += groups.pop(b)
        sizes[a] += sizes[b]
        sums[a] += sums[b]
        sums[:, a] = sums[a]
        alive[b] = False
        means[a] = np.where(alive, sums[a] / (sizes[a] * sizes), -np.inf)
        means[a, a] = -np.inf
        means[:, a] = means[a]
        means[b] = means[:, b] = -np.inf
    return [sorted(places) for places in groups.values()]


def _name(group: str, texts: Sequence[str], spread: Counter[str], total: int, taken: set[str]) -> str:
    """The group and the two words that tell these texts from the others; a number where there are none."""
    inside = Counter(word for text in texts for word in _words(text))
    worth = {word: count * math.log((1 + total) / spread[word]) for word, count in inside.items()}
    best = sorted(worth, key=lambda word: (-worth[word], word))[:2]
    name = f"{group}/{'-'.join(best) or 'topic'}"
    number = 2
    while name in taken:
        name = f"{group}/{'-'.join(best) or 'topic'}-{number}"
        number += 1
    return name


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _shortened(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= 80 else folded[:79] + "…"
