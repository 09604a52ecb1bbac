"""The training loop of one adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from adapterhub.errors import AdapterHubError
from adapterhub.training._batches import Batch, by_length, collate, schedule
from adapterhub.training._checkpoint import Checkpoint, Evaluation, Progress
from adapterhub.training._encode import Features
from adapterhub.training._score import batch_loss, evaluate

__all__ = ["DivergedError", "Settings", "train"]


class DivergedError(AdapterHubError, ArithmeticError):
    """The loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class Settings:
    """What a run's arithmetic depends on beside its data; stored in its checkpoint.

    Args:
        learning_rate: Peak of the schedule.
        batch_size: Rows of a step.
        steps: Steps in all.
        every: Steps between evaluations and checkpoints.
        warmup: Share of the steps over which the learning rate rises.
        decay: Shape of its fall to zero, `linear` or `cosine`.
        patience: Evaluations without improvement after which the run ends; None for never.
        seed: Seed of the order and of the fresh weights.
        mixed_precision: accelerate's word, `no` or `bf16`.
    """

    learning_rate: float
    batch_size: int
    steps: int
    every: int
    warmup: float
    decay: str
    patience: int | None
    seed: int
    mixed_precision: str

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        left = max(0.0, (self.steps - step) / max(1, self.steps - rise))
        return left if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def train(
    accelerator: Accelerator,
    model: Any,
    rows: Sequence[Features],
    validation: Sequence[Features],
    *,
    head: str,
    pad_token_id: int,
    settings: Settings,
    checkpoint: Checkpoint | None,
    resume: bool,
    report: Callable[[int, float], None],
) -> Progress:
    """Train the adapter that is on the model; the best weights by validation, else the last, are in it afterwards.

    Args:
        accelerator: Places the model and runs the backward pass.
        model: The base with a fresh adapter.
        rows: Training rows.
        validation: Validation rows; may be empty.
        head: The card's head.
        pad_token_id: The padding token.
        settings: The run's settings.
        checkpoint: Where to save, or None.
        resume: Whether to go on from the checkpoint if there is one.
        report: Called after each step with the number of steps done and a smoothed loss.

    Returns:
        What happened.

    Raises:
        DivergedError: If a loss or gradient is not finite; the last checkpoint is kept.
    """
    loop = _Loop(
        accelerator, model, rows, head=head, pad_token_id=pad_token_id, settings=settings, checkpoint=checkpoint
    )
    loop.validate_on(validation)
    loop.run(resume, report)
    return loop.progress


class _Loop:
    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        rows: Sequence[Features],
        *,
        head: str,
        pad_token_id: int,
        settings: Settings,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.progress = Progress()
        self._accelerator, self._settings, self._checkpoint = accelerator, settings, checkpoint
        self._rows, self._head, self._pad = rows, head, pad_token_id
        model.eval()  # the base's dropout stays off; the adapter has none
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = AdamW(list(self._weights.values()), lr=settings.learning_rate, weight_decay=0.0, fused=True)
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        self._scheduler = LambdaLR(optimizer, settings.factor)
        self._best: dict[str, torch.Tensor] = {}
        self._validation: list[Batch] = []

    def validate_on(self, rows: Sequence[Features]) -> None:
        batches = by_length(rows, 2 * self._settings.batch_size)
        self._validation = [collate(b, self._head, self._pad).to(self._accelerator.device) for b in batches]

    def run(self, resume: bool, report: Callable[[int, float], None]) -> None:
        progress, settings = self.progress, self._settings
        if resume and self._checkpoint is not None and self._checkpoint.path.exists():
            state = self._checkpoint.restore(self._weights, self._optimizer, self._scheduler)
            progress, self._best = self.progress, self._best = state
        begin, smooth = time.monotonic() - progress.seconds, math.nan
        lengths = [len(row.ids) for row in self._rows]
        batches = schedule(lengths, settings.batch_size, settings.seed, progress.step)
        while progress.step < settings.steps and not progress.stopped:
            loss = self._step([self._rows[position] for position in next(batches)])
            progress.step += 1
            progress.losses, progress.since = progress.losses + loss, progress.since + 1
            smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
            report(progress.step, smooth)
            if progress.step % settings.every == 0 or progress.step == settings.steps:
                progress.seconds = time.monotonic() - begin
                self._look()
        with torch.no_grad():
            for name, tensor in self._best.items():
                self._weights[name].copy_(tensor)

    def _step(self, rows: Sequence[Features]) -> float:
        batch = collate(rows, self._head, self._pad).to(self._accelerator.device)
        loss = batch_loss(self._model, batch, self._head)[0]
        self._accelerator.backward(loss)
        norm = self._accelerator.clip_grad_norm_(list(self._weights.values()), 1.0)
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise DivergedError(self._diverged(batch, value))
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return value

    def _diverged(self, batch: Batch, loss: float) -> str:
        names = ", ".join(row.example.where for row in batch.rows[:8]) + (", ..." if len(batch.rows) > 8 else "")
        kept = f" The checkpoint before it is kept in {self._checkpoint.path.parent}." if self._checkpoint else ""
        return (
            f"Step {self.progress.step + 1}: loss and gradient are finite numbers. Found loss {loss} in the batch of "
            f"{names}. Lower the learning rate (now {self._settings.learning_rate}) or look at these rows.{kept}"
        )

    def _look(self) -> None:
        """Evaluate, remember the best weights, decide on stopping, and save."""
        progress = self.progress
        score = evaluate(self._model, self._validation, self._head) if self._validation else None
        found = (score.loss, score.metric) if score else (None, None)
        progress.history.append(Evaluation(progress.step, progress.losses / max(progress.since, 1), *found))
        progress.losses, progress.since = 0.0, 0
        if score is not None:
            key = score.key(self._head)
            if math.isfinite(sum(key)) and (not progress.best or key < progress.best):
                progress.best, progress.misses = key, 0
                self._best = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
            else:
                progress.misses += 1
            progress.stopped = self._settings.patience is not None and progress.misses >= self._settings.patience
        if self._checkpoint is not None:
            self._checkpoint.save(progress, self._weights, self._best, self._optimizer, self._scheduler)
