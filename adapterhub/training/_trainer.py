"""The workshop: from rows to a sealed, registered adapter with its measured metric."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapterhub.errors import InputError
from adapterhub.task import Task
from adapterhub.training._base import Bases
from adapterhub.training._options import Options, validations
from adapterhub.training._prepare import prepare
from adapterhub.training._result import FitResult, result
from adapterhub.training._rows import DataSource
from adapterhub.training._run import Run
from adapterhub.training._score import METRICS
from adapterhub.training._stack import chain_of

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["Trainer"]


class Trainer:
    """Trains one adapter for each task on a frozen base and puts it into the registry.

    Rows hold `input` (or `text`) and what the card's head asks for: `output` (and `outputs`, all accepted answers),
    `label`, `tokens` with `tags`, or `value`. The loss is taken on the answer alone. Adapters share no parameters, so
    training one leaves every other as it is. A task whose card has a `stack` is trained on top of those adapters, which
    stay as they are; its seal pins them by their content hashes.

    Args:
        registry: Where cards and bases come from and adapters go.
        method: `lora` (Hu et al. 2021) on all linear modules, or `bottleneck` (Houlsby et al. 2019).
        rank: LoRA's rank or the bottleneck's width.
        alpha: What is added has the scale `alpha / rank`; by default 2 for LoRA and 1 for the bottleneck.
        targets: Suffixes of module names instead of the method's own choice.
        learning_rate: Peak of the schedule (AdamW).
        warmup: Share of the steps over which it rises.
        decay: Shape of its fall to zero.
        batch_size: Rows of a step.
        epochs: Passes over the training rows.
        max_steps: Steps, instead of `epochs`.
        max_length: The most tokens of a row; by default the base's context.
        validation: Share of the inputs to set aside, or validation data, or either by task name; 0 for none.
        validation_rows: Validation rows at most.
        evaluate_every: Steps between evaluations and checkpoints; by default a tenth of the run.
        patience: Evaluations without improvement after which a run stops; None for never.
        seed: Seed of the fresh weights and of the order of the rows.
        mixed_precision: `no` or `bf16`.
        checkpoints: Folder for checkpoints, one folder below it for each task; None for none.
        resume: Go on from the checkpoints there.
        progress: Show a bar on standard error.

    Raises:
        InputError: If an argument is outside its range; the message lists every one.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        method: Literal["lora", "bottleneck"] = "lora",
        rank: int = 16,
        alpha: float | None = None,
        targets: tuple[str, ...] | list[str] | None = None,
        learning_rate: float = 1e-3,
        warmup: float = 0.06,
        decay: Literal["linear", "cosine"] = "linear",
        batch_size: int = 16,
        epochs: float = 3,
        max_steps: int | None = None,
        max_length: int | None = None,
        validation: float | DataSource | Mapping[str, float | DataSource] = 0.1,
        validation_rows: int = 200,
        evaluate_every: int | None = None,
        patience: int | None = None,
        seed: int = 0,
        mixed_precision: Literal["no", "bf16"] = "no",
        checkpoints: str | Path | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> None:
        self._registry = registry
        self._validation = validation
        if resume and checkpoints is None:
            raise InputError("`resume` goes on from a checkpoint. Found no `checkpoints`. Name their folder.")
        options = Options(
            method=method,
            rank=rank,
            alpha=alpha,
            targets=None if targets is None else tuple(targets),
            learning_rate=learning_rate,
            warmup=warmup,
            decay=decay,
            batch_size=batch_size,
            epochs=epochs,
            max_steps=max_steps,
            max_length=max_length,
            validation_rows=validation_rows,
            evaluate_every=evaluate_every,
            patience=patience,
            seed=seed,
            mixed_precision=mixed_precision,
        )
        self._run = Run(options, None if checkpoints is None else Path(checkpoints), resume, progress)

    def fit(
        self,
        data: Mapping[str, DataSource],
        cards: Mapping[str, Task] | None = None,
        *,
        register: bool = True,
        out: str | Path | None = None,
    ) -> dict[str, FitResult]:
        """Train an adapter for every task, one after another.

        All data is read and checked before the first step. A task's result does not depend on the others.

        Args:
            data: By task name: a list of mappings, a `.jsonl`, `.csv` or `.parquet` file, a folder of `datasets`, or
                the name of a data set.
            cards: Cards of tasks that the registry does not hold, or that are to replace its own.
            register: Put each card with its adapter into the registry.
            out: Folder for the adapter folders, `<out>/<task>`; they must not be there yet.

        Returns:
            A result for each task.

        Raises:
            TaskNotFoundError: If a task has no card.
            DataError: If rows are faulty; the message lists them.
            InputError: If a card, a base or a checkpoint does not fit.
            DivergedError: If the loss is no longer finite.
        """
        target = None if out is None else Path(out)
        tasks = self._tasks(data, cards or {})
        _check_target(list(tasks), register, target)
        prepared = prepare(
            tasks,
            data,
            validations(self._validation, list(tasks), needed=self._run.options.patience is not None),
            validation_rows=self._run.options.validation_rows,
            max_length=self._run.options.max_length,
        )
        prepared = {name: replace(one, chain=chain_of(self._registry, one.task)) for name, one in prepared.items()}
        bases, accelerator = Bases(), self._run.accelerator()
        results = {}
        for name, one in prepared.items():
            with tempfile.TemporaryDirectory(dir=target) as scratch:
                folder = Path(scratch) / "adapter"
                progress, score = self._run.train(one, bases, accelerator, folder)
                measured = {METRICS[one.task.head]: score.metric} if score and score.metric is not None else {}
                task = replace(one.task, metrics=measured, adapter=None, sha256=None, stack=tuple(one.stack))
                task, folder = self._deliver(task, folder, register, target)
            results[name] = result(task, one, progress, score, folder)
        return results

    def _tasks(self, data: Mapping[str, DataSource], cards: Mapping[str, Task]) -> dict[str, tuple[Task, str]]:
        """The card of each task and its base as a path or id."""
        found, faults = {}, []
        for name in data:
            task = cards[name] if name in cards else self._registry[name]
            found[name] = (task, self._registry.place_of_base(task.base_model))
            if task.name != name:
                faults.append(f"{name}: a card has its task's name. Found {task.name}.")
            if not task.base_model:
                faults.append(f"{name}: a card names its `base_model`. Found none. Set it in the card or its group.")
        if not data:
            faults.append("`data` has at least one task. Found none. Pass {task name: rows}.")
        if faults:
            raise InputError("\n".join(faults))
        return found

    def _deliver(self, task: Task, folder: Path, register: bool, out: Path | None) -> tuple[Task, Path]:
        """Move the folder to its place and register it."""
        if out is not None:
            (out / task.name).parent.mkdir(parents=True, exist_ok=True)
            folder = folder.replace(out / task.name)
        if not register:
            return task, folder
        stored = self._registry.add(task, adapter=folder, replace=True)
        place = self._registry.adapter_path(task.name) if out is None else folder
        return stored, place or folder


def _check_target(names: list[str], register: bool, out: Path | None) -> None:
    if out is None:
        if not register:
            raise InputError("With `register=False` the adapters need a folder. Found no `out`. Name one.")
        return
    taken = [str(out / name) for name in names if (out / name).exists()]
    if taken:
        raise InputError(
            f"Adapters go into new folders. Found {', '.join(taken)}. Remove them or choose another `out`."
        )
    out.mkdir(parents=True, exist_ok=True)
