"""All that a run needs of its data, read and checked before any training begins."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from adapterhub.errors import InputError
from adapterhub.registry import Below
from adapterhub.task import Task
from adapterhub.training._base import context_length, is_decoder, load_tokenizer
from adapterhub.training._encode import Features, RowEncoder
from adapterhub.training._examples import Example, check_rows, data_error
from adapterhub.training._rows import DataSource, read_rows
from adapterhub.training._split import sample, split, without

__all__ = ["Prepared", "open_task", "prepare"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """One task's data as token ids.

    Args:
        task: The card.
        path: Id or folder of the base.
        tokenizer: The base's tokenizer.
        length: The most tokens of a row.
        rows: Training rows.
        validation: Validation rows.
        truncated: Texts that lost their beginning.
        duplicates: Training rows left out because their text is a validation text.
        scale: By what the values of a regression are divided for training; 1 for the other heads.
        chain: The adapters that the new one will stand on.
        initial: Weights to begin with instead of fresh ones, by PEFT's name.
        begin: An adapter to begin with, and whether its head is taken over too.
    """

    task: Task
    path: str
    tokenizer: Any
    length: int
    rows: Sequence[Features]
    validation: Sequence[Features]
    truncated: int
    duplicates: int
    scale: float
    chain: tuple[Below, ...] = ()
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    begin: tuple[Path, bool] | None = None

    @property
    def stack(self) -> dict[str, str]:
        """Content hash of each adapter of the chain, by task."""
        return {below.name: below.sha256 for below in self.chain}

    @property
    def labels(self) -> int:
        """Outputs of the head; 0 for generation."""
        return {"generation": 0, "regression": 1}.get(self.task.head, len(self.task.labels))

    @property
    def digest(self) -> str:
        """Hex sha256 of the rows as the model reads them."""
        content = [
            [[r.ids, r.labels, r.example.label, r.example.value] for r in p] for p in (self.rows, self.validation)
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def prepare(
    tasks: Mapping[str, tuple[Task, str]],
    data: Mapping[str, DataSource],
    validation: Mapping[str, float | DataSource],
    *,
    validation_rows: int,
    max_length: int | None,
) -> dict[str, Prepared]:
    """Read, check, split and encode the data of all tasks.

    Args:
        tasks: Card, and id or folder of the base, by name.
        data: Training data by name.
        validation: Share to set aside, or validation data, by name.
        validation_rows: Validation rows at most.
        max_length: The most tokens of a row; by default the base's context.

    Raises:
        DataError: If rows are faulty, with the faults of all tasks.
        InputError: If a base's configuration or tokenizer cannot be loaded.
    """
    faults: list[str] = []
    parts = {}
    for name, (task, _) in tasks.items():
        parts[name] = _examples(task, data[name], validation[name], validation_rows, faults)
    if faults:
        raise data_error(faults)
    prepared = {}
    for name, (task, path) in tasks.items():
        prepared[name] = _encoded(task, path, parts[name], max_length, faults)
    if faults:
        raise data_error(faults)
    return prepared


def _examples(
    task: Task, source: DataSource, validation: float | DataSource, most: int, faults: list[str]
) -> tuple[list[Example], list[Example], int]:
    """Training examples, validation examples, and the number of training rows that were left out."""
    examples, found = check_rows(task, read_rows(source, task.name))
    if not examples and not found:
        found = [f"{task.name}: training data has at least one row. Found none. Add rows."]
    faults += found
    if isinstance(validation, int | float):
        if validation == 0 or found:
            return examples, [], 0
        kept, aside = split(examples, validation, most)
        return kept, sample(aside, most), 0
    aside, found = check_rows(task, read_rows(validation, f"{task.name} validation", "validation"))
    kept = without(examples, aside)
    if examples and not kept and not found:
        found = [f"{task.name}: no training row is left besides those of the validation data. Add rows."]
    faults += found
    return kept, sample(aside, most), len(examples) - len(kept)


def _encoded(
    task: Task,
    path: str,
    parts: tuple[list[Example], list[Example], int],
    max_length: int | None,
    faults: list[str],
) -> Prepared:
    examples, validation, duplicates = parts
    _warn_of_one_label(task, examples)
    tokenizer, length, encode = open_task(task, path, max_length)
    scale = 1.0
    if task.head == "regression":
        scale = math.sqrt(sum(example.value**2 for example in examples) / len(examples)) or 1.0
        examples = [replace(example, value=example.value / scale) for example in examples]
        validation = [replace(example, value=example.value / scale) for example in validation]
    rows, found = encode(examples)
    aside, more = encode(validation)
    faults += found + more
    return Prepared(task, path, tokenizer, length, rows, aside, encode.truncated, duplicates, scale)


def _warn_of_one_label(task: Task, examples: Sequence[Example]) -> None:
    """Tell where training rows hold one label alone: an adapter learns from them to give it always."""
    seen = {label for example in examples for label in example.tags or (example.label,)}
    if len(seen) == 1 and len(task.labels) > 1:
        _LOG.warning(
            "%s: training rows are of several labels. Found `%s` alone in %d rows, which teach to answer it always. "
            "Add rows of the others, or look at them with `adapterhub doctor`.",
            task.name,
            task.labels[min(seen)],
            len(examples),
        )


def open_task(task: Task, path: str, max_length: int | None) -> tuple[Any, int, RowEncoder]:
    """The base's tokenizer, the most tokens of a row, and what turns the task's examples into rows.

    Args:
        task: The card.
        path: Id or folder of the base.
        max_length: The most tokens of a row; by default the base's context.

    Raises:
        InputError: If the base's configuration or tokenizer cannot be loaded, or has no end token to generate with.
    """
    config, tokenizer = _config(path), load_tokenizer(path)
    if task.head == "generation" and tokenizer.eos_token_id is None:
        raise InputError(f"Generation needs a tokenizer with an end token. That of {path} has none. Set `eos_token`.")
    context = context_length(config, tokenizer)
    length = context if max_length is None else min(max_length, context)
    return tokenizer, length, RowEncoder(tokenizer, task, length, last=is_decoder(config))


def _config(path: str) -> Any:
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"Base model {path} cannot be loaded ({reason}). Check `base_model` in the card.") from error
