"""Rows between the buffer, where they are JSON, and the model, which reads token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from transformers import AutoConfig

from adapterhub.task import Task
from adapterhub.training._base import is_decoder
from adapterhub.training._encode import Features, RowEncoder
from adapterhub.training._examples import Example, check_rows, data_error
from adapterhub.training._prepare import Prepared
from adapterhub.training._rows import DataSource, read_rows
from adapterhub.training._split import sample, without

__all__ = ["Entry", "entries", "features", "held_out"]

Entry: TypeAlias = dict[str, Any]


def entries(one: Prepared) -> list[tuple[Entry, str]]:
    """A task's training rows as the buffer holds them, each with its class.

    Args:
        one: The task's data.

    Returns:
        Entries `{"task", "example"}`, and the task's name with the label where the head has one for a row.
    """
    found = []
    for row in one.rows:
        example = replace(row.example, value=row.example.value * one.scale)
        label = one.task.labels[example.label] if one.task.head == "classification" else ""
        found.append(({"task": one.task.name, "example": asdict(example)}, f"{one.task.name}:{label}"))
    return found


def features(held: Sequence[Entry], task: Task, like: Prepared, others: Sequence[Features] = ()) -> list[Features]:
    """Remembered rows as the model reads them, with their own task's prompt.

    Args:
        held: Entries of one task.
        task: Its card.
        like: Data of another task on the same base.
        others: Rows to measure it on; what is remembered of their texts is left out.

    Raises:
        DataError: If a row does not fit into the model's context.
    """
    examples = without([_example(entry["example"]) for entry in held], [row.example for row in others])
    rows, faults = _encoder(task, like)(examples)
    if faults:
        raise data_error(faults)
    return rows


def held_out(task: Task, source: DataSource, like: Prepared, most: int) -> Prepared:
    """An older task's validation rows, ready to be measured.

    Args:
        task: Its card.
        source: The rows, on none of which it was trained.
        like: Data of another task on the same base.
        most: Rows at most.

    Raises:
        DataError: If there are none, or rows are faulty.
    """
    examples, faults = check_rows(task, read_rows(source, f"{task.name} validation", "validation"))
    if not examples and not faults:
        faults = [f"{task.name}: validation data has at least one row. Found none. Add rows or leave it out."]
    encode = _encoder(task, like)
    rows, more = encode(sample(examples, most))
    if faults or more:
        raise data_error(faults + more)
    return replace(like, task=task, rows=(), validation=rows, truncated=encode.truncated, duplicates=0)


def _encoder(task: Task, like: Prepared) -> RowEncoder:
    return RowEncoder(like.tokenizer, task, like.length, last=is_decoder(AutoConfig.from_pretrained(like.path)))


def _example(fields: Mapping[str, Any]) -> Example:
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Example(**known)
