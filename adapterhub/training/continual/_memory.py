"""Rows between the buffer, where they are JSON, and the model, which reads token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from transformers import AutoConfig

from adapterhub.task import Task
from adapterhub.training._base import is_decoder
from adapterhub.training._encode import Features, RowEncoder
from adapterhub.training._examples import Example, data_error
from adapterhub.training._prepare import Prepared

__all__ = ["Entry", "entries", "features"]

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


def features(held: Sequence[Entry], task: Task, like: Prepared) -> list[Features]:
    """Remembered rows as the model reads them, with their own task's prompt.

    Args:
        held: Entries of one task.
        task: Its card.
        like: Data of another task on the same base.

    Raises:
        DataError: If a row does not fit into the model's context.
    """
    if not held:
        return []
    encode = RowEncoder(like.tokenizer, task, like.length, last=is_decoder(AutoConfig.from_pretrained(like.path)))
    rows, faults = encode([_example(entry["example"]) for entry in held])
    if faults:
        raise data_error(faults)
    return rows


def _example(fields: Mapping[str, Any]) -> Example:
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Example(**known)
