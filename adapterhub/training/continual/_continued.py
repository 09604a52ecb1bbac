"""Training one adapter on, for a new task that shares it with older ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftConfig, set_peft_model_state_dict
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from adapterhub.adapter import describe_base, read_adapter, stored_tensors
from adapterhub.errors import InputError
from adapterhub.training._adapt import adapted
from adapterhub.training._base import Bases, base_id
from adapterhub.training._batches import Batch, collate, schedule, steps_per_epoch
from adapterhub.training._checkpoint import Evaluation, Progress, Track
from adapterhub.training._encode import Features
from adapterhub.training._loop import DivergedError
from adapterhub.training._prepare import Prepared
from adapterhub.training._progress import progress_bar
from adapterhub.training._run import Run
from adapterhub.training._save import save_adapter
from adapterhub.training._score import Score, batch_loss
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit
from adapterhub.training.continual._ewc import EWC, fisher_diagonal
from adapterhub.training.continual._step import SharedStep
from adapterhub.training.optimisers import optimizer_of, parameter_groups

__all__ = ["continue_adapter"]


def continue_adapter(
    run: Run,
    one: Prepared,
    memories: Mapping[str, Sequence[Features]],
    start: Path,
    folder: Path,
    *,
    sha256: str | None,
    keep: Collection[str],
    strength: float,
) -> tuple[Progress, Score | None]:
    """Train an adapter on with a new task's rows and write the sealed folder.

    Args:
        run: The trainer's run; its rank, method and targets are not asked, the adapter has its own.
        one: The new task's data.
        memories: Remembered rows of each task that the adapter serves already.
        start: The adapter's folder.
        folder: Where to write; must not be there yet.
        sha256: The content hash of `start`.
        keep: Names of `KEEPS`.
        strength: How much the old tasks count: λ of whatever keeps them.

    Returns:
        What happened, and what the weights reach on the new task's validation rows.

    Raises:
        DivergedError: If a loss or a gradient is not finite.
        IncompatibleAdapterError: If the adapter does not fit the base.
        InputError: If there are several processes.
        IntegrityError: If its files are not whole.
    """
    options, accelerator = run.options, run.accelerator()
    if accelerator.num_processes > 1:
        raise InputError(f"An adapter is trained on in one process. Found {accelerator.num_processes}. Start one.")
    set_seed(options.seed)
    base = Bases().load(one.path, one.task.head, one.labels, one.tokenizer.pad_token_id)
    signature = describe_base(base, base_id(one.path))
    read_adapter(start, signature, sha256=sha256)  # strictly, before anything is trained
    config = PeftConfig.from_pretrained(str(start))
    config.inference_mode, config.base_model_name_or_path = False, None
    settings = options.settings(steps_per_epoch(len(one.rows), options.batch_size))
    with adapted(base, config) as model, progress_bar(run.progress, one.task.name, settings.steps) as report:
        set_peft_model_state_dict(model, stored_tensors(start), adapter_name="default")
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        continued = _Continued(accelerator, run.unit(one, model, accelerator), trained, settings)
        progress = continued.run(memories, keep, strength, report)
        score = run._measure(model, one, accelerator)
        save_adapter(model, folder, signature, head_scale=one.scale)
    accelerator.free_memory()
    return progress, score


class _Continued:
    def __init__(self, accelerator: Accelerator, unit: Unit, weights: Mapping[str, Tensor], settings: Settings) -> None:
        self._unit, self._device, self._settings = unit, accelerator.device, settings
        self._weights = list(weights.values())
        groups = parameter_groups(weights.items(), settings.learning_rate, lora_plus_ratio=settings.lora_plus_ratio)
        self._optimizer = optimizer_of(settings.optimiser, groups)
        self._scheduler = LambdaLR(self._optimizer, settings.factor)

    def run(
        self,
        memories: Mapping[str, Sequence[Features]],
        keep: Collection[str],
        strength: float,
        report: Callable[[int, float], None],
    ) -> Progress:
        step = SharedStep(
            self._weights,
            self._loss,
            logits_of=lambda batch: batch_loss(self._unit.model, batch, self._unit.head)[1],
            keep=keep,
            ewc=self._springs(memories, strength) if "ewc" in keep else None,
            strength=strength,
        )
        track = Track()
        progress = Progress(tracks={self._unit.name: track})
        begin, smooth = time.monotonic(), math.nan
        batches, replays = self._batches(self._unit.rows, 0), self._replays(memories, keep)
        for number in range(1, self._settings.steps + 1):
            loss = self._step(step, next(batches), {name: next(stream) for name, stream in replays.items()})
            progress.step = track.batches = number
            track.losses, track.since = track.losses + loss, track.since + 1
            smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
            report(number, smooth)
            if number % self._settings.every == 0 or number == self._settings.steps:
                track.history.append(Evaluation(number, track.losses / track.since, None, None))
                track.losses, track.since = 0.0, 0
        progress.seconds = time.monotonic() - begin
        return progress

    def _step(self, step: SharedStep[Batch], batch: Batch, replays: Mapping[str, Batch]) -> float:
        loss, bound = step(batch, replays).item(), self._settings.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self._weights, math.inf if bound is None else bound)
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            rows = [row for one in (batch, *replays.values()) for row in one.rows]
            names = ", ".join(row.example.where for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
            raise DivergedError(
                f"Loss and gradient are finite numbers. Found loss {loss} in the batch of {names}. Lower the learning "
                f"rate (now {self._settings.learning_rate}) or look at these rows. The adapter is as it was."
            )
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return loss

    def _replays(self, memories: Mapping[str, Sequence[Features]], keep: Collection[str]) -> dict[str, Iterator[Batch]]:
        """A stream of each old task for GEM, one of all of them together for replay and distillation."""
        if "gem" in keep:
            return {name: self._batches(rows, number) for number, (name, rows) in enumerate(memories.items(), 1)}
        together = [row for rows in memories.values() for row in rows]
        return {"memory": self._batches(together, 1)} if together and {"replay", "distillation"} & set(keep) else {}

    def _batches(self, rows: Sequence[Features], stream: int) -> Iterator[Batch]:
        lengths, settings = [len(row.ids) for row in rows], self._settings
        for places in schedule(lengths, settings.batch_size, settings.seed + stream):
            yield self._collate([rows[place] for place in places])

    def _collate(self, rows: Sequence[Features]) -> Batch:
        return collate(rows, self._unit.head, self._unit.pad).to(self._device)

    def _loss(self, batch: Batch) -> Tensor:
        return batch_loss(self._unit.model, batch, self._unit.head)[0]

    def _springs(self, memories: Mapping[str, Sequence[Features]], strength: float) -> EWC:
        """EWC at the weights as they are, with the Fisher of each old task from its remembered rows."""
        ewc = EWC(strength)
        for rows in memories.values():
            singles = (self._collate([row]) for row in rows)
            ewc.add_task(self._weights, fisher_diagonal(self._log_likelihood, singles, self._weights))
        return ewc

    def _log_likelihood(self, row: Batch) -> Tensor:
        loss, _, labels = batch_loss(self._unit.model, row, self._unit.head)
        return -loss * labels.numel()
