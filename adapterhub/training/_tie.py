"""Weights that several models share, and weights to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapterhub.adapter import BaseSignature, read_adapter, stored_tensors
from adapterhub.errors import CardError, InputError
from adapterhub.task import Task, check_name
from adapterhub.training._base import HEADS

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["begin_from", "fill", "start_of", "tie"]


def tie(model: Any, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put weights in the place of a model's own of the same names.

    Args:
        model: A PEFT model whose adapter has the same shape.
        shared: The weights, by PEFT's name.

    Returns:
        What the model trains beside them: its head.

    Raises:
        InputError: If the model lacks one of them.
    """
    found = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if missing := shared.keys() - found.keys():
        raise InputError(f"The heads of a group are on one backbone. {type(model).__name__} lacks {min(missing)}.")
    for name, weight in shared.items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, weight)
    return {name: weight for name, weight in found.items() if name not in shared}


def fill(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Begin with weights that are known.

    Args:
        model: A PEFT model.
        weights: By PEFT's name.
    """
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, weight in weights.items():
            parameters[name].copy_(weight)


def start_of(registry: Registry, place: str | Path, task: Task) -> tuple[Path, bool]:
    """Where the weights lie that a task's adapter begins with.

    Args:
        registry: The tasks.
        place: A task of the registry, or else a PEFT folder.
        task: The card of the task to train.

    Returns:
        The adapter's folder, and whether its head is the task's too: never that of a folder, whose labels are unknown.

    Raises:
        InputError: If the task has no adapter, or `place` is neither.
        TaskNotFoundError: If it could be a task's name, and there is neither.
    """
    if place not in registry:
        if (Path(place) / "adapter_config.json").is_file():
            return Path(place), False
        try:
            check_name(str(place))
        except CardError:
            raise InputError(
                f"{task.name}: training begins with the adapter of a task or with a PEFT folder. Found neither at "
                f"{place}. Name a task, or make a folder with: adapterhub meta-init"
            ) from None
    other = registry[str(place)]
    folder = registry.adapter_path(other.name)
    if folder is None:
        raise InputError(f"{task.name}: training begins with an adapter. Found {other.name}, which has none.")
    return folder, (other.head, other.labels) == (task.head, task.labels)


def begin_from(model: Any, folder: Path, base: BaseSignature, *, head: bool) -> None:
    """Begin with the weights of an adapter.

    Args:
        model: A PEFT model with a fresh adapter.
        folder: The adapter's folder.
        base: The base, which it must fit.
        head: Whether its head is taken over too.

    Raises:
        IntegrityError: If a file is missing, cut off, or not the one that was sealed.
        IncompatibleAdapterError: If it was trained on another base.
        InputError: If it has another shape.
    """
    read_adapter(folder, base, adopt=True)
    known = stored_tensors(folder)
    weights, faults = {}, []
    for name, fresh in model.named_parameters():
        place, saved, _ = name.partition(".modules_to_save.")
        if not fresh.requires_grad or (saved and place.rpartition(".")[2] in HEADS and not head):
            continue
        key = name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
        value = known.pop(key, None)
        if value is not None and value.shape == fresh.shape:
            weights[name] = value
        else:
            found = "none" if value is None else tuple(value.shape)
            faults.append(f"  {key} should have shape {tuple(fresh.shape)}. Found {found}.")
    rest = [key for key in known if key.split(".")[-2] not in HEADS]  # norms, for one, where none are trained
    faults += [f"  {key} should not be there. Found {tuple(known[key].shape)}." for key in sorted(rest)]
    if faults:
        raise InputError(
            f"Training begins with an adapter of the same method, rank and targets. Found {folder}, which differs:\n"
            + "\n".join(faults[:5])
        )
    fill(model, weights)
