"""Normalisations that an adapter of any method stores whole: those that its `modules_to_save` names.

PEFT's layer-norm tuning is a method of its own and stands beside no other. Their trained copies can lie beside another
method's tensors, under the names that they have in the model: `base_model.model.model.norm.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._layout import Layout
from adapterhub.adapter._method import ROOT, Shapes
from adapterhub.adapter._options import HEAD_KINDS, HEAD_MODULES
from adapterhub.adapter._parts import labelled, part_faults
from adapterhub.adapter._tensors import Entry
from adapterhub.adapter._types import Norm

__all__ = ["build_norm", "norm_faults"]

_LABELS = {"weight": "weight", "bias": "bias"}


def norm_faults(layout: Layout, config: AdapterConfig, base: BaseSignature) -> list[str]:
    """Every way in which stored normalisations do not fit a base, a line each.

    Args:
        layout: The file's entries by place.
        config: The adapter's configuration.
        base: The base.
    """
    faults = list(_name_faults(layout, config, base))
    for name, (width, biased) in base.norms.items():
        if not config.rule.saves(ROOT + layout.place(name).trained):
            continue
        shapes: Shapes = {"weight": (width,), "bias": (width,)} if biased else {"weight": (width,)}
        parts = layout.norms.get(name)
        if parts is None:
            faults.append(f"{name}: {labelled(_LABELS, shapes)} missing, though `modules_to_save` names it.")
        else:
            faults += part_faults(name, parts, shapes, _LABELS)
    return faults


def build_norm(parts: Mapping[str, Entry], values: Mapping[str, torch.Tensor]) -> Norm:
    """A stored normalisation.

    Args:
        parts: Its entries, which fit.
        values: The file's tensors by key.
    """
    bias = parts.get("bias")
    return Norm(values[parts["weight"].key], None if bias is None else values[bias.key])


def _name_faults(layout: Layout, config: AdapterConfig, base: BaseSignature) -> Iterator[str]:
    """What `modules_to_save` names beside normalisations and the head of a task that has one."""
    heads = set(HEAD_MODULES) if config.head else set()
    for end in sorted(set(config.rule.modules_to_save) - heads):
        # PEFT takes whatever ends so, also where a name's part does not begin there.
        named = [n for n in (*base.modules, *base.embeddings) if (ROOT + layout.place(n).trained).endswith(end)]
        if named or not any((ROOT + layout.place(n).trained).endswith(end) for n in base.norms):
            found = f"the weights of {named[0]}" if named else "no normalisation of that name"
            yield (
                f"modules_to_save: `{end}` is not supported. Found {found}. Supported: the base's normalisations, and "
                f"{', '.join(HEAD_MODULES)} with task_type {' or '.join(HEAD_KINDS)}."
            )
