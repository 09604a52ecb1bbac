"""Training one adapter on, for a new task that shares it with older ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor

from adapterhub.adapter import BaseSignature, read_adapter, stored_tensors
from adapterhub.training._adapt import adapted
from adapterhub.training._balance import Balance
from adapterhub.training._batches import Batch, collate, steps_per_epoch
from adapterhub.training._checkpoint import Checkpoint, Progress
from adapterhub.training._encode import Features
from adapterhub.training._loop import Loop
from adapterhub.training._prepare import Prepared
from adapterhub.training._progress import progress_bar
from adapterhub.training._quantised import recorded
from adapterhub.training._run import Run
from adapterhub.training._save import save_adapter
from adapterhub.training._score import Score, batch_loss
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit
from adapterhub.training.continual._ewc import EWC, fisher_diagonal
from adapterhub.training.continual._keeping import Distilled, Keeping

__all__ = ["Older", "continue_adapter"]


@dataclass(frozen=True)
class Older:
    """What is known of the tasks that an adapter serves already, and how much it counts.

    Args:
        memories: Remembered rows by task.
        learned: The adapter as it was when a task was learned, its folder and content hash by task; for EWC.
        measured: Tasks with validation rows, to look at on the way and to measure at the end.
        keep: Names of `KEEPS`, each with its λ.
    """

    memories: Mapping[str, Sequence[Features]]
    learned: Mapping[str, tuple[Path, str | None]]
    measured: Sequence[Prepared]
    keep: Mapping[str, float]

    def record(self, one: Prepared) -> dict[str, object]:
        """What a checkpoint remembers of it.

        Args:
            one: The new task's data.
        """
        memories = {name: replace(one, rows=rows, validation=()).digest for name, rows in self.memories.items()}
        measured = {other.task.name: other.digest for other in self.measured}
        learned = {name: sha256 for name, (_, sha256) in self.learned.items()}
        return {"memories": memories, "learned": learned, "measured": measured, "keep": dict(self.keep)}


def continue_adapter(
    run: Run, one: Prepared, older: Older, start: Path, folder: Path, accelerator: Accelerator, *, sha256: str | None
) -> tuple[Progress, dict[str, Score]]:
    """Train an adapter on with a new task's rows and write the sealed folder.

    Args:
        run: The trainer's run; its rank, method and targets are not asked, the adapter has its own.
        one: The new task's data.
        older: The tasks that the adapter serves already.
        start: The adapter's folder.
        folder: Where to write; must not be there yet.
        accelerator: Where to train.
        sha256: The content hash of `start`.

    Returns:
        What happened, and what the weights reach on the validation rows of each task that has some.

    Raises:
        DivergedError: If a loss or a gradient is not finite; the last checkpoint is kept.
        IncompatibleAdapterError: If the adapter does not fit the base.
        InputError: If a checkpoint is another run's.
        IntegrityError: If its files are not whole, or the disk is full.
    """
    options = run.options
    set_seed(options.seed)
    bases = run.bases()
    base = bases.load(one.path, one.task.head, one.labels, one.tokenizer.pad_token_id)
    signature = bases.signature(one.path, base)
    for version, content in ((start, sha256), *older.learned.values()):
        read_adapter(version, signature, sha256=content)  # strictly, before anything is trained
    config = PeftConfig.from_pretrained(str(start))
    config.inference_mode, config.base_model_name_or_path = False, None
    settings = options.settings(steps_per_epoch(len(one.rows), options.batch_size))
    with adapted(base, config) as model, progress_bar(run.shown(accelerator), one.task.name, settings.steps) as report:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        unit, weights = run.unit(one, model, accelerator), list(trained.values())
        ewc = _springs(unit, model, weights, older, accelerator.device) if "ewc" in older.keep else None
        set_peft_model_state_dict(model, stored_tensors(start), adapter_name="default")
        units, keeping = _keeping(unit, weights, older, ewc)
        balance = Balance(keeping, weights, {u.name: [] for u in units}, clip=settings.per_task_clip)
        checkpoint = _checkpoint(run, settings, one, older, signature, sha256)
        progress = Loop(accelerator, units, trained, balance, settings, checkpoint=checkpoint).run(run.resume, report)
        found = {each.task.name: run._measure(model, each, accelerator) for each in (one, *older.measured)}
        save_adapter(model, folder, signature, head_scale=one.scale)
    accelerator.free_memory()
    return progress, {name: score for name, score in found.items() if score is not None}


def _checkpoint(
    run: Run, settings: Settings, one: Prepared, older: Older, base: BaseSignature, start: str | None
) -> Checkpoint | None:
    if run.checkpoints is None:
        return None
    record = {**asdict(settings), **older.record(one), "base": base.fingerprint, "data": one.digest, "start": start}
    record["quantisation"] = recorded(run.quantisation)
    return Checkpoint(run.checkpoints / one.task.name, record)


def _keeping(unit: Unit, weights: Sequence[Tensor], older: Older, ewc: EWC | None) -> tuple[list[Unit], Keeping]:
    """The new task, a unit for each batch that keeps older ones, those to look at; and what puts them together."""
    streams = _streams(older)
    units: dict[str, list[Unit]] = {}
    for way in ("replay", "gem", "distillation"):
        if way in older.keep:
            units[way] = [
                replace(unit, name=f"{way} {name}", rows=rows, validation=(), stream=number)
                for number, (name, rows) in enumerate(streams.items(), 1)
            ]
    if "distillation" in units:
        loss: Distilled[Batch] = Distilled(weights, lambda batch: batch_loss(unit.model, batch, unit.head)[1])
        # Where nothing is remembered, the new rows: stream 0 is the new task's own, batch for batch.
        sources = units["distillation"] or [replace(unit, name="distillation", validation=())]
        units["distillation"] = [replace(source, loss=loss) for source in sources]
    keeping = Keeping(
        unit.name,
        {way: [source.name for source in sources] for way, sources in units.items()},
        parameters=weights,
        ewc=ewc,
        strengths=older.keep,
    )
    watched = [replace(unit, name=o.task.name, rows=(), validation=o.validation) for o in older.measured]
    return [unit, *(source for sources in units.values() for source in sources), *watched], keeping


def _streams(older: Older) -> dict[str, Sequence[Features]]:
    """Rows of each old task for GEM, of all of them together for replay and distillation."""
    if "gem" in older.keep:
        return dict(older.memories)
    together = [row for rows in older.memories.values() for row in rows]
    return {"memory": together} if together else {}


def _springs(unit: Unit, model: PeftModel, weights: Sequence[Tensor], older: Older, device: torch.device) -> EWC:
    """EWC with each old task's Fisher, from its remembered rows, at the weights with which it was learned.

    At later weights, where it may be forgotten, its gradients are large: its springs would hold what forgot it.
    """

    def log_likelihood(row: Batch) -> Tensor:
        loss, _, labels = batch_loss(unit.model, row, unit.head)
        return -loss * labels.numel()

    ewc = EWC(older.keep["ewc"])
    for name, rows in older.memories.items():
        set_peft_model_state_dict(model, stored_tensors(older.learned[name][0]), adapter_name="default")
        singles = (collate([row], unit.head, unit.pad).to(device) for row in rows)
        ewc.add_task(weights, fisher_diagonal(log_likelihood, singles, weights))
    return ewc
