"""A model of one's own from a model that others hold."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn
from transformers import PreTrainedModel

__all__ = ["plain_copy"]

_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def plain_copy(model: PreTrainedModel, *, shared: bool = False) -> tuple[PreTrainedModel, dict[int, Any]]:
    """Copy a model without the forward hooks and the patched `forward` that an engine puts into it.

    Args:
        model: The model, which is left as it is.
        shared: Whether the copy's parameters and buffers are on the model's own memory; the parameters then need no
            gradient. Without, the copy has memory of its own.

    Returns:
        The copy, and every copied part by the `id` of its original.
    """
    twins: dict[int, Any] = {}
    for module in model.modules():
        # Closures over the engine would be copied as they are, and its locks cannot be.
        twins |= {id(vars(module)[name]): OrderedDict() for name in _HOOKS}
        if "forward" in vars(module):
            twins[id(vars(module)["forward"])] = None
    if shared:
        twins |= {id(value): nn.Parameter(value.detach(), requires_grad=False) for value in model.parameters()}
        twins |= {id(value): value.detach() for value in model.buffers()}
    copied: PreTrainedModel = copy.deepcopy(model, twins)
    for module in copied.modules():
        vars(module).pop("forward", None)
    return copied, twins
