"""The head that an adapter brings: one linear module on the backbone's hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._options import HEAD_MODULES
from adapterhub.adapter._tensors import Entry
from adapterhub.adapter._types import HeadTensors

__all__ = ["build_head", "head_faults"]


def head_faults(head: Mapping[str, Entry], config: AdapterConfig, base: BaseSignature) -> list[str]:
    """Every way in which a head does not fit a base, a line each.

    Args:
        head: Its entries, by key behind PEFT's root (`score.weight`).
        config: The adapter's configuration.
        base: The base.
    """
    if config.head is None:
        return []
    names = {key.split(".")[0] for key in head}
    if len(names) != 1:
        found = ", ".join(sorted(head)) or "none"
        return [
            f"The adapter should bring one head, {' or '.join(HEAD_MODULES)}. Found {found}. Train it with a task type."
        ]
    (name,) = names
    faults = []
    weight, bias = head.get(f"{name}.weight"), head.get(f"{name}.bias")
    if weight is None:
        faults.append(f"{name}.weight missing.")
    elif len(weight.shape) != 2 or weight.shape[1] != base.hidden_size or not weight.shape[0]:
        faults.append(f"{name}.weight should have shape (labels, {base.hidden_size}). Found {weight.shape}.")
    elif bias is not None and bias.shape != weight.shape[:1]:
        faults.append(f"{name}.bias should have shape {weight.shape[:1]}. Found {bias.shape}.")
    for key, entry in head.items():
        if key not in (f"{name}.weight", f"{name}.bias"):
            faults.append(f"{key}: unexpected, since a head is one linear module. Found {entry.shape}.")
        elif not entry.readable:
            faults.append(f"{key} should be F32, F16 or BF16. Found {entry.dtype}.")
    return faults


def build_head(
    head: Mapping[str, Entry], config: AdapterConfig, values: Mapping[str, torch.Tensor]
) -> HeadTensors | None:
    """The head, or None where the adapter has none.

    Args:
        head: Entries that fit, by key behind PEFT's root.
        config: The adapter's configuration.
        values: The file's tensors by key.
    """
    if config.head is None:
        return None
    parts = {key.rpartition(".")[2]: values[entry.key] for key, entry in head.items()}
    return HeadTensors(config.head, parts["weight"], parts.get("bias"))
