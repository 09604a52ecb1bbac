"""Rows to evaluate on: an input and its right answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import DataError
from adapterhub.model import Answer, Entity
from adapterhub.task import Task

__all__ = ["EvaluationRow", "aligned_tags", "read_evaluation_rows"]

_FIELDS = {
    "generation": ("outputs", "output"),
    "classification": ("label",),
    "token-classification": ("tags",),
    "regression": ("value",),
}


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
    """Read JSON lines with `input` (or `text`) and the answer that the task's head gives.

    Args:
        path: A JSONL file.
        task: The card.
        limit: Read at most so many rows. Rows whose input is an example of the card do not count.

    Raises:
        DataError: If a line is no JSON object or lacks a field; every fault is listed.
    """
    rows, faults = [], []
    fields = _FIELDS[task.head]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            text = row.get("input", row.get("text"))
            answer = next((row[field] for field in fields if field in row), None)
        except (ValueError, AttributeError):
            text = answer = None
        if not isinstance(text, str) or not text.strip() or answer is None:
            faults.append(
                f"{path}:{number}: a row is a JSON object with `input` and `{fields[-1]}`. Found {line[:80]!r}."
            )
            continue
        if text not in task.examples:
            rows.append(EvaluationRow(text, answer, tuple(row.get("tokens", ()))))
    if faults:
        raise DataError("\n".join(faults))
    return rows[:limit]


def aligned_tags(row: EvaluationRow, answers: Sequence[Answer]) -> list[str]:
    """Entities found in a text as one BIO tag for each of the row's words."""
    found = [answer for answer in answers if isinstance(answer, Entity)]
    tags, position, previous = [], 0, None
    for word in row.words:
        start = row.text.find(word, position)
        start = position if start < 0 else start
        position = start + len(word)
        owner = next((e for e in found if e.start < position and start < e.end), None)
        tags.append("O" if owner is None else f"{'I' if owner is previous else 'B'}-{owner.label}")
        previous = owner
    return tags
