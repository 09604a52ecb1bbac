"""What a new or changed task would take from the others, before it is registered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Ids, TaskVectors
from adapterhub.encoder import Encoder, check_texts
from adapterhub.errors import InputError
from adapterhub.router._epoch import Epoch
from adapterhub.router._hearing import Hearing, row_of
from adapterhub.router._types import TaskSource
from adapterhub.task import Task

__all__ = ["Impact", "Loss", "Twin", "impact_of"]

Doubles = NDArray[np.float64]

NEAR = 64  # tasks looked at: those that the new one's own texts prefer
MOST_EXAMPLES = 256  # of a task that are tried
SAME = 0.9999  # cosine from which two texts are one to the encoder
SHOWN = 3
CHANCE = 0.05


@dataclass(frozen=True)
class Loss:
    """What one task would lose.

    Args:
        task: The task.
        tried: Its texts that were tried: stored examples and given prompts.
        taken: Those that reach it today and would go to the new task.
        texts: Some of those taken.
    """

    task: str
    tried: int
    taken: int
    texts: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the texts that would be taken."""
        return self.taken / self.tried


@dataclass(frozen=True)
class Twin:
    """A task that the new one nearly repeats.

    Args:
        task: The task.
        likeness: Log-likelihood ratio, in nats, of *one task* against *two tasks* for the examples of both.
        cosine: Of the two mean examples.
        same: Examples of the new task that the other one has as well.
    """

    task: str
    likeness: float
    cosine: float
    same: tuple[str, ...]


@dataclass(frozen=True)
class Impact:
    """What adding or changing a task would do; nothing was changed to find out.

    Args:
        task: The new or changed task.
        looked_at: Number of tasks near it, whose texts were tried.
        losses: The tasks that would lose a text, the largest share first.
        tried: Texts tried in all.
        twins: The tasks that it nearly repeats, the likest first.
    """

    task: str
    looked_at: int
    losses: tuple[Loss, ...]
    tried: int
    twins: tuple[Twin, ...]

    @property
    def taken(self) -> int:
        """Number of texts that would be taken."""
        return sum(loss.taken for loss in self.losses)

    @property
    def share(self) -> float:
        """Share that would be taken of all texts tried."""
        return self.taken / self.tried if self.tried else 0.0

    def beyond(self, max_steal: float) -> tuple[Loss, ...]:
        """The tasks that would lose more than a share of their texts, by more than chance.

        A card's few examples are a sample of a task's traffic, and one of twenty is 5 %. So a task counts where losing
        that many would have a probability below 5 % if the share were `max_steal`: 3 of 20 or 1 of 2 at 2 %, and any
        at 0.

        Args:
            max_steal: The tolerated share, in [0, 1].
        """
        return tuple(loss for loss in self.losses if _tail(loss.taken, loss.tried, max_steal) < CHANCE)

    def refuse(self, max_steal: float = 0.02) -> None:
        """Raise where the new task takes too much.

        Args:
            max_steal: The tolerated share of a task's texts, and of all those tried, in [0, 1].

        Raises:
            InputError: If a task, or all that were tried together, would lose more, by more than chance; the message
                lists the tasks. Or if `max_steal` is not in [0, 1].
        """
        if not 0 <= max_steal <= 1:
            raise InputError(f"`max_steal` is a share in [0, 1]. Found {max_steal}. Give 0.02 to tolerate 2 %.")
        listed = self.beyond(max_steal)
        if not listed and _tail(self.taken, self.tried, max_steal) >= CHANCE:
            return
        lines = "\n".join(f"  {_said(loss)}" for loss in listed or self.losses)
        raise InputError(
            f"{self.task} may take at most {max_steal:.1%} of the texts of other tasks. It would take {self.taken} of "
            f"the {self.tried} that were tried:\n{lines}\nMake its description and examples tell it apart, or raise "
            "`max_steal` (`--max-steal`)."
        )

    def __str__(self) -> str:
        of = f"{self.tried} texts ({self.share:.1%}) of the {self.looked_at} tasks near it"
        lines = [f"{self.task}: takes {self.taken} of {of}"]
        lines += [f"  {_said(loss)}" for loss in self.losses]
        for twin in self.twins:
            shared = f", {len(twin.same)} examples in common" if twin.same else ""
            lines.append(f"  nearly repeats {twin.task}: {twin.likeness:+.1f} nats, cosine {twin.cosine:.2f}{shared}")
        return "\n".join(lines)


def impact_of(
    hearing: Hearing, registry: TaskSource, encoder: Encoder, task: Task, prompts: Mapping[str, Sequence[str]]
) -> Impact:
    """Find out what a task would take.

    A stored example is part of its own task's row, so it is scored with the row that the task would have without it.
    Those of the new task are not held out: its row is the one that would be stored.

    Args:
        hearing: The tasks there are.
        registry: Where the examples' texts are.
        encoder: Encodes the new card and the prompts.
        task: The new or changed task; its own texts are not among those that are tried.
        prompts: Further texts of tasks that are there, by their names.
    """
    rows = np.asarray(encoder.encode([task.description, *task.examples]), dtype=np.float32)
    new = TaskVectors.of(task.name, rows[0], rows[1:])
    own = hearing.catalog.get(task.name)
    asked = {name: check_texts(texts) for name, texts in prompts.items() if name != task.name and len(texts)}
    named = [record.id for record in map(hearing.catalog.get, asked) if record is not None and record.version]
    ids = np.union1d(_near(hearing, rows, 0 if own is None else own.id), np.array(named, dtype=np.int64))
    others = hearing.catalog.vectors(hearing.encoder, ids) if len(ids) else []
    losses = []
    for other in others:
        given = asked.get(other.name, [])
        heard = np.asarray(encoder.encode(given) if given else rows[:0], dtype=np.float64)
        losses.append(_loss(hearing, registry, new, other, given, heard))
    return Impact(
        task=task.name,
        looked_at=len(others),
        losses=tuple(sorted((loss for loss in losses if loss.taken), key=lambda loss: (-loss.share, loss.task))),
        tried=sum(loss.tried for loss in losses),
        twins=_twins(hearing.era.epoch, new, task.examples, others),
    )


