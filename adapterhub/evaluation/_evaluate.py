"""Base, own adapter and routed, side by side, for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.evaluation._baseline import base_answers
from adapterhub.evaluation._metrics import LOWER_IS_BETTER, MAIN_METRIC, folded, score
from adapterhub.evaluation._rows import EvaluationRow, aligned_tags
from adapterhub.model import Answer, RoutedModel
from adapterhub.task import Task

__all__ = ["TaskReport", "evaluate"]

BATCH = 32


@dataclass(frozen=True)
class TaskReport:
    """How one task fares, in its main metric.

    Args:
        task: Name of the task.
        rows: Number of inputs.
        metric: Name of the metric.
        base: The bare base model: its own text, or the label that it finds likeliest as a continuation.
        own: The task's adapter, told that it is its task.
        routed: What a user gets: the router decides.
        routing: Share of the inputs that were routed to this task.
        negative_transfer: Share of the inputs that the bare base answers right and the routed model wrong.
        metrics: All metrics of the task's own adapter.
    """

    task: str
    rows: int
    metric: str
    base: float
    own: float
    routed: float
    routing: float
    negative_transfer: float
    metrics: Mapping[str, float]

    @property
    def margin(self) -> float:
        """How much better the own adapter is than the base; positive is better for every metric."""
        return (self.base - self.own) if self.metric in LOWER_IS_BETTER else (self.own - self.base)


def evaluate(
    model: RoutedModel,
    data: Mapping[str, Sequence[EvaluationRow]],
    on_batch: Callable[[int], None] | None = None,
) -> list[TaskReport]:
    """Measure base, own adapter and routed model on each task's rows.

    Args:
        model: The model under test.
        data: Rows by task name.
        on_batch: Called after each batch with its number of rows, for a progress bar.

    Returns:
        A report for each task, in order of names.

    Raises:
        InputError: If a task has no rows, or a row's answer is not of the head's kind.
        TaskNotFoundError: If a task is unknown or has no adapter.
        MissingExtraError: If the metric's library is not installed.
    """
    _check(model, data)
    return [_report(model, model.registry[name], data[name], on_batch) for name in sorted(data)]


def _check(model: RoutedModel, data: Mapping[str, Sequence[EvaluationRow]]) -> None:
    """Raise before the first batch what would stop a later one."""
    bare = [name for name in sorted(data) if model.registry[name].adapter is None]
    if bare:
        raise TaskNotFoundError(f"A task is evaluated with its adapter. {', '.join(bare)} has none. Train it first.")
    empty = [name for name in sorted(data) if not data[name]]
    if empty:
        raise InputError(
            "A task is evaluated on at least one row, which is no example of its card. "
            f"Found none for {', '.join(empty)}. Add rows, or leave the task out."
        )


def _report(
    model: RoutedModel, task: Task, rows: Sequence[EvaluationRow], on_batch: Callable[[int], None] | None
) -> TaskReport:
    base: list[object] = []
    own: list[object] = []
    routed: list[object] = []
    chosen = 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        texts = [row.text for row in batch]
        base += base_answers(model, task, batch)
        told = model.predictions(texts, [task.name] * len(batch))
        own += [_answer(task, row, p.predictions) for row, p in zip(batch, told, strict=True)]
        for row, prediction in zip(batch, model.predictions(texts), strict=True):
            chosen += prediction.task == task.name
            routed.append(_answer(task, row, prediction.predictions))
        if on_batch is not None:
            on_batch(len(batch))
    references = [row.reference for row in rows]
    metric = MAIN_METRIC[task.head]
    measured, bare, live = (score(task.head, answers, references, task.labels) for answers in (own, base, routed))
    hurt = sum(
        _right(task, b, row.reference) and not _right(task, r, row.reference)
        for b, r, row in zip(base, routed, rows, strict=True)
    )
    return TaskReport(
        task=task.name,
        rows=len(rows),
        metric=metric,
        base=bare[metric],
        own=measured[metric],
        routed=live[metric],
        routing=chosen / len(rows),
        negative_transfer=hurt / len(rows),
        metrics=measured,
    )


def _answer(task: Task, row: EvaluationRow, answers: Sequence[Answer]) -> object:
    """The best answer in the form that the task's metric reads; where a number is due, anything else counts as 0."""
    if task.head == "token-classification":
        return aligned_tags(row, answers)
    best = answers[0] if answers else ""
    if task.head == "regression":
        return best if isinstance(best, float) else 0.0
    return best if isinstance(best, str) else str(best)


def _right(task: Task, answer: object, reference: object) -> bool:
    """Whether one answer is right; numbers never are exactly, so they take no part in negative transfer."""
    if task.head == "generation":
        accepted = reference if isinstance(reference, list | tuple) else [reference]
        return folded(str(answer)) in {folded(str(text)) for text in accepted}
    return task.head != "regression" and answer == reference
