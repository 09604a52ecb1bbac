"""What a fit hands back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from adapterhub.task import Task
from adapterhub.training._checkpoint import Evaluation, Progress
from adapterhub.training._prepare import Prepared
from adapterhub.training._score import METRICS, Score

__all__ = ["FitResult", "group_result", "result"]


@dataclass(frozen=True)
class FitResult:
    """What came of training one task.

    Args:
        task: The card with the measured metric, and with the adapter's version if it was registered.
        steps: Steps done.
        seconds: Time spent in the loop, resumed sessions included.
        train_loss: Mean loss of the batches before the last evaluation; for a group the mean over its tasks.
        validation_loss: Mean validation loss of the weights that were kept, or None without validation rows.
        metric_name: What was measured, such as `validation_accuracy`; empty without validation rows.
        metric: Its value, measured with the weights that were kept; None without validation rows.
        folder: The sealed adapter folder.
        rows: Training rows.
        validation_rows: Validation rows that were measured.
        truncated: Texts that lost their beginning to fit into the context.
        duplicates: Training rows left out because their text is a validation text.
        stopped: Whether early stopping ended the run.
        history: Every evaluation on the way.
        tasks: For a group's adapter, every evaluation of each of its tasks.
        weights: For a group's adapter, at each evaluation the weights that the weighting gave the tasks in their order.
        stops: For a group's adapter, the step after which early stopping left a task out, for each that it did.
        conflicts: For a group's adapter, the shares of the steps whose direction, and whose update, hurt a task to
            first order; None where every step had one task.
    """

    task: Task
    steps: int
    seconds: float
    train_loss: float
    validation_loss: float | None
    metric_name: str
    metric: float | None
    folder: Path
    rows: int
    validation_rows: int
    truncated: int
    duplicates: int
    stopped: bool
    history: tuple[Evaluation, ...]
    tasks: Mapping[str, tuple[Evaluation, ...]] = field(default_factory=dict)
    weights: tuple[tuple[float, ...], ...] = ()
    stops: Mapping[str, int] = field(default_factory=dict)
    conflicts: tuple[float, float] | None = None


def result(task: Task, one: Prepared, progress: Progress, score: Score | None, folder: Path) -> FitResult:
    """Put a result together.

    Args:
        task: The card as delivered.
        one: The data.
        progress: What the loop did, in the units of the scaled values.
        score: What the kept weights reach, in the card's units.
        folder: Where the adapter lies.
    """
    history = tuple(_unscaled(entry, one.scale) for entry in progress.tracks[one.task.name].history)
    return FitResult(
        task=task,
        steps=progress.step,
        seconds=progress.seconds,
        train_loss=history[-1].train_loss,
        validation_loss=None if score is None else score.loss,
        metric_name="" if score is None else METRICS[task.head],
        metric=None if score is None else score.metric,
        folder=folder,
        rows=len(one.rows),
        validation_rows=len(one.validation),
        truncated=one.truncated,
        duplicates=one.duplicates,
        stopped=progress.stopped,
        history=history,
    )


def group_result(task: Task, parts: Mapping[str, Prepared], progress: Progress, folder: Path) -> FitResult:
    """The result of a group's adapter: what its tasks have in common, and the evaluations of each.

    Args:
        task: The group's card as delivered.
        parts: The data of its tasks.
        progress: What the loop did.
        folder: Where the adapter lies.
    """
    tasks = {
        name: tuple(_unscaled(entry, parts[name].scale) for entry in track.history)
        for name, track in progress.tracks.items()
    }
    counted = progress.conflicts
    steps = counted.get("steps", 0)
    looks = list(zip(*(track.history for track in progress.tracks.values()), strict=True))
    history = tuple(Evaluation(entries[0].step, _mean(e.train_loss for e in entries), None, None) for entries in looks)
    return FitResult(
        task=task,
        steps=progress.step,
        seconds=progress.seconds,
        train_loss=history[-1].train_loss,
        validation_loss=None,
        metric_name="",
        metric=None,
        folder=folder,
        rows=sum(len(one.rows) for one in parts.values()),
        validation_rows=sum(len(one.validation) for one in parts.values()),
        truncated=sum(one.truncated for one in parts.values()),
        duplicates=sum(one.duplicates for one in parts.values()),
        stopped=progress.stopped,
        history=history,
        tasks=tasks,
        weights=tuple(tuple(weights) for weights in progress.weights),
        stops={name: track.stopped for name, track in progress.tracks.items() if track.stopped},
        conflicts=(counted["directions"] / steps, counted["updates"] / steps) if steps else None,
    )


def _mean(losses: Iterable[float]) -> float:
    """Of those that are known: a task that was not drawn yet has no loss."""
    known = [loss for loss in losses if not math.isnan(loss)]
    return fmean(known) if known else math.nan


def _unscaled(entry: Evaluation, scale: float) -> Evaluation:
    if scale == 1:
        return entry
    loss, metric = entry.validation_loss, entry.metric
    return replace(
        entry,
        train_loss=entry.train_loss * scale**2,
        validation_loss=None if loss is None else loss * scale**2,
        metric=None if metric is None else metric * scale,
    )
