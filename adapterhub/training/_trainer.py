"""The workshop: from rows to a sealed, registered adapter with its measured metric."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from adapterhub.adapter import content_hash
from adapterhub.errors import InputError
from adapterhub.registry import Below, Registry
from adapterhub.task import Task
from adapterhub.training._base import Bases
from adapterhub.training._deliver import Delivery
from adapterhub.training._group import check_group, train_group
from adapterhub.training._options import Options, validations
from adapterhub.training._prepare import Prepared, prepare
from adapterhub.training._quantised import check_quantisation
from adapterhub.training._result import FitResult, group_result, result
from adapterhub.training._rows import DataSource
from adapterhub.training._run import Run
from adapterhub.training._score import METRICS
from adapterhub.training._session import Session
from adapterhub.training._sharing import Sharing
from adapterhub.training._stack import chain_of
from adapterhub.training._tie import start_of

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
        patience: Evaluations without improvement after which a task stops, and with the last the run; None for never.
        seed: Seed of the fresh weights and of the order of the rows.
        mixed_precision: `no` or `bf16`.
        optimiser: A name in `optimisers.OPTIMISERS`.
        lora_plus_ratio: LoRA+ (Hayou et al. 2024): factor on the learning rate of LoRA's B.
        max_grad_norm: The gradient of a step is scaled down to this norm; None for no bound.
        per_task_clip: So is each task's own where several share an adapter, before they are put together.
        micro_batch_size: Rows that are in memory at once; the gradient is that of the whole batch.
        gradient_checkpointing: Keep only the layers' inputs for the way back: less memory, a third more time.
        curriculum: `length` or `loss` for easy rows first (Bengio et al. 2009): short ones, or those that the base
            finds likely.
        norms: Train the base's normalisations beside the adapter, each task its own copies; a group's adapter has none.
        quantization_config: A configuration of transformers' quantisers (`BitsAndBytesConfig`, `TorchAoConfig`): the
            frozen base is quantised while it is loaded, adapters and heads train in floating point on top (QLoRA,
            Dettmers et al. 2023), and they are sealed to the base as its files have it.
        sharing: How the tasks of a group share its adapter.
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
        optimiser: str = "adamw",
        lora_plus_ratio: float | None = None,
        max_grad_norm: float | None = 1.0,
        per_task_clip: float | None = None,
        micro_batch_size: int | None = None,
        gradient_checkpointing: bool = False,
        curriculum: Literal["length", "loss"] | None = None,
        norms: bool = False,
        quantization_config: Any = None,
        sharing: Sharing | None = None,
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
            optimiser=optimiser,
            lora_plus_ratio=lora_plus_ratio,
            max_grad_norm=max_grad_norm,
            per_task_clip=per_task_clip,
            micro_batch_size=micro_batch_size,
            gradient_checkpointing=gradient_checkpointing,
            curriculum=curriculum,
            norms=norms,
        )
        self._sharing = sharing or Sharing()
        check_quantisation(quantization_config)
        folder = None if checkpoints is None else Path(checkpoints)
        self._run = Run(options, folder, resume, progress, quantization_config)

    def fit(
        self,
        data: Mapping[str, DataSource],
        cards: Mapping[str, Task] | None = None,
        *,
        group: str | None = None,
        init_from: Mapping[str, str | Path] | None = None,
        register: bool = True,
        out: str | Path | None = None,
    ) -> dict[str, FitResult]:
        """Train an adapter for every task, one after another; with a group, first the adapter that they stand on.

        All data is read and checked before the first step. A task's result does not depend on the others, except
        through the group's adapter, which is trained on the data of all of them, and lies frozen under theirs.

        Args:
            data: By task name: a list of mappings, a `.jsonl`, `.csv` or `.parquet` file, a folder of `datasets`, or
                the name of a data set.
            cards: Cards of tasks that the registry does not hold, or that are to replace its own.
            group: The branch whose adapter to train on the tasks, all of which lie below it. It becomes a task of that
                name that generates; without a card of its own it is described by the names of its tasks.
            init_from: By task, another one whose adapter it begins with, or the PEFT folder of an adapter such as that
                of `meta_init`, of the same method, rank and targets. The head of another task is taken over where the
                labels are the same.
            register: Put each card with its adapter into the registry.
            out: Folder for the adapter folders, `<out>/<task>`; they must not be there yet, but for those that a run
                which is resumed has delivered.

        Returns:
            A result for each task, before them that of the group.

        Raises:
            TaskNotFoundError: If a task has no card.
            DataError: If rows are faulty; the message lists them.
            InputError: If a card, a base or a checkpoint does not fit.
            DivergedError: If the loss is no longer finite.
        """
        delivery = Delivery(self._registry, register, None if out is None else Path(out), self._run.resume)
        tasks = self._tasks(data, cards or {})
        delivery.check([*([] if group is None else [group]), *tasks])
        prepared = prepare(
            tasks,
            data,
            validations(self._validation, list(tasks), needed=self._run.options.patience is not None),
            validation_rows=self._run.options.validation_rows,
            max_length=self._run.options.max_length,
        )
        for name, other in (init_from or {}).items():
            prepared[name] = self._begun(name, prepared, other)
        bases, accelerator = self._run.bases(), self._run.accelerator()
        results = {}
        if group is None:
            prepared = {n: replace(one, chain=chain_of(self._registry, one.task)) for n, one in prepared.items()}
        else:
            card = (cards or {}).get(group) or self._group_card(group, prepared)
            results[group], prepared = self._fit_group(card, prepared, bases, accelerator, delivery)
        for name, one in prepared.items():
            with tempfile.TemporaryDirectory(dir=delivery.out) as scratch:
                folder = Path(scratch) / "adapter"
                progress, score = self._run.train(one, bases, accelerator, folder)
                measured = {METRICS[one.task.head]: score.metric} if score and score.metric is not None else {}
                task = replace(one.task, metrics=measured, adapter=None, sha256=None, stack=tuple(one.stack))
                task, folder = delivery.deliver(task, folder, accelerator)
            results[name] = result(task, one, progress, score, folder)
        return results

    def session(self, names: Iterable[str], cards: Mapping[str, Task] | None = None) -> Session:
        """Open tasks for training step by step, with batches of the caller's own.

        Args:
            names: The tasks.
            cards: Cards of tasks that the registry does not hold, or that are to replace its own.

        Raises:
            TaskNotFoundError: If a task has no card.
            InputError: If a card or a base does not fit.
        """
        return Session(self._registry, self._run, self._tasks(list(names), cards or {}))

    def _fit_group(
        self, card: Task, tasks: dict[str, Prepared], bases: Bases, accelerator: Accelerator, delivery: Delivery
    ) -> tuple[FitResult, dict[str, Prepared]]:
        """The group's result, and its tasks on top of it."""
        check_group(card.name, tasks)
        with tempfile.TemporaryDirectory(dir=delivery.out) as scratch:
            folder = Path(scratch) / "adapter"
            found = train_group(card.name, tasks, self._run, self._sharing, bases, accelerator, folder)
            task, folder = delivery.deliver(replace(card, adapter=None, sha256=None, stack=()), folder, accelerator)
        below = (Below(card.name, content_hash(folder), folder),)
        above = {
            name: replace(one, chain=below, initial=found.heads[name], task=replace(one.task, stack=(card.name,)))
            for name, one in tasks.items()
        }
        return group_result(task, tasks, found.progress, folder), above

    def _begun(self, name: str, prepared: Mapping[str, Prepared], other: str | Path) -> Prepared:
        if name not in prepared:
            raise InputError(f"`init_from` names tasks that are trained here. Found {name}.")
        one = prepared[name]
        return replace(one, begin=start_of(self._registry, other, one.task))

    def _group_card(self, group: str, tasks: Mapping[str, Prepared]) -> Task:
        if group in self._registry:
            return self._registry[group]
        first = next(iter(tasks.values())).task
        said = f"What these tasks have in common: {', '.join(name.removeprefix(f'{group}/') for name in tasks)}."
        return Task(group, said, base_model=first.base_model)

    def _tasks(self, names: Collection[str], cards: Mapping[str, Task]) -> dict[str, tuple[Task, str]]:
        """The card of each task and its base as a path or id."""
        found, faults = {}, []
        for name in names:
            task = cards[name] if name in cards else self._registry[name]
            found[name] = (task, self._registry.place_of_base(task.base_model))
            if task.name != name:
                faults.append(f"{name}: a card has its task's name. Found {task.name}.")
            if not task.base_model:
                faults.append(f"{name}: a card names its `base_model`. Found none. Set it in the card or its group.")
        if not names:
            faults.append("`data` has at least one task. Found none. Pass {task name: rows}.")
        if faults:
            raise InputError("\n".join(faults))
        return found
