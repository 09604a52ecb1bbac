"""The gradients of tasks on one fresh shared LoRA adapter, a minibatch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW

from adapterhub.errors import InputError
from adapterhub.task import Task
from adapterhub.training._adapt import adapted, adapter_config
from adapterhub.training._base import HEADS, Bases
from adapterhub.training._batches import Batch, collate
from adapterhub.training._encode import Features
from adapterhub.training._prepare import Prepared, prepare
from adapterhub.training._rows import DataSource
from adapterhub.training._score import batch_loss

__all__ = ["TaskGradients", "gradients_of", "input_hash"]

_HEAD_PASSES = 5
_HEAD_RATE = 1e-2


@dataclass(frozen=True, eq=False)
class TaskGradients:
    """One task's gradients on shared parameters.

    Args:
        task: Its name.
        matrix: (minibatches, parameters), float32: the gradient of the mean loss of each minibatch.
        inputs: The hash of each row's input, by minibatch.
    """

    task: str
    matrix: NDArray[np.float32]
    inputs: tuple[tuple[str, ...], ...]

    @property
    def rows(self) -> int:
        """Number of rows behind the gradients."""
        return sum(map(len, self.inputs))


def input_hash(text: str) -> str:
    """16 hexadecimal digits of a text's sha256; texts that differ in white space alone are one input."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def gradients_of(
    tasks: Mapping[str, tuple[Task, str]],
    data: Mapping[str, DataSource],
    *,
    rows: int = 512,
    batch_size: int = 8,
    rank: int = 8,
    targets: Sequence[str] | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> list[TaskGradients]:
    """Take every task's gradients where training of a shared adapter would begin.

    In a fresh LoRA adapter B is 0, so A has no gradient, and that of B is the weights' own gradient, projected by A:
    the same random A for all tasks. Rows are chosen and put in order by the hash of their input, so that minibatch i of
    two tasks with the same inputs holds the same inputs. A head would begin at random too, and so would the gradient
    that it hands down; it is fitted first, on the base as it is.

    Args:
        tasks: Card, and id or folder of the base, by name. All are of one base.
        data: Rows by name.
        rows: Rows of a task at most. What is left over behind the last whole minibatch is not used.
        batch_size: Rows of a minibatch.
        rank: LoRA's rank; the number of parameters grows with it.
        targets: Suffixes of module names; by default all linear modules.
        max_length: The most tokens of a row.
        seed: Seed of A and of the heads.

    Returns:
        The gradients of each task, in the order of `tasks`.

    Raises:
        InputError: If the tasks' bases differ, or a task has no whole minibatch.
        DataError: If rows are faulty.
    """
    paths = sorted({path for _, path in tasks.values()})
    if len(paths) != 1:
        raise InputError(f"Tasks that share an adapter have one base model. Found {', '.join(paths) or 'no task'}.")
    prepared = prepare(tasks, data, dict.fromkeys(tasks, 0.0), validation_rows=1, max_length=max_length)
    batches = {name: _minibatches(one.rows, rows, batch_size) for name, one in prepared.items()}
    empty = [f"{name} ({len(prepared[name].rows)})" for name, found in batches.items() if not found]
    if empty:
        raise InputError(f"A task has at least one minibatch of {batch_size} rows. Found fewer of {', '.join(empty)}.")
    bases, shared = Bases(), _SharedA()
    return [
        TaskGradients(
            name,
            np.stack(list(_gradients(one, batches[name], bases, shared, rank, targets, seed))),
            tuple(tuple(input_hash(row.example.text) for row in batch) for batch in batches[name]),
        )
        for name, one in prepared.items()
    ]


def _minibatches(rows: Sequence[Features], most: int, size: int) -> list[list[Features]]:
    """Whole minibatches of the rows whose inputs have the smallest hashes, in that order."""
    chosen = sorted(rows, key=lambda row: input_hash(row.example.text))[:most]
    return [chosen[first : first + size] for first in range(0, len(chosen) - size + 1, size)]


class _SharedA:
    """The first task's random A, for all others."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}

    def put_into(self, model: Any) -> list[Tensor]:
        """Give a model this A, and return its B in the order of the first model."""
        down: dict[str, Tensor] = {}
        up: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            for part, found in ((".lora_A.", down), (".lora_B.", up)):
                if part in name:
                    found[name.split(part)[0].removeprefix(f"base_model.model.{_prefix(model)}")] = parameter
        if not self._values:
            self._values = {name: parameter.detach().clone() for name, parameter in down.items()}
        if down.keys() != self._values.keys():
            odd = ", ".join(sorted(down.keys() ^ self._values.keys())[:5])
            raise InputError(f"Tasks that share an adapter have it at the same modules. Found a difference at {odd}.")
        with torch.no_grad():
            for name, value in self._values.items():
                down[name].copy_(value)
        return [up[name] for name in self._values]


def _prefix(model: Any) -> str:
    inner = model.get_base_model()
    return f"{inner.base_model_prefix}." if inner.base_model is not inner else ""


def _gradients(
    one: Prepared,
    batches: Sequence[Sequence[Features]],
    bases: Bases,
    shared: _SharedA,
    rank: int,
    targets: Sequence[str] | None,
    seed: int,
) -> Iterator[NDArray[np.float32]]:
    head = one.task.head
    set_seed(seed)
    base = bases.load(one.path, head, one.labels, one.tokenizer.pad_token_id)
    config = adapter_config(base, head, method="lora", rank=rank, alpha=None, targets=targets)
    set_seed(seed)
    with adapted(base, config) as model:
        model.eval()
        weights = shared.put_into(model)
        placed = [collate(rows, head, one.tokenizer.pad_token_id).to(model.device) for rows in batches]
        _fit_head(model, placed, head)
        for batch in placed:
            loss = batch_loss(model, batch, head)[0]
            found = torch.autograd.grad(loss, weights)
            yield torch.cat([part.flatten() for part in found]).float().cpu().numpy()


def _fit_head(model: Any, batches: Sequence[Batch], head: str) -> None:
    """Train a fresh head, and nothing else, for a few passes."""
    own = [value for name, value in model.named_parameters() if value.requires_grad and _is_head(name)]
    if not own:
        return
    optimizer = AdamW(own, lr=_HEAD_RATE, weight_decay=0.0)
    for _ in range(_HEAD_PASSES):
        for batch in batches:
            found = torch.autograd.grad(batch_loss(model, batch, head)[0], own)
            for value, gradient in zip(own, found, strict=True):
                value.grad = gradient
            optimizer.step()


def _is_head(name: str) -> bool:
    return any(part in HEADS for part in name.split("."))
