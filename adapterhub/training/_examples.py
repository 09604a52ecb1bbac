"""Rows checked against the card: all faults at once, then typed examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adapterhub.errors import DataError, InputError, did_you_mean
from adapterhub.task import Task
from adapterhub.training._rows import Row
from adapterhub.training._words import locate_words

__all__ = ["Example", "check_rows", "data_error"]

_SHOWN = 20


@dataclass(frozen=True)
class Example:
    """One row that has passed every check; the fields of the other heads stay empty.

    Args:
        where: File and line.
        text: The input.
        answers: Accepted answers, the first one to be learned (generation).
        label: Index into the card's labels (classification).
        words: Words of the input (token classification).
        tags: Index into the card's labels for each word (token classification).
        value: The number to predict (regression).
    """

    where: str
    text: str
    answers: tuple[str, ...] = ()
    label: int = 0
    words: tuple[str, ...] = ()
    tags: tuple[int, ...] = ()
    value: float = 0.0


class _FaultError(Exception):
    """What is wrong with one row."""


def check_rows(task: Task, rows: Sequence[Row]) -> tuple[list[Example], list[str]]:
    """Check every row against the card.

    Args:
        task: The card; its head says which fields a row needs, its labels which values.
        rows: The rows as read.

    Returns:
        The examples of the rows without a fault, and one sentence for each row with one.
    """
    parse = _PARSERS[task.head]
    index = {label: position for position, label in enumerate(task.labels)}
    examples: list[Example] = []
    faults: list[str] = []
    for row in rows:
        try:
            if row.fault:
                raise _FaultError(row.fault)
            examples.append(parse(row, index))
        except _FaultError as fault:
            faults.append(f"{row.where}: {fault}")
    return examples, faults


def data_error(faults: Sequence[str]) -> DataError:
    """One error that lists the first faults and counts the rest."""
    lines = list(faults[:_SHOWN])
    if len(faults) > _SHOWN:
        lines.append(f"... and {len(faults) - _SHOWN} more faulty rows.")
    return DataError("\n".join(lines))


def _text(row: Row) -> str:
    name = "input" if "input" in row.fields or "text" not in row.fields else "text"
    return _string(row, name)


def _string(row: Row, name: str) -> str:
    value = _required(row, name)
    if not isinstance(value, str):
        raise _FaultError(f"`{name}` is text. Found {_shown(value)}. Put it in quotes.")
    if not value.strip():
        raise _FaultError(f"`{name}` is not empty. Found {value!r}. Fill it in or drop the row.")
    return value


def _required(row: Row, name: str) -> object:
    if name not in row.fields:
        known = [str(field) for field in row.fields]
        near = did_you_mean(name, known)
        found = ", ".join(known) or "nothing"
        raise _FaultError(f"a row needs `{name}`. Found {found}.{near or ' Add the field.'}")
    return row.fields[name]


def _strings(row: Row, name: str) -> tuple[str, ...]:
    values = _required(row, name)
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise _FaultError(f"`{name}` is a list of texts. Found {_shown(values)}. Write a list.")
    return tuple(values)


def _generation(row: Row, index: Mapping[str, int]) -> Example:
    del index
    text = _text(row)
    accepted = _strings(row, "outputs") if "outputs" in row.fields else ()
    if not all(answer.strip() for answer in accepted):
        raise _FaultError("`outputs` holds no empty answer. Found one. Drop it.")
    first = accepted[0] if accepted and "output" not in row.fields else _string(row, "output")
    return Example(row.where, text, answers=(first, *(answer for answer in accepted if answer != first)))


def _classification(row: Row, index: Mapping[str, int]) -> Example:
    text = _text(row)
    return Example(row.where, text, label=_known(_string(row, "label"), "label", index))


def _token_classification(row: Row, index: Mapping[str, int]) -> Example:
    words, tags = _strings(row, "tokens"), _strings(row, "tags")
    if not words:
        raise _FaultError("`tokens` is not empty. Found []. Drop the row.")
    if len(words) != len(tags):
        raise _FaultError(
            f"`tokens` and `tags` have one length. Found {len(words)} and {len(tags)}. Tag every token once."
        )
    if not all(word.strip() for word in words):
        raise _FaultError("`tokens` holds no empty word. Found one. Drop it and its tag.")
    text = _text(row) if {"input", "text"} & row.fields.keys() else " ".join(words)
    try:
        locate_words(text, words)
    except InputError as error:
        raise _FaultError(str(error)) from error
    return Example(row.where, text, words=words, tags=tuple(_known(tag, "tag", index) for tag in tags))


def _regression(row: Row, index: Mapping[str, int]) -> Example:
    del index
    text, value = _text(row), _required(row, "value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _FaultError(f"`value` is a finite number. Found {_shown(value)}. Write a number without quotes.")
    return Example(row.where, text, value=float(value))


def _known(label: str, kind: str, index: Mapping[str, int]) -> int:
    if label not in index:
        known = ", ".join(list(index)[:10]) + (", ..." if len(index) > 10 else "")
        near = did_you_mean(label, index)
        raise _FaultError(f"a {kind} is one of the card's ({known}). Found `{label}`.{near or ' Add it to the card.'}")
    return index[label]


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


_PARSERS: dict[str, Callable[[Row, Mapping[str, int]], Example]] = {
    "generation": _generation,
    "classification": _classification,
    "token-classification": _token_classification,
    "regression": _regression,
}
