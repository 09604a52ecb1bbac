"""One task inside a run, and the gradient of one of its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adapterhub.training._batches import Batch, collate
from adapterhub.training._encode import IGNORED, Features
from adapterhub.training._score import batch_loss

__all__ = ["Unit", "losses_of", "task_gradient"]


@dataclass(frozen=True)
class Unit:
    """One task of a run.

    Args:
        name: The task.
        model: The base with the adapter, and with the task's head.
        head: The card's head.
        pad: The padding token.
        rows: Training rows; a run takes no batch of a task without any.
        validation: Validation rows; may be empty.
        own: Weights that this task alone trains, such as its head, beside those that all tasks of the run share.
        layers: Layers that keep only their inputs on the way forward and run again on the way back.
        loss: The mean loss of a batch, where it is not that of the head.
        stream: Which random order the rows come in; units of the same rows and stream take the same batches. A
            curriculum is for stream 0, the task that is learned.
    """

    name: str
    model: Any
    head: str
    pad: int
    rows: Sequence[Features]
    validation: Sequence[Features]
    own: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Sequence[nn.Module] = ()
    loss: Callable[[Batch], Tensor] | None = None
    stream: int = 0

    @contextmanager
    def saving_memory(self) -> Iterator[None]:
        """The layers run twice inside the block; transformers asks each layer whether it is training, and only this."""
        for layer in self.layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer.training = False

    def mean_loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""
        return batch_loss(self.model, batch, self.head)[0] if self.loss is None else self.loss(batch)

    def counted(self, rows: Sequence[Features]) -> int:
        """How many labels of rows take part in the loss, which is their mean."""
        if self.head in ("classification", "regression"):
            return len(rows)
        return sum(label != IGNORED for row in rows for label in row.labels)


def task_gradient(
    accelerator: Accelerator, unit: Unit, rows: Sequence[Features], weights: Sequence[Tensor], size: int | None
) -> tuple[float, list[Tensor]]:
    """The mean loss of a batch and its gradient, whatever parts and processes it was cut into.

    Args:
        accelerator: Its processes share the rows between them; each gets the whole gradient.
        unit: The task.
        rows: The batch.
        weights: What to take the gradient of.
        size: Rows that are in memory at once; None for all.

    Returns:
        The loss, and a gradient for each weight, zero where the loss does not touch it.
    """
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    total = unit.counted(rows)
    loss, sums = torch.zeros((), device=accelerator.device), [torch.zeros_like(weight) for weight in weights]
    for first in range(0, len(mine), size or max(len(mine), 1)):
        part = mine[first : first + (size or len(mine))]
        batch = collate(part, unit.head, unit.pad).to(accelerator.device)
        with unit.saving_memory():
            mean = unit.mean_loss(batch) * (unit.counted(part) / total)
            found = torch.autograd.grad(mean, list(weights), allow_unused=True)
        sums = [a if b is None else a + b for a, b in zip(sums, found, strict=True)]
        loss = loss + mean.detach()
    if accelerator.num_processes > 1:
        flat = torch.cat([loss.reshape(1), *(part.flatten() for part in sums)])
        flat = accelerator.reduce(flat, "sum")
        loss, parts = flat[0], torch.split(flat[1:], [part.numel() for part in sums])
        sums = [part.view_as(old) for part, old in zip(parts, sums, strict=True)]
    return loss.item(), sums


@torch.no_grad()
def losses_of(accelerator: Accelerator, unit: Unit, rows: Sequence[Features]) -> list[float]:
    """The loss of each row by itself.

    Args:
        accelerator: Says where the model is.
        unit: The task.
        rows: Its rows.
    """
    return [
        batch_loss(unit.model, collate([row], unit.head, unit.pad).to(accelerator.device), unit.head)[0].item()
        for row in rows
    ]
