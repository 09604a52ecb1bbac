"""Looking at the validation rows: what is best so far, and which tasks have stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapterhub.training._batches import Batch, by_length, collate
from adapterhub.training._checkpoint import Evaluation, Progress, Track
from adapterhub.training._score import Score, evaluate
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit

__all__ = ["Look", "Watch"]


@dataclass(frozen=True)
class Look:
    """What one look has found.

    Args:
        scores: Of each task with validation rows.
        best: Whether the tasks together are better than at every look before.
        improved: The tasks that by themselves are.
    """

    scores: Mapping[str, Score]
    best: bool
    improved: tuple[str, ...]


class Watch:
    """Measures the tasks of a run and writes down what it sees; tasks without validation rows have no say.

    Args:
        units: The tasks.
        settings: The run's settings.
        device: Where the models are.
        narrows: Whether a task that has stopped is left out of the steps. Otherwise it goes on with the others, and may
            get better and come back.
    """

    def __init__(self, units: Sequence[Unit], settings: Settings, device: torch.device, *, narrows: bool) -> None:
        self._units = {unit.name: unit for unit in units}
        self._patience, self._narrows = settings.patience, narrows
        self._batches: dict[str, list[Batch]] = {}
        for unit in units:
            if unit.validation:
                batches = by_length(unit.validation, 2 * settings.batch_size)
                self._batches[unit.name] = [collate(rows, unit.head, unit.pad).to(device) for rows in batches]

    def score(self, name: str) -> Score:
        """What a task with validation rows reaches now."""
        unit = self._units[name]
        return evaluate(unit.model, self._batches[name], unit.head)

    def batch(self, name: str, step: int) -> Batch:
        """The validation batch of a step, for weightings that ask for one: one after another, from the first again."""
        return self._batches[name][step % len(self._batches[name])]

    def look(self, progress: Progress) -> Look:
        """Measure every task, and note down histories, bests and who has stopped.

        Args:
            progress: Where to note it.
        """
        scores = {name: self.score(name) for name in self._batches}
        improved = tuple(
            name for name, track in progress.tracks.items() if self._note(progress.step, name, track, scores)
        )
        key = self._key(progress, scores)
        best = bool(key) and math.isfinite(sum(key)) and (not progress.best or key < progress.best)
        if best:
            progress.best = key
        self._stop(progress)
        return Look(scores, best, improved)

    def _note(self, step: int, name: str, track: Track, scores: Mapping[str, Score]) -> bool:
        """Write a task's history on; says whether it has never been as good."""
        score = scores.get(name)
        before = track.history[-1].train_loss if track.history else math.nan
        loss = track.losses / track.since if track.since else before
        found = (None, None) if score is None else (score.loss, score.metric)
        track.history.append(Evaluation(step, loss, *found))
        track.losses, track.since = 0.0, 0
        if score is None:
            return False
        key = score.key(self._units[name].head)
        better = math.isfinite(sum(key)) and (not track.best or key < track.best)
        track.best, track.misses = (key, 0) if better else (track.best, track.misses + 1)
        return better

    def _key(self, progress: Progress, scores: Mapping[str, Score]) -> tuple[float, ...]:
        """Less is better: one task's own key; of several the mean of their losses, each over its first one."""
        if len(scores) <= 1:
            return next((score.key(self._units[name].head) for name, score in scores.items()), ())
        first = {name: progress.tracks[name].history[0].validation_loss or 1.0 for name in scores}
        return (math.fsum(score.loss / first[name] for name, score in scores.items()) / len(scores),)

    def _stop(self, progress: Progress) -> None:
        """Take tasks out that have not improved for long enough; with the last of them the run ends."""
        if self._patience is None:
            return
        watched = [progress.tracks[name] for name in self._batches]
        tired = [track for track in watched if track.stopped or track.misses >= self._patience]
        for track in tired:
            track.stopped = track.stopped or (progress.step if self._narrows else 0)
        progress.stopped = progress.stopped or len(tired) == len(watched) > 0
