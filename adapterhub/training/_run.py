"""One task's run: base, adapter, loop, measurement, folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel

from adapterhub.adapter import BaseSignature
from adapterhub.training._adapt import adapted, adapter_config, memory_saving_layers
from adapterhub.training._balance import Balance
from adapterhub.training._base import Bases
from adapterhub.training._batches import by_length, collate, steps_per_epoch
from adapterhub.training._checkpoint import Checkpoint, Progress
from adapterhub.training._loop import Loop
from adapterhub.training._options import Options
from adapterhub.training._prepare import Prepared
from adapterhub.training._progress import progress_bar, say
from adapterhub.training._quantised import recorded
from adapterhub.training._save import save_adapter
from adapterhub.training._score import Score, evaluate, exact_match
from adapterhub.training._tie import begin_from, fill
from adapterhub.training._unit import Unit

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """How runs are made.

    Args:
        options: Shape and training options.
        checkpoints: Folder for checkpoints, or None.
        resume: Whether to go on from them.
        progress: Whether to show a bar.
        quantisation: How bases are quantised while they are loaded; None for not at all.
    """

    options: Options
    checkpoints: Path | None
    resume: bool
    progress: bool
    quantisation: Any = None

    def accelerator(self) -> Accelerator:
        """The entry to accelerate, on the GPU if there is one; its processes share each batch between them."""
        wanted = self.options.mixed_precision
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
            AcceleratorState._reset_state()  # it is global, and refuses a second precision in one process
        return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=wanted)

    def bases(self) -> Bases:
        """No bases yet; what is loaded is quantised as this run says."""
        return Bases(self.quantisation)

    def config(self, model: PreTrainedModel, head: str, base: BaseSignature) -> PeftConfig:
        """The PEFT configuration of a task's own adapter.

        Args:
            model: The base with its head.
            head: The card's head.
            base: The base.
        """
        return adapter_config(model, head, **self.options.shape, norms=base.norms if self.options.norms else None)

    def unit(
        self, one: Prepared, model: Any, accelerator: Accelerator, own: Mapping[str, Tensor] | None = None
    ) -> Unit:
        """A task with its model, ready to be trained.

        Args:
            one: The task's data.
            model: The base with the adapter.
            accelerator: From `accelerator()`.
            own: The weights that this task alone trains.
        """
        model.eval()  # the base's dropout stays off; the adapter has none
        layers = memory_saving_layers(model) if self.options.gradient_checkpointing else []
        prepared = accelerator.prepare_model(model, evaluation_mode=True)  # gradients are shared without DDP
        pad = one.tokenizer.pad_token_id
        return Unit(one.task.name, prepared, one.task.head, pad, one.rows, one.validation, own or {}, layers)

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
        signature = bases.signature(one.path, base)
        settings = options.settings(steps_per_epoch(len(one.rows), options.batch_size))
        say(self.shown(accelerator), _summary(one))
        set_seed(options.seed)
        with (
            adapted(base, self.config(base, head, signature), one.chain, signature) as model,
            progress_bar(self.shown(accelerator), one.task.name, settings.steps) as report,
        ):
            if one.begin is not None:
                begin_from(model, one.begin[0], signature, head=one.begin[1])
            fill(model, one.initial)
            shared = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            loop = Loop(
                accelerator,
                [self.unit(one, model, accelerator)],
                shared,
                Balance(None, list(shared.values()), {one.task.name: []}, clip=settings.per_task_clip),
                settings,
                checkpoint=self._checkpoint(one, {**asdict(settings), "base": signature.fingerprint}),
            )
            progress = loop.run(self.resume, report)
            score = self._measure(model, one, accelerator)
            save_adapter(model, folder, signature, stack=one.stack, head_scale=one.scale)
        accelerator.free_memory()
        return progress, score

    def shown(self, accelerator: Accelerator) -> bool:
        """Whether this process shows anything."""
        return self.progress and accelerator.is_main_process

    def _checkpoint(self, one: Prepared, settings: dict[str, object]) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        run = {**settings, **self.options.shape, "data": one.digest, "stack": one.stack, "begin": str(one.begin)}
        run |= {"norms": self.options.norms, "quantisation": recorded(self.quantisation)}
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