def _near(hearing: Hearing, rows: NDArray[np.float32], own: int) -> Ids:
    """The tasks that the new one's texts prefer, ascending."""
    best: dict[int, float] = {}
    for ids, scores in hearing.score(rows, NEAR + 1):
        for id, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if id != own:
                best[id] = max(score, best.get(id, -math.inf))
    return np.array(sorted(sorted(best, key=lambda id: (-best[id], id))[:NEAR]), dtype=np.int64)


def _loss(
    hearing: Hearing, registry: TaskSource, new: TaskVectors, other: TaskVectors, given: Sequence[str], heard: Doubles
) -> Loss:
    """Try a task's examples, each held out of its row, and its prompts."""
    epoch = hearing.era.epoch
    tried = min(other.count, MOST_EXAMPLES)
    places = [at * other.count // tried for at in range(tried)]
    examples = other.examples[places].astype(np.float64)
    vectors = np.concatenate([examples, heard])
    lifted = epoch.lift(vectors)
    own = [row_of(epoch, other, without) for without in examples] + [row_of(epoch, other)] * len(heard)
    mine = (lifted * np.reshape(own, lifted.shape)).sum(axis=1)
    hits = np.flatnonzero((lifted * row_of(epoch, new)).sum(axis=1) > mine)
    hits = hits[_reached(hearing, vectors[hits], other.id, mine[hits])]
    known = _texts(registry, other) if len(hits) else ()
    texts = [known[places[at]] if at < tried else given[at - tried] for at in hits[:SHOWN].tolist()]
    return Loss(other.name, len(vectors), len(hits), tuple(texts))


def _texts(registry: TaskSource, task: TaskVectors) -> Sequence[str]:
    """The texts of a task's examples; their numbers where the card has changed since they were encoded."""
    card = registry[task.name]
    if card.content_hash == task.content_hash:
        return card.examples
    return [f"example {number + 1}" for number in range(task.count)]


def _reached(hearing: Hearing, vectors: Doubles, task: int, scores: Doubles) -> NDArray[np.bool_]:
    """Which texts reach a task today: no other task that is there scores more."""
    if not len(vectors):
        return np.zeros(0, dtype=bool)
    rivals = [found[1][found[0] != task][:1] for found in hearing.score(vectors, 2)]
    return np.array([not len(rival) or rival[0] <= score for rival, score in zip(rivals, scores, strict=True)])


def _twins(epoch: Epoch, new: TaskVectors, texts: Sequence[str], others: Iterable[TaskVectors]) -> tuple[Twin, ...]:
    found = []
    for other in others:
        likeness, cosine = _likeness(epoch, new, other)
        same = _same(new.examples, other.examples)
        if likeness > 0 or same.any():
            found.append(Twin(other.name, likeness, cosine, tuple(texts[at] for at in np.flatnonzero(same).tolist())))
    return tuple(sorted(found, key=lambda twin: (-twin.likeness, twin.task)))


def _same(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.bool_]:
    if not len(mine) or not len(theirs):
        return np.zeros(len(mine), dtype=bool)
    units = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (mine, theirs)]
    return np.asarray((units[0] @ units[1].T).max(axis=1) >= SAME)


def _likeness(epoch: Epoch, one: TaskVectors, other: TaskVectors) -> tuple[float, float]:
    """Log-likelihood ratio of one task against two for two means, and the cosine of the means.

    In z a mean of n examples is N(m, I / n) and m is N(0, diag psi), so two means of one task covary by psi, and those
    of two tasks do not.
    """
    counts, means = zip(*(_mean(task) for task in (one, other)), strict=True)
    a, b = ((mean - epoch.mu) @ epoch.transform for mean in means)
    va, vb = (epoch.psi + 1 / count for count in counts)
    determinant = va * vb - epoch.psi**2
    together = (vb * a * a - 2 * epoch.psi * a * b + va * b * b) / determinant + np.log(determinant)
    apart = a * a / va + b * b / vb + np.log(va) + np.log(vb)
    lengths = float(np.linalg.norm(means[0]) * np.linalg.norm(means[1]))
    return 0.5 * float((apart - together).sum()), float(means[0] @ means[1]) / max(lengths, 1e-12)


def _mean(task: TaskVectors) -> tuple[int, Doubles]:
    """Number and mean of a task's examples; of a task without any, its description counts as one."""
    if task.count or task.description is None:
        return max(task.count, 1), task.total.astype(np.float64) / max(task.count, 1)
    return 1, task.description.astype(np.float64)


def _tail(taken: int, tried: int, share: float) -> float:
    """Probability that at least so many of the tried are taken if each is with the given probability."""
    if share in (0.0, 1.0):
        return float(taken == 0 or share == 1)
    odds = math.log(share) - math.log1p(-share)
    start = tried * math.log1p(-share) + math.lgamma(tried + 1)
    terms = (start + count * odds - math.lgamma(count + 1) - math.lgamma(tried - count + 1) for count in range(taken))
    return 1 - math.fsum(math.exp(term) for term in terms)


def _said(loss: Loss) -> str:
    shown = ", ".join(repr(text[:60]) for text in loss.texts)
    return f"{loss.task} loses {loss.taken} of {loss.tried} ({loss.share:.0%}): {shown}"
