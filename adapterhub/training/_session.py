"""Training step by step, for loops of the caller's own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed

from adapterhub.adapter import BaseSignature
from adapterhub.errors import InputError
from adapterhub.task import Task
from adapterhub.training._adapt import adapted
from adapterhub.training._balance import Balance
from adapterhub.training._base import Bases
from adapterhub.training._deliver import Delivery
from adapterhub.training._encode import Features, RowEncoder
from adapterhub.training._examples import check_rows, data_error
from adapterhub.training._loop import Loop
from adapterhub.training._prepare import Prepared, open_task
from adapterhub.training._rows import read_rows
from adapterhub.training._run import Run
from adapterhub.training._save import save_adapter
from adapterhub.training._stack import chain_of
from adapterhub.training._unit import Unit

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["Session"]

Rows = Sequence[Mapping[str, object]]


class Session:
    """Adapters of some tasks, open for training; the caller brings the batches.

    Each task has its own adapter and its own head, so a step changes those of its task and nothing else. Use it as a
    context manager: the bases are given back at its end.

    Args:
        registry: Where cards and bases come from and adapters go.
        run: How runs are made; the learning rate is constant unless `max_steps` says how far it falls.
        tasks: The card and the base of each task.
    """

    def __init__(self, registry: Registry, run: Run, tasks: Mapping[str, tuple[Task, str]]) -> None:
        self._registry, self._run = registry, run
        self._encoders: dict[str, RowEncoder] = {}
        self._open = {name: self._opened(task, path) for name, (task, path) in tasks.items()}
        self._stack, self._accelerator, bases = ExitStack(), run.accelerator(), run.bases()
        self._signatures: dict[str, BaseSignature] = {}
        self._models = {name: self._model(name, opened, bases) for name, opened in self._open.items()}
        units = [self._unit(name) for name in self._open]
        own = {unit.name: list(unit.own.values()) for unit in units}
        settings = run.options.settings(1)
        if run.options.max_steps is None:
            settings = replace(settings, steps=1 << 40, warmup=0.0)
        self._loop = Loop(self._accelerator, units, {}, Balance(None, [], own, clip=settings.per_task_clip), settings)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the adapters off the bases; what was not delivered is lost."""
        self._stack.close()
        self._accelerator.free_memory()

    def train_step(self, batch: Rows, task: str) -> float:
        """One step on one task's batch.

        Args:
            batch: Rows as `Trainer.fit` takes them.
            task: Whose they are.

        Returns:
            The mean loss before the step.

        Raises:
            InputError: If the task is not open, or there are no rows.
            DataError: If rows are faulty; the message lists them.
            DivergedError: If the loss or its gradient is not finite; nothing has changed.
        """
        return self.train_multi_task_step({task: batch})[task]

    def train_multi_task_step(self, batches: Mapping[str, Rows]) -> dict[str, float]:
        """One step of the optimiser on a batch of each of several tasks: the gradient of the sum of their losses.

        Args:
            batches: Rows by task.

        Returns:
            The mean loss of each task before the step.

        Raises:
            InputError: If a task is not open, or there are no rows.
            DataError: If rows are faulty; the message lists them.
            DivergedError: If a loss or a gradient is not finite; nothing has changed.
        """
        if not batches:
            raise InputError("A step has at least one batch. Found none. Pass {task name: rows}.")
        return self._loop.step({task: self._features(task, batch) for task, batch in batches.items()})

    def deliver(self, *, register: bool = True, out: str | Path | None = None) -> dict[str, Task]:
        """Write the adapters as they are now.

        Args:
            register: Put each card with its adapter into the registry.
            out: Folder for the adapter folders, `<out>/<task>`; they must not be there yet.

        Returns:
            The cards as stored.
        """
        delivery = Delivery(self._registry, register, None if out is None else Path(out))
        delivery.check(list(self._open))
        found = {}
        for name, opened in self._open.items():
            task = replace(opened.task, metrics={}, adapter=None, sha256=None, stack=tuple(opened.stack))
            with tempfile.TemporaryDirectory(dir=delivery.out) as scratch:
                folder = Path(scratch) / "adapter"
                save_adapter(self._models[name], folder, self._signatures[name], stack=opened.stack)
                found[name], _ = delivery.deliver(task, folder, self._accelerator)
        return found

    def _opened(self, task: Task, path: str) -> Prepared:
        tokenizer, length, self._encoders[task.name] = open_task(task, path, self._run.options.max_length)
        return Prepared(task, path, tokenizer, length, [], [], 0, 0, 1.0, chain_of(self._registry, task))

    def _model(self, name: str, opened: Prepared, bases: Bases) -> Any:
        options, head = self._run.options, opened.task.head
        set_seed(options.seed)
        base = bases.load(opened.path, head, opened.labels, opened.tokenizer.pad_token_id, name)
        self._signatures[name] = bases.signature(opened.path, base)
        config = self._run.config(base, head, self._signatures[name])
        set_seed(options.seed)  # fresh weights are those of a fit, whatever was drawn for a head
        return self._stack.enter_context(adapted(base, config, opened.chain, self._signatures[name]))

    def _unit(self, name: str) -> Unit:
        model = self._models[name]
        own = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
        return self._run.unit(self._open[name], model, self._accelerator, own)

    def _features(self, task: str, batch: Rows) -> list[Features]:
        if task not in self._open:
            raise InputError(f"A step is on a task of the session: {', '.join(self._open)}. Found {task!r}.")
        examples, faults = check_rows(self._open[task].task, read_rows(batch, task))
        if not examples and not faults:
            raise InputError(f"{task}: a batch has at least one row. Found none.")
        rows, more = self._encoders[task](examples)
        if faults or more:
            raise data_error(faults + more)
        return rows
