"""Rows of several tasks on a command line, and rows that the tasks' own adapters answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.cli._run import Told
from adapterhub.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from adapterhub.model import Prediction, RoutedModel
    from adapterhub.registry import Registry
    from adapterhub.task import Task

__all__ = ["probe_rows", "sources", "training_rows"]

_SPLITS = ("train", "validation", "test")
_SUFFIXES = (".jsonl", ".csv", ".parquet")

Rows = list[dict[str, object]]


def sources(data: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Where the rows of each task are, by split.

    Args:
        data: `NAME=FILE`, whose split is the file's stem if that is one and otherwise `train`; `NAME=FOLDER` with
            `train.jsonl` and so on; or a folder with such a folder for each of `names`.
        names: The tasks; none for those that `data` names.

    Raises:
        InputError: If a part names no task of `names`, a split twice, or nothing that is there; or a task has no rows.
    """
    found: dict[str, dict[str, str]] = {}
    faults = []
    for part in data:
        name, sign, place = part.partition("=")
        wanted = {name: Path(place)} if sign else {task: Path(part) / task for task in names}
        for task, path in wanted.items():
            if names and task not in names:
                faults.append(f"{part} names {task}, which is not asked for.{did_you_mean(task, names)}")
            there = _splits(path)
            twice = found.get(task, {}).keys() & there.keys()
            faults += [f"{part}: {task} has rows of the split {split} already" for split in sorted(twice)]
            found.setdefault(task, {}).update(there)
    faults += [f"no rows of {name}" for name in (names or found) if not found.get(name)]
    if faults or not found:
        listed = "; ".join(faults) or "none"
        raise InputError(
            f"Rows are given by task: --data NAME=FILE, or --data FOLDER with NAME/train.jsonl. Found {listed}."
        )
    return {name: found[name] for name in (names or found)}


def training_rows(data: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Where the training rows of each task are; arguments and errors are those of `sources`.

    Raises:
        InputError: If a task has none.
    """
    found = sources(data, names)
    bare = [name for name, splits in found.items() if "train" not in splits]
    if bare:
        raise InputError(f"A task has training rows. Found none of {', '.join(bare)}. Give --data NAME=train.jsonl.")
    return {name: splits["train"] for name, splits in found.items()}


def probe_rows(registry: Registry, names: Sequence[str], probe: Path) -> dict[str, Rows]:
    """The same inputs for every task, each answered by the task's own adapter.

    Args:
        registry: Where the tasks are.
        names: Tasks of one base, each with an adapter.
        probe: Rows with `input` or `text`.

    Raises:
        InputError: If a task has no adapter, the tasks' bases differ, or no input is left that all tasks answer.
        DataError: If the file cannot be read.
    """
    from adapterhub.model import RoutedModel

    tasks = {name: registry[name] for name in names}
    bare = [name for name, task in tasks.items() if task.adapter is None]
    bases = sorted({registry.base_path(name) for name in names})
    if bare or len(bases) != 1:
        raise InputError(
            "A probe is answered by the adapters of tasks of one base model. Found "
            f"{'no adapter of ' + ', '.join(bare) if bare else ', '.join(bases) or 'no task'}. Next: adapterhub train"
        )
    texts = _texts(probe)
    model = RoutedModel.from_pretrained(bases[0], registry, router=Told(names[0]))
    rows = {name: [_row(task, p) for p in _answered(model, texts, name)] for name, task in tasks.items()}
    kept = [place for place in range(len(texts)) if all(found[place] for found in rows.values())]
    if not kept:
        raise InputError(f"A probe has inputs that all tasks answer. Found none in {probe}. Take other texts.")
    return {name: [found[place] for place in kept] for name, found in rows.items()}


def _splits(path: Path) -> dict[str, str]:
    if path.is_file():
        return {path.stem if path.stem in _SPLITS else "train": str(path)}
    places = ((split, path / f"{split}{suffix}") for suffix in _SUFFIXES for split in _SPLITS)
    return {split: str(place) for split, place in places if place.is_file()}


def _texts(probe: Path) -> list[str]:
    """The different texts of a file, in order."""
    from adapterhub.training import read_rows

    found = (row.fields.get("input", row.fields.get("text")) for row in read_rows(probe, "probe"))
    return list(dict.fromkeys(text for text in found if isinstance(text, str) and text.strip()))


def _answered(model: RoutedModel, texts: Sequence[str], name: str, size: int = 32) -> list[Prediction]:
    parts = [texts[first : first + size] for first in range(0, len(texts), size)]
    return [p for part in parts for p in model.predictions(part, [name] * len(part))]


def _row(task: Task, prediction: Prediction) -> dict[str, object]:
    """An answer as a row to train on; empty where there is nothing to learn from."""
    from adapterhub.evaluation import EvaluationRow, aligned_tags
    from adapterhub.training import split_words

    if task.head == "token-classification":
        words = tuple(word for word, _, _ in split_words(prediction.input))
        tags = aligned_tags(EvaluationRow(prediction.input, None, words), prediction.predictions)
        return {"input": prediction.input, "tokens": words, "tags": tags} if words else {}
    answer = prediction.predictions[0] if prediction.predictions else ""
    field = {"generation": "output", "classification": "label"}.get(task.head, "value")
    return {"input": prediction.input, field: answer} if not isinstance(answer, str) or answer.strip() else {}
