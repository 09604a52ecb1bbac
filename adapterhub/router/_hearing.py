"""What one call sees: a scope of the tasks, scored under one epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Catalog, Ids, Scope, TaskVectors
from adapterhub.router._calibration import Bound, Calibration, posterior, together
from adapterhub.router._decide import SHOWN, Heard, Rules, decide
from adapterhub.router._epoch import Epoch
from adapterhub.router._rows import SHORTLIST, TaskRows
from adapterhub.router._types import Candidate, Decision, Policy

__all__ = ["Era", "Hearing", "Scored", "row_of"]

Doubles = NDArray[np.float64]
Scored = tuple[Ids, Doubles]  # the tasks of a query, best first, and their log-likelihood ratios

COVERED = 0.99  # the tasks that are named have this share of the shortlist's probability ...
MOST_NAMED = 128  # ... but are no more than these


@dataclass(frozen=True)
class Era:
    """A statistics epoch, what was calibrated under it, and the rows that it makes. Swapped whole."""

    epoch: Epoch
    calibration: Calibration
    rows: TaskRows

    def bounds(self, alpha: float, tasks: int) -> tuple[Bound, ...]:
        """What is asked of tasks, by their number of examples, where so many tasks are looked at.

        Args:
            alpha: Tolerated share of texts of known tasks that get `none`, or sets without the right task.
            tasks: How many; the best of them are scored.
        """
        return self.calibration.bounds(alpha, tasks, min(tasks, SHORTLIST))


@dataclass(frozen=True)
class Hearing:
    """The tasks of a scope as one call sees them. No name is known here before it matters.

    Args:
        catalog: The catalogue.
        encoder: Fingerprint of the encoder.
        era: The epoch and its rows.
        scope: Which tasks.
        ids: Their numbers; None for all.
    """

    catalog: Catalog
    encoder: str
    era: Era
    scope: Scope
    ids: Ids | None

    @property
    def tasks(self) -> int:
        """Number N of the tasks in the scope."""
        return len(self.era.rows) if self.ids is None else len(self.ids)

    def rules(self, alpha: float, policy: Policy, k: int) -> Rules:
        """What decisions go by here.

        Args:
            alpha: As for `Era.bounds`.
            policy: What an ambiguous text gets.
            k: Most adapters in a route.
        """
        made = self.era.calibration
        return Rules(made.temperature, self.era.bounds(alpha, self.tasks), policy, k, made.null)

    def score(self, vectors: NDArray[np.floating], most: int | None = None) -> list[Scored]:
        """The best tasks of each query with exact scores.

        Args:
            vectors: (b, d) encodings.
            most: At most so many; the shortlist's 512 by default.
        """
        return self.era.rows.score(vectors, SHORTLIST if most is None else most, self.ids)

    def matrix(self, vectors: NDArray[np.floating]) -> tuple[Ids, Doubles]:
        """Scores of several queries for the same tasks: those on the shortlist of any of them.

        Args:
            vectors: (b, d) encodings.

        Returns:
            (s,) numbers of the tasks, ascending, and (b, s) log-likelihood ratios.
        """
        found = self.score(vectors)
        union = np.unique(np.concatenate([ids for ids, _ in found]))
        if any(len(ids) < len(union) for ids, _ in found):
            found = self.era.rows.score(vectors, len(union), union)
        return np.sort(found[0][0]), np.stack([scores[np.argsort(ids)] for ids, scores in found])

    def decide(
        self, texts: Sequence[str], scored: Sequence[Scored], rules: Rules, evidence: Sequence[Doubles] | None = None
    ) -> list[Decision]:
        """Decide each text from its scores.

        Args:
            texts: The texts.
            scored: For each of them the best tasks, best first.
            rules: What the decisions go by.
            evidence: For each of them what the probabilities are made of, where that is not the scores.
        """
        weighed = [scores for _, scores in scored] if evidence is None else evidence
        posteriors = [posterior(scores[np.newaxis], self.tasks, rules.temperature, rules.null) for scores in weighed]
        shown = [_mattering(probabilities[0], rules) for probabilities, _ in posteriors]
        wanted = [ids[:count] for (ids, _), count in zip(scored, shown, strict=True)]
        named = np.unique(np.concatenate(wanted)) if wanted else np.empty(0, dtype=np.int64)
        names, examples = self.names(named), self.examples(named)
        known = {names[id]: examples[id] for id in examples}
        decisions = []
        for text, ids, (_, scores), (probabilities, none) in zip(texts, wanted, scored, posteriors, strict=True):
            ranked = [
                Candidate(names[id], score, probability)
                for id, score, probability in zip(
                    ids.tolist(), scores.tolist(), probabilities[0].tolist(), strict=False
                )
            ]
            heard = Heard(ranked, [examples.get(id, 0) for id in ids.tolist()], self.together(scores))
            decisions.append(self._marked(decide(text, heard, float(none[0]), rules, self.owns), known))
        return decisions

    def together(self, scores: Doubles) -> float:
        """What tasks score together for one text, in nats.

        Args:
            scores: (s,) log-likelihood ratios.
        """
        return float(together(scores[np.newaxis], self.era.calibration.temperature)[0])

    def examples(self, ids: Ids) -> dict[int, int]:
        """How many examples tasks have, by number."""
        return dict(zip(ids.tolist(), self.era.rows.examples(ids).tolist(), strict=True))

    def names(self, ids: Ids) -> dict[int, str]:
        """Names by number."""
        different = np.unique(ids)
        return dict(zip(different.tolist(), self.catalog.names_of(different), strict=True))

    def owns(self, name: str) -> bool:
        """Whether a task of that very name can be routed to and belongs to the scope."""
        record, scope = self.catalog.get(name), self.scope
        if record is None or record.status != "active" or record.version is None:
            return False
        inside = not scope.under or name == scope.under or name.startswith(f"{scope.under}/")
        based = scope.base_model is None or record.base_model == scope.base_model
        return inside and based and set(scope.tags) <= set(record.tags)

    def _marked(self, decision: Decision, examples: Mapping[str, int]) -> Decision:
        """The decision with the epoch, and with those of its first tasks that have no example."""
        first = {candidate.task for candidate in decision.candidates[:1]} | set(decision.route.adapters)
        cold = sorted(name for name in first if examples.get(name) == 0)
        return replace(decision, cold=tuple(cold), epoch=self.era.epoch.fingerprint)


def _mattering(probabilities: Doubles, rules: Rules) -> int:
    """How many of the best tasks are named."""
    covered = np.searchsorted(np.cumsum(probabilities), COVERED * probabilities.sum()) + 1
    inside = int((1 - probabilities <= rules.widest).sum())
    return min(max(int(covered), inside if rules.widest < 1 else 0, rules.k, SHOWN), max(MOST_NAMED, rules.k))


def row_of(epoch: Epoch, task: TaskVectors, without: Doubles | None = None) -> Doubles:
    """The exact row of a task as one Gaussian, (2 r + 1,).

    Args:
        epoch: The epoch.
        task: The task.
        without: (d,) one of its examples that is left out.
    """
    description = None if task.description is None else task.description.astype(np.float64)
    total = task.total.astype(np.float64)
    if without is None:
        return epoch.row(task.count, total, description)
    return epoch.row(task.count - 1, total - without, description)
