"""A group's adapter: one set of weights, trained on the data of all its tasks, each through its own head."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from adapterhub.errors import InputError
from adapterhub.training._adapt import adapted, adapter_config, linear_targets
from adapterhub.training._base import Bases
from adapterhub.training._batches import steps_per_epoch
from adapterhub.training._checkpoint import Checkpoint, Progress
from adapterhub.training._loop import Loop
from adapterhub.training._prepare import Prepared
from adapterhub.training._progress import progress_bar
from adapterhub.training._quantised import recorded
from adapterhub.training._run import Run
from adapterhub.training._save import save_adapter
from adapterhub.training._sharing import Sharing
from adapterhub.training._tie import tie

__all__ = ["Grouped", "check_group", "modelled", "train_group"]


@dataclass(frozen=True)
class Grouped:
    """What came of training a group's adapter.

    Args:
        progress: What the loop did, with a track for each task.
        heads: By task, the weights that it trained alone, by PEFT's name.
    """

    progress: Progress
    heads: Mapping[str, Mapping[str, Tensor]]


def check_group(group: str, tasks: Mapping[str, Prepared]) -> None:
    """See to it that tasks can share an adapter.

    Args:
        group: The group's name.
        tasks: The tasks.

    Raises:
        InputError: If one lies elsewhere, or they are not on one base that generates, or stand on anything else.
    """
    faults = [
        f"{name}: tasks of group {group} lie below it. Found another place. Train it by itself."
        for name in tasks
        if not name.startswith(f"{group}/")
    ]
    places = sorted({one.path for one in tasks.values()})
    if len(places) > 1:
        faults.append(f"Tasks of one group are on one base. Found {', '.join(places)}. Train them apart.")
    faults += [
        f"{name}: a task of the group is trained on top of its adapter alone. Found stack {list(one.task.stack)}."
        for name, one in tasks.items()
        if set(one.task.stack) - {group}
    ]
    if len(tasks) < 2:
        faults.append(f"A group's adapter is trained on several tasks. Found {len(tasks)}. Train it by itself.")
    if faults:
        raise InputError("\n".join(faults))


def train_group(
    name: str,
    tasks: Mapping[str, Prepared],
    run: Run,
    sharing: Sharing,
    bases: Bases,
    accelerator: Accelerator,
    folder: Path,
) -> Grouped:
    """Train a group's adapter and write its sealed folder.

    Args:
        name: The group's name.
        tasks: The data of its tasks, all on one base.
        run: How runs are made.
        sharing: How the tasks share it.
        bases: The bases of this fit.
        accelerator: Where to train.
        folder: Where to write; must not be there yet.
    """
    first, options = next(iter(tasks.values())), run.options
    set_seed(options.seed)
    carrier = bases.load(first.path, "generation", 0, first.tokenizer.pad_token_id, "group")
    signature = bases.signature(first.path, carrier)
    targets = options.targets or (linear_targets(carrier) if options.method == "lora" else None)
    shape = {**options.shape, "targets": targets}
    batches = [steps_per_epoch(len(one.rows), options.batch_size) for one in tasks.values()]
    settings = options.settings(sharing.steps_per_epoch(batches))
    with ExitStack() as stack, progress_bar(run.shown(accelerator), name, settings.steps) as report:
        set_seed(options.seed)
        model = stack.enter_context(adapted(carrier, adapter_config(carrier, "generation", **shape)))
        shared = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
        models = [modelled(one, model, shared, shape, bases, stack) for one in tasks.values()]
        units = [run.unit(one, each, accelerator, own) for one, (each, own) in zip(tasks.values(), models, strict=True)]
        record = {**asdict(settings), **sharing.record(), **shape, "base": signature.fingerprint}
        record["data"] = {task: one.digest for task, one in tasks.items()}
        record["quantisation"] = recorded(run.quantisation)
        loop = Loop(
            accelerator, units, shared, sharing.balance(tasks, shared, units, settings), settings,
            sampler=sharing.sampler(tasks, settings),
            checkpoint=None if run.checkpoints is None else Checkpoint(run.checkpoints / name, record),
            rates={task: rate for task, rate in sharing.rates.items() if task in tasks},
        )  # fmt: skip
        done = loop.run(run.resume, report)
        save_adapter(model, folder, signature)
        heads = {unit.name: {key: w.detach().clone() for key, w in unit.own.items()} for unit in units}
    accelerator.free_memory()
    return Grouped(done, heads)


def modelled(
    one: Prepared,
    carrier: Any,
    shared: Mapping[str, Tensor],
    shape: Mapping[str, Any],
    bases: Bases,
    stack: ExitStack,
) -> tuple[Any, dict[str, Tensor]]:
    """A task's model around the weights that it shares, and the weights of its own head.

    Args:
        one: The task's data.
        carrier: The PEFT model that generates; a task that does so too is in it.
        shared: Its weights, by PEFT's name.
        shape: What decides the adapter's shape.
        bases: The bases of this fit.
        stack: Takes the adapters off the bases at its end.
    """
    head = one.task.head
    if head == "generation":
        return carrier, {}
    base = bases.load(one.path, head, one.labels, one.tokenizer.pad_token_id, one.task.name)
    model = stack.enter_context(adapted(base, adapter_config(base, head, **shape)))
    return model, tie(model, shared)
