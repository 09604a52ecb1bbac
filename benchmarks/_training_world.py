"""Real tasks with few examples: cards, rows, a registry of their own, and what its adapters reach on the test rows."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from adapterhub.engine import Engine
from adapterhub.evaluation import MAIN_METRIC, EvaluationRow, Outcome, aligned_tags, row_scores
from adapterhub.model import RoutedModel, load_base
from adapterhub.registry import Registry, bundled_registry
from adapterhub.route import Route
from adapterhub.task import Head, Task
from adapterhub.training import base_id

HEADS: Mapping[str, Head] = {
    "classification": "classification",
    "tagging": "token-classification",
    "generation": "generation",
    "extractive-qa": "generation",
}
VALIDATION = 50  # rows; the same for every method
PART_TEST, PART_VALIDATION = 64, 25  # rows of a part of a task
EXACT = "exact match"  # what the data is measured by, where every other answer is wrong
LONGEST = 128  # tokens of a row
BATCH = 64
Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Given:
    """One task with all its rows; a run takes some of the training rows.

    Args:
        card: The task, in the group.
        metric: `f1` where answers have several words, else its head's main metric.
        train: Training rows.
        validation: Validation rows.
        test: Test rows.
    """

    card: Task
    metric: str
    train: Rows
    validation: Rows
    test: list[EvaluationRow]

    def sample(self, count: int, seed: int) -> Rows:
        """So many training rows; the same for the same seed, whatever the method."""
        order = np.random.default_rng([seed, len(self.train)]).permutation(len(self.train))
        return [self.train[place] for place in order[:count]]


def read_family(data: Path, group: str, names: Sequence[str], test_rows: int) -> list[Given]:
    """Tasks of one group; what is asked in one's test is in no other's training.

    Args:
        data: The folder.
        group: The group.
        names: The tasks' folders in it.
        test_rows: Test rows of a task at most.
    """
    found = [given(data, group, name, test_rows) for name in names]
    asked = {row.text for task in found for row in task.test}
    return [replace(task, train=[row for row in task.train if row["input"] not in asked]) for task in found]


def given(data: Path, group: str, name: str, test_rows: int) -> Given:
    """A task of the data folder as a task of a group.

    Its prompt is the last part of its name, the input and an arrow: a group's adapter has to know whose row it reads.

    Args:
        data: The folder.
        group: The group.
        name: The task's folder in it; with `?field=value` those of its rows.
        test_rows: Test rows at most.
    """
    folder, _, part = name.partition("?")
    about = json.loads((data / folder / "task.json").read_text(encoding="utf-8"))
    head = HEADS[about["kind"]]
    train, validation, test = _splits(data / folder, part)
    short = re.sub(r"^task\d+-", "", part.partition("=")[2].replace("_", "-") or folder.rpartition("/")[2])
    fields: dict[str, object] = {"description": about["description"], "base_model": "_base", "head": head}
    metric = MAIN_METRIC[head]
    if head == "generation":
        texts = [str(row["output"]) for row in train]
        words = about["metric"] != EXACT and fmean(len(text.split()) for text in texts) > 1.5
        metric = "f1" if words else metric
        fields |= {"prompt": short.replace("-", " ") + ": {text}\n=>"}
        fields |= {"max_new_tokens": min(64, 4 + max(len(text) for text in texts) // 2)}
    elif head == "classification":
        fields |= {"labels": about["labels"]}
    else:
        tags = {tag for rows in (train, validation, test) for row in rows for tag in _texts(row["tags"])}
        fields |= {"labels": ["O", *sorted(tags - {"O"})]}
    card = Task.from_dict(f"{group}/{short}", fields)
    return Given(card, metric, train, validation[:VALIDATION], [_row(head, row) for row in test[:test_rows]])


def copied(task: Given) -> float | None:
    """What the input as the answer reaches; None where answers are no text."""
    if task.card.head != "generation":
        return None
    numbers, weights = row_scores(
        task.card.head, [row.text for row in task.test], [row.reference for row in task.test], task.metric
    )
    return sum(numbers) / sum(weights)


@contextmanager
def fresh_registry() -> Iterator[Registry]:
    """A registry with the bundled base and no task."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "_base").symlink_to(Path(bundled_registry()) / "_base", target_is_directory=True)
        yield Registry(root)


class Judge:
    """Asks the adapters of a registry for the test rows; each row comes with its task.

    Args:
        registry: After the training; a later version of an adapter needs another judge.
    """

    def __init__(self, registry: Registry) -> None:
        folder = registry.root / "_base"
        model, tokenizer = load_base(folder)
        self._routed = RoutedModel(Engine(model, model_id=base_id(str(folder))), tokenizer, registry, Told())

    def measure(self, task: Given) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        """The value of a task's metric, and what each row adds and weighs."""
        head, told = task.card.head, []
        for start in range(0, len(task.test), BATCH):
            rows = task.test[start : start + BATCH]
            answers = self._routed.predictions([row.text for row in rows], [task.card.name] * len(rows))
            told += [_answer(head, row, answer.predictions) for row, answer in zip(rows, answers, strict=True)]
        numbers, weights = row_scores(head, told, [row.reference for row in task.test], task.metric)
        return sum(numbers) / sum(weights) if sum(weights) else 0.0, numbers, weights


def outcome(task: Given, judge: Judge, method: str, seed: int, **facts: object) -> Outcome:
    """What a task's adapter reaches.

    Args:
        task: The task.
        judge: Of the registry that holds it.
        method: How it was trained.
        seed: Of the run.
        facts: Further fields of the outcome.
    """
    value, numbers, weights = judge.measure(task)
    return Outcome(task.card.name, method, seed, task.metric, value, numbers, weights, **facts)  # type: ignore[arg-type]


class Told:
    """No text is routed: each comes with its task."""

    def route(self, texts: Sequence[str], k: int = 1) -> list[Route]:
        del k
        return [Route()] * len(texts)


def _answer(head: Head, row: EvaluationRow, answers: Sequence[object]) -> object:
    if head == "token-classification":
        return aligned_tags(row, answers)  # type: ignore[arg-type]
    return str(answers[0]) if answers else ""


def _row(head: Head, row: Mapping[str, object]) -> EvaluationRow:
    if head == "token-classification":
        words = tuple(_texts(row["tokens"]))
        return EvaluationRow(str(row.get("input") or " ".join(words)), _texts(row["tags"]), words)
    if head == "classification":
        return EvaluationRow(str(row["input"]), row["label"])
    return EvaluationRow(str(row["input"]), _texts(row.get("outputs")) or [str(row["output"])])


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _splits(folder: Path, part: str) -> tuple[Rows, Rows, Rows]:
    """Training, validation and test rows; of a part of a task, which has few, test rows beyond its own test split."""
    splits = [_lines(folder / f"{split}.jsonl") for split in ("train", "validation", "test")]
    if not part:
        return splits[0], splits[1], splits[2]
    field, _, value = part.partition("=")
    rows = [row for split in reversed(splits) for row in split if row[field] == value]
    held = [PART_TEST, PART_TEST + PART_VALIDATION]
    return rows[held[1] :], rows[held[0] : held[1]], rows[: held[0]]


def _lines(path: Path) -> Rows:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
