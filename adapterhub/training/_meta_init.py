"""A starting point for adapters of tasks to come, learned from tasks that are there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from adapterhub.adapter import content_hash
from adapterhub.errors import InputError
from adapterhub.task import Task
from adapterhub.training._adapt import adapted, adapter_config, linear_targets
from adapterhub.training._balance import Balance
from adapterhub.training._batches import schedule
from adapterhub.training._group import modelled
from adapterhub.training._loop import Loop
from adapterhub.training._prepare import Prepared, prepare
from adapterhub.training._progress import progress_bar
from adapterhub.training._reptile import Reptile
from adapterhub.training._rows import DataSource
from adapterhub.training._run import Run
from adapterhub.training._save import save_adapter
from adapterhub.training._settings import Settings
from adapterhub.training._trainer import Trainer
from adapterhub.training._unit import Unit

__all__ = ["MetaInit", "meta_init"]


@dataclass(frozen=True)
class MetaInit:
    """A starting point for new adapters.

    Args:
        folder: The sealed PEFT folder; it has no head.
        sha256: Its content hash.
        tasks: The tasks that it was learned from.
        losses: At each outer step, the mean over the tasks of the loss before the first and before the last inner step.
    """

    folder: Path
    sha256: str
    tasks: tuple[str, ...]
    losses: tuple[tuple[float, float], ...]


def meta_init(
    trainer: Trainer,
    data: Mapping[str, DataSource],
    cards: Mapping[str, Task] | None = None,
    *,
    out: str | Path,
    steps: int = 60,
    inner_steps: int = 8,
    epsilon: float = 1.0,
) -> MetaInit:
    """Learn weights from which an adapter of a new task is trained in few steps: Reptile (Nichol et al. 2018).

    At each outer step every task is trained for a few steps from the same weights, and these go a share of the way to
    the mean of where the tasks ended. The trainer's rank, method, targets, learning rate (held constant), batch size,
    optimiser, clipping and seed are used; a task's head is its own, goes on from step to step, and is left out of what
    is written, as normalisations are. What the cards' adapters stand on is not laid below. `Trainer.fit(…,
    init_from={task: folder})` begins with it. Nothing is registered.

    Args:
        trainer: How to train, and the registry with the cards.
        data: Rows of two tasks or more of one base that generates, as `Trainer.fit` takes them.
        cards: Cards of tasks that the registry does not hold, or that are to replace its own.
        out: The folder to make; it appears whole or not at all.
        steps: Outer steps.
        inner_steps: Steps on each task at each outer step.
        epsilon: The share of the way at the first outer step, in (0, 1]; it falls to 0 in equal parts.

    Raises:
        TaskNotFoundError: If a task has no card.
        DataError: If rows are faulty; the message lists them.
        InputError: If an argument is outside its range, there are fewer than two tasks, they are not on one base that
            generates, or `out` is there already.
        DivergedError: If the loss is no longer finite.
    """
    out = Path(out)
    run, tasks = trainer._run, trainer._tasks(list(data), cards or {})
    faults = [*_faults(steps, inner_steps, epsilon), *_task_faults(tasks)]
    if out.exists() or out.is_symlink():
        faults.append(f"An adapter is written into a new folder. Found something at {out}. Give another path.")
    if faults:
        raise InputError("\n".join(faults))
    none = dict.fromkeys(tasks, 0.0)
    prepared = prepare(tasks, data, none, validation_rows=1, max_length=run.options.max_length)
    accelerator = run.accelerator()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch) / "adapter"
        losses = _learn(prepared, run, accelerator, folder, steps, inner_steps, epsilon)
        if accelerator.is_main_process:
            folder.rename(out)
        accelerator.wait_for_everyone()
    accelerator.free_memory()
    return MetaInit(out, content_hash(out), tuple(tasks), tuple(losses))


def _faults(steps: int, inner_steps: int, epsilon: float) -> Iterator[str]:
    for name, count in (("steps", steps), ("inner_steps", inner_steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            yield f"`{name}` should be a whole number of at least 1. Found {count!r}."
    if not 0 < epsilon <= 1:  # a NaN is neither
        yield f"`epsilon` should be a number in (0, 1]. Found {epsilon!r}."


def _task_faults(tasks: Mapping[str, tuple[Task, str]]) -> Iterator[str]:
    if len(tasks) < 2:
        yield f"A starting point is learned from two tasks or more. Found {len(tasks)}. Add the rows of another one."
    places = sorted({path for _, path in tasks.values()})
    if len(places) > 1:
        yield f"Tasks of one starting point are on one base model. Found {', '.join(places)}. Leave some out."


def _learn(
    tasks: Mapping[str, Prepared],
    run: Run,
    accelerator: Accelerator,
    folder: Path,
    steps: int,
    inner_steps: int,
    epsilon: float,
) -> list[tuple[float, float]]:
    """Reptile's outer loop; its weights go to the folder, the losses back."""
    first, options, bases = next(iter(tasks.values())), run.options, run.bases()
    set_seed(options.seed)
    carrier = bases.load(first.path, "generation", 0, first.tokenizer.pad_token_id, "meta-init")
    signature = bases.signature(first.path, carrier)
    targets = options.targets or (linear_targets(carrier) if options.method == "lora" else None)
    shape = {**options.shape, "targets": targets}
    settings = replace(options.settings(1), steps=1 << 40, warmup=0.0)  # a constant learning rate
    losses: list[tuple[float, float]] = []
    with ExitStack() as stack, progress_bar(run.shown(accelerator), "meta-init", steps) as report:
        set_seed(options.seed)  # the fresh weights of a fit
        model = stack.enter_context(adapted(carrier, adapter_config(carrier, "generation", **shape)))
        shared = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
        models = [modelled(one, model, shared, shape, bases, stack) for one in tasks.values()]
        units = [run.unit(one, each, accelerator, own) for one, (each, own) in zip(tasks.values(), models, strict=True)]
        batches = [_batches(unit, settings) for unit in units]
        reptile = Reptile(_flat(shared), epsilon=epsilon, steps=steps)
        for _ in range(steps):
            ends, found = [], []
            for unit, order in zip(units, batches, strict=True):
                _set(shared, reptile.weights)
                found.append(_inner(accelerator, unit, shared, settings, [next(order) for _ in range(inner_steps)]))
                ends.append(_flat(shared))
            reptile.update(torch.stack(ends))
            losses.append((fmean(loss for loss, _ in found), fmean(loss for _, loss in found)))
            report(reptile.step, losses[-1][1])
        _set(shared, reptile.weights)
        save_adapter(model, folder, signature)
    return losses


def _inner(
    accelerator: Accelerator,
    unit: Unit,
    shared: Mapping[str, Tensor],
    settings: Settings,
    batches: Sequence[Sequence[int]],
) -> tuple[float, float]:
    """Train one task for a few steps with a fresh optimiser; the loss before the first and before the last of them."""
    balance = Balance(None, list(shared.values()), {unit.name: list(unit.own.values())}, clip=settings.per_task_clip)
    loop = Loop(accelerator, [unit], shared, balance, settings)
    losses = []
    for places in batches:
        losses.append(loop.step({unit.name: [unit.rows[place] for place in places]})[unit.name])
        loop.progress.step += 1
    return losses[0], losses[-1]


def _batches(unit: Unit, settings: Settings) -> Iterator[list[int]]:
    return schedule([len(row.ids) for row in unit.rows], settings.batch_size, settings.seed)


def _flat(shared: Mapping[str, Tensor]) -> Tensor:
    """(P,), a copy."""
    return torch.cat([weight.detach().flatten() for weight in shared.values()])


def _set(shared: Mapping[str, Tensor], flat: Tensor) -> None:
    """Copy (P,) into the weights; views of it would be trained away with them."""
    sizes = [weight.numel() for weight in shared.values()]
    with torch.no_grad():
        for weight, part in zip(shared.values(), torch.split(flat, sizes), strict=True):
            weight.copy_(part.view_as(weight))
