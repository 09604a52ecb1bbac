"""Training on top of other adapters: they lie frozen under the new one, and it remembers which they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig

from adapterhub.adapter import BaseSignature, read_adapter, stored_tensors
from adapterhub.errors import InputError
from adapterhub.registry import Below, Registry
from adapterhub.task import Task

__all__ = ["chain_of", "lay_below"]


def chain_of(registry: Registry, task: Task) -> tuple[Below, ...]:
    """The adapters that a new adapter of a task will stand on: those that its card names, and what they stand on.

    Args:
        registry: The tasks.
        task: The card.

    Returns:
        From the lowest up, each once.

    Raises:
        InputError: If one of them has no adapter, or two of them stand on different versions of a third.
    """
    found: dict[str, Below] = {}
    for name in task.stack:
        folder, sha256 = registry.adapter_path(name), registry[name].sha256
        if folder is None or sha256 is None:
            raise InputError(
                f"{task.name}: a stack is of adapters. Found {name}, which has none. Train it first: "
                f"adapterhub train {name}"
            )
        for below in [*registry.below(name), Below(name, sha256, folder)]:
            known = found.setdefault(below.name, below)
            if known.sha256 != below.sha256:
                raise InputError(
                    f"{task.name}: a stack has one version of each adapter. Found {below.name} with sha256 "
                    f"{known.sha256} and {below.sha256}. Train what stands on the older one again."
                )
    return tuple(found.values())


def lay_below(model: Any, chain: Sequence[Below], base: BaseSignature) -> None:
    """Put frozen adapters under the adapter `default` of a PEFT model; all of them are active.

    Args:
        model: A PEFT model with one adapter.
        chain: What lies under it.
        base: The base, which every one of them must fit.

    Raises:
        IntegrityError: If one of them is damaged or another than the one asked for.
        IncompatibleAdapterError: If one of them does not fit the base.
        InputError: If one of them is of another method than the new adapter, or stores normalisations of its own.
    """
    tuner, method = model.base_model, model.peft_config["default"].peft_type
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for position, below in enumerate(chain):
        if read_adapter(below.folder, base, sha256=below.sha256).norms:
            raise InputError(
                f"An adapter that others stand on leaves the normalisations to them. Found {below.name}, which stores "
                "its own. Train it without `norms`."
            )
        config = PeftConfig.from_pretrained(str(below.folder))
        if config.peft_type != method:
            raise InputError(
                f"Adapters of one stack are of one method. Found {below.name} with {config.peft_type.value} "
                f"under {method.value}. Train with that method."
            )
        name = f"below{position}"  # never a part of a module's name, nor of `default`
        tuner.peft_config[name] = config
        tuner.inject_adapter(tuner.model, name)
        _fill(model, name, stored_tensors(below.folder))
    if chain:
        tuner.set_adapter(["default", *(f"below{position}" for position in range(len(chain)))])
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _fill(model: Any, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy a file's tensors; those of a head are left out, for the head of the uppermost adapter answers."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}" in key:
                parameter.copy_(tensors[key.replace(f".{name}", "")])
