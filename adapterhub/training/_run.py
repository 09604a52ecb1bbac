"""One task's run: base, adapter, loop, measurement, folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from adapterhub.adapter import describe_base
from adapterhub.errors import InputError
from adapterhub.training._adapt import adapted, adapter_config
from adapterhub.training._base import Bases, base_id
from adapterhub.training._batches import by_length, collate, steps_per_epoch
from adapterhub.training._checkpoint import Checkpoint, Progress
from adapterhub.training._loop import train
from adapterhub.training._options import Options
from adapterhub.training._prepare import Prepared
from adapterhub.training._progress import progress_bar, say
from adapterhub.training._save import save_adapter
from adapterhub.training._score import Score, evaluate, exact_match

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """How runs are made.

    Args:
        options: Shape and training options.
        checkpoints: Folder for checkpoints, or None.
        resume: Whether to go on from them.
        progress: Whether to show a bar.
    """

    options: Options
    checkpoints: Path | None
    resume: bool
    progress: bool

    def accelerator(self) -> Accelerator:
        """The entry to accelerate, on the GPU if there is one.

        Raises:
            InputError: If accelerate was launched with several processes.
        """
        wanted = self.options.mixed_precision
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
            AcceleratorState._reset_state()  # it is global, and refuses a second precision in one process
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=wanted)
        if accelerator.num_processes > 1:
            raise InputError(
                f"Training runs in one process. Found {accelerator.num_processes}. Start it without a launcher."
            )
        return accelerator

    def train(
        self, one: Prepared, bases: Bases, accelerator: Accelerator, folder: Path
    ) -> tuple[Progress, Score | None]:
        """Train one task and write its sealed adapter folder.

        Args:
            one: The task's data.
            bases: The bases of this fit.
            accelerator: From `accelerator()`.
            folder: Where to write; must not be there yet.

        Returns:
            What the loop did, and what the kept weights reach on the validation rows.
        """
        options, head, pad = self.options, one.task.head, one.tokenizer.pad_token_id
        set_seed(options.seed)
        base = bases.load(one.path, head, one.labels, pad)
        signature = describe_base(base, base_id(one.path))
        settings = options.settings(steps_per_epoch(len(one.rows), options.batch_size))
        say(self.progress, _summary(one))
        set_seed(options.seed)
        with (
            adapted(base, adapter_config(base, head, **options.shape), one.chain, signature) as model,
            progress_bar(self.progress, one.task.name, settings.steps) as report,
        ):
            progress = train(
                accelerator,
                model,
                one.rows,
                one.validation,
                head=head,
                pad_token_id=pad,
                settings=settings,
                checkpoint=self._checkpoint(one, {**asdict(settings), "base": signature.fingerprint}),
                resume=self.resume,
                report=report,
            )
            score = self._measure(model, one, accelerator)
            save_adapter(model, folder, signature, stack=one.stack, head_scale=one.scale)
        accelerator.free_memory()
        return progress, score

    def _checkpoint(self, one: Prepared, settings: dict[str, object]) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        run = {**settings, **self.options.shape, "data": one.digest, "stack": one.stack}
        return Checkpoint(self.checkpoints / one.task.name, run)

    def _measure(self, model: Any, one: Prepared, accelerator: Accelerator) -> Score | None:
        """The validation loss and metric of the weights that are in the model, in the card's units."""
        if not one.validation:
            return None
        head, size = one.task.head, 2 * self.options.batch_size
        batches = by_length(one.validation, size)
        placed = [collate(rows, head, one.tokenizer.pad_token_id).to(accelerator.device) for rows in batches]
        score = evaluate(model, placed, head)
        if score.metric is not None:
            return Score(score.loss * one.scale**2, score.metric * one.scale)
        with accelerator.autocast():
            share = exact_match(
                model,
                one.tokenizer,
                one.validation,
                new_tokens=one.task.max_new_tokens,
                length=one.length,
                batch_size=size,
            )
        return Score(score.loss, share)


def _summary(one: Prepared) -> str:
    parts = [f"{len(one.rows)} training rows", f"{len(one.validation)} validation rows"]
    if one.duplicates:
        parts.append(f"{one.duplicates} training rows left out: their text is a validation text")
    if one.truncated:
        parts.append(f"{one.truncated} texts lost their beginning to fit {one.length} tokens")
    return f"{one.task.name}: {'; '.join(parts)}"
