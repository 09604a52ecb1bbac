"""Weights that several models share, and weights to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterhub.adapter import stored_tensors
from adapterhub.errors import InputError

__all__ = ["begin_from", "fill", "tie"]


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


def begin_from(model: Any, folder: Path, *, head: bool) -> None:
    """Begin with the weights of an adapter.

    Args:
        model: A PEFT model with a fresh adapter.
        folder: The adapter's folder.
        head: Whether its head is taken over too.

    Raises:
        InputError: If it has another shape.
    """
    known = stored_tensors(folder)
    weights, faults = {}, []
    for name, fresh in model.named_parameters():
        if not fresh.requires_grad or (".modules_to_save." in name and not head):
            continue
        key = name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
        if key in known and known[key].shape == fresh.shape:
            weights[name] = known[key]
        else:
            found = tuple(known[key].shape) if key in known else "none"
            faults.append(f"  {key} should have shape {tuple(fresh.shape)}. Found {found}.")
    if faults:
        raise InputError(
            f"Training begins with an adapter of the same method, rank and targets. Found {folder}, which differs:\n"
            + "\n".join(faults[:5])
        )
    fill(model, weights)
