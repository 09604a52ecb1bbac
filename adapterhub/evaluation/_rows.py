"""Rows to evaluate on: an input and its right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import InputError
from adapterhub.model import Answer, Entity
from adapterhub.task import Task
from adapterhub.training import Example, check_rows, data_error, locate_words, read_rows

__all__ = ["EvaluationRow", "aligned_tags", "read_evaluation_rows"]


@dataclass(frozen=True)
class EvaluationRow:
    """One input and its right answer.

    Args:
        text: The input.
        reference: A list of right texts, a label, a tag for each word, or a number.
        words: The words that the tags belong to; for token classification only.
    """

    text: str
    reference: object
    words: tuple[str, ...] = ()


def read_evaluation_rows(path: Path, task: Task, limit: int | None = None) -> list[EvaluationRow]:
    """Read rows of the kind that training takes: `input` (or `text`) and the answer that the task's head gives.

    Args:
        path: A JSONL, CSV or Parquet file.
        task: The card.
        limit: Read at most so many rows. Rows whose input is an example of the card do not count.

    Returns:
        The rows in order, without those whose input is an example of the card.

    Raises:
        DataError: If the file is missing, or rows break a rule; the message lists them with their lines.
        InputError: If `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`limit` is at least 1. Found {limit}. Leave it out to read all rows.")
    examples, faults = check_rows(task, read_rows(path, task.name))
    if faults:
        raise data_error(faults)
    return [_row(task, example) for example in examples if example.text not in task.examples][:limit]


def aligned_tags(row: EvaluationRow, answers: Sequence[Answer]) -> list[str]:
    """Entities found in a text as one BIO tag for each of the row's words.

    A word that an entity covers in part belongs to it; of overlapping entities the first in `answers` has the word.

    Args:
        row: The input and its words.
        answers: What a model answered; all but entities are passed over.

    Raises:
        InputError: If the words do not occur in the text, in order.
    """
    found = [answer for answer in answers if isinstance(answer, Entity)]
    tags: list[str] = []
    previous = None
    for start, end in locate_words(row.text, row.words):
        owner = next((entity for entity in found if entity.start < end and start < entity.end), None)
        inside = owner is not None and owner is previous
        tags.append("O" if owner is None else f"{'I' if inside else 'B'}-{owner.label}")
        previous = owner
    return tags


def _row(task: Task, example: Example) -> EvaluationRow:
    if task.head == "token-classification":
        return EvaluationRow(example.text, [task.labels[tag] for tag in example.tags], example.words)
    if task.head == "classification":
        return EvaluationRow(example.text, task.labels[example.label])
    return EvaluationRow(example.text, example.value if task.head == "regression" else list(example.answers))
