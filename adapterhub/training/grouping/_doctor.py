"""What is wrong with a task's data before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from adapterhub.errors import DataError
from adapterhub.task import Task
from adapterhub.training._examples import Example, check_rows
from adapterhub.training._rows import DataSource, Row, read_rows
from adapterhub.training.grouping._gradients import input_hash

__all__ = ["SPLITS", "Finding", "Kind", "examine"]

Kind: TypeAlias = Literal[
    "too-little", "imbalance", "duplicates", "contradiction", "leakage", "labels", "rows", "negative-affinity"
]
SPLITS = ("train", "validation", "test")
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        task: The task, or two with a comma between them.
        kind: What kind of thing.
        count: Rows or labels concerned.
        text: The rule, what was found, and what to do.
    """

    task: str
    kind: Kind
    count: int
    text: str


@dataclass(frozen=True)
class _Split:
    """One split as read: examples without a fault, and the others' faults."""

    name: str
    examples: Sequence[Example]
    odd: Sequence[str]
    faults: Sequence[str]


def examine(
    task: Task,
    data: Mapping[str, DataSource],
    *,
    min_rows: int = 50,
    min_per_label: int = 5,
    max_ratio: float = 10.0,
    max_duplicates: float = 0.01,
) -> list[Finding]:
    """Look over one task's data.

    Args:
        task: The card.
        data: Sources by split: `train`, `validation`, `test`.
        min_rows: Fewest training rows with different inputs.
        min_per_label: Fewest training rows of each of the card's labels (classification).
        max_ratio: The most frequent label may be so many times as frequent as the rarest (classification).
        max_duplicates: Share of the training rows that may repeat another one.

    Returns:
        What was found: at most one finding of each kind and split.

    Raises:
        DataError: If a split is unknown, or a source cannot be read at all.
    """
    unknown = sorted(set(data) - set(SPLITS))
    if unknown:
        raise DataError(f"{task.name}: splits are {', '.join(SPLITS)}. Found {', '.join(unknown)}. Rename them.")
    splits = [_read(task, name, data[name]) for name in SPLITS if name in data]
    found: list[Finding] = []
    for split in splits:
        found += _row_findings(task, split)
        if split.name == "train":
            found += _amounts(task, split.examples, min_rows, min_per_label, max_ratio)
            found += _repeats(task, split.examples, max_duplicates)
    return found + list(_leaks(task, splits))


def _read(task: Task, name: str, source: DataSource) -> _Split:
    rows = read_rows(source, f"{task.name} {name}", name)
    odd = [row for row in rows if _odd_labels(task, row)]
    examples, faults = check_rows(task, [row for row in rows if not _odd_labels(task, row)])
    return _Split(name, examples, [f"{row.where}: {', '.join(_odd_labels(task, row))}" for row in odd], faults)


def _odd_labels(task: Task, row: Row) -> list[str]:
    """Labels of a row that the card does not have; what is no text at all is another kind of fault."""
    if task.head == "classification":
        found: object = [row.fields.get("label")]
    elif task.head == "token-classification":
        found = row.fields.get("tags")
    else:
        return []
    labels = dict.fromkeys(found) if isinstance(found, list | tuple) else {}
    return [label for label in labels if isinstance(label, str) and label not in task.labels]


def _row_findings(task: Task, split: _Split) -> Iterator[Finding]:
    if split.odd:
        yield Finding(
            task.name,
            "labels",
            len(split.odd),
            f"{task.name} {split.name}: labels are the card's. Found others in {len(split.odd)} rows: "
            f"{_some(split.odd)}. Correct the rows, or add the labels to the card.",
        )
    if split.faults:
        yield Finding(
            task.name,
            "rows",
            len(split.faults),
            f"{task.name} {split.name}: rows can be read. Found {len(split.faults)} that cannot: {_some(split.faults)}",
        )


def _amounts(
    task: Task, examples: Sequence[Example], min_rows: int, min_per_label: int, max_ratio: float
) -> Iterator[Finding]:
    inputs = len({input_hash(example.text) for example in examples})
    if inputs < min_rows:
        yield Finding(
            task.name,
            "too-little",
            inputs,
            f"{task.name}: training takes at least {min_rows} different inputs. Found {inputs}. Add rows.",
        )
    if task.head != "classification":
        return
    seen = Counter(example.label for example in examples)
    counts = {label: seen[place] for place, label in enumerate(task.labels)}
    rare = {label: count for label, count in counts.items() if count < min_per_label}
    ratio = max(counts.values()) / max(1, min(counts.values()))
    if rare or ratio > max_ratio:
        listed = ", ".join(f"{label} {count}" for label, count in sorted(counts.items(), key=lambda item: item[1])[:5])
        yield Finding(
            task.name,
            "imbalance",
            len(rare) or 1,
            f"{task.name}: each label has at least {min_per_label} rows, and none more than {max_ratio:g} times as "
            f"many as another. Found {listed}{', …' if len(counts) > 5 else ''}; at most {max(counts.values())}. "
            "Add rows of the rare labels, or oversample them.",
        )


def _repeats(task: Task, examples: Sequence[Example], most: float) -> Iterator[Finding]:
    by_input: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_input[input_hash(example.text)].append(example)
    answers = {key: Counter(map(_answer, same)) for key, same in by_input.items()}
    again = [key for key, found in answers.items() if max(found.values()) > 1]
    repeated = sum(sum(found.values()) - len(found) for found in answers.values())
    if repeated > most * len(examples):
        yield Finding(
            task.name,
            "duplicates",
            repeated,
            f"{task.name}: at most {most:.0%} of the training rows repeat another one. Found {repeated} of "
            f"{len(examples)}: {_some([by_input[key][0].where for key in again])}. Remove them.",
        )
    # Texts may have several right answers; a label, a number or tags may not.
    split = [] if task.head == "generation" else [key for key, found in answers.items() if len(found) > 1]
    if split:
        yield Finding(
            task.name,
            "contradiction",
            len(split),
            f"{task.name}: one input has one answer. Found {len(split)} inputs with several: "
            f"{_some([' and '.join(e.where for e in by_input[key][:2]) for key in split])}. Decide on one.",
        )


def _leaks(task: Task, splits: Sequence[_Split]) -> Iterator[Finding]:
    for place, split in enumerate(splits):
        for other in splits[place + 1 :]:
            inputs = {input_hash(example.text) for example in split.examples}
            shared = [example.where for example in other.examples if input_hash(example.text) in inputs]
            if shared:
                yield Finding(
                    task.name,
                    "leakage",
                    len(shared),
                    f"{task.name}: an input is in one split. Found {len(shared)} rows of {other.name} whose input is "
                    f"in {split.name} too: {_some(shared)}. Remove them from one of the two.",
                )


def _answer(example: Example) -> tuple[object, ...]:
    return example.answers, example.label, example.tags, example.value


def _some(items: Sequence[str]) -> str:
    return "; ".join(items[:_SHOWN]) + (f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
