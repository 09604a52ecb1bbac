"""Putting one PEFT adapter on a base and taking it off again."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from adapterhub.adapter import BaseSignature
from adapterhub.errors import InputError
from adapterhub.methods import BottleneckConfig
from adapterhub.registry import Below
from adapterhub.training._stack import lay_below

__all__ = ["adapted", "adapter_config", "linear_targets", "memory_saving_layers", "norm_targets"]

_TASK_TYPES = {
    "generation": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Suffixes of the names of all linear modules of the backbone, as PEFT's `target_modules` matches them.

    The list is explicit, so that the saved configuration means the same modules on every copy of the base. A bare name
    such as `dense` is lengthened where it would also match a module outside the layers, such as BERT's pooler.

    Args:
        model: The base with any head.

    Returns:
        Sorted suffixes.

    Raises:
        InputError: If the backbone has no linear module.
    """
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    linears = [name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    wanted = {prefix + name for name in linears if not name.startswith("pooler")}
    if not wanted:
        raise InputError(f"{type(model).__name__} has no linear modules to adapt. Name modules in `targets`.")
    others = [name for name, _ in model.named_modules() if name not in wanted]
    suffixes = set()
    for name in wanted:
        leaf = name.rpartition(".")[2]
        clash = any(other == leaf or other.endswith(f".{leaf}") for other in others)
        suffixes.add(_within_layer(name) if clash else leaf)
    return sorted(suffixes)


def _within_layer(name: str) -> str:
    """The part of a module's name behind the last layer number."""
    parts = name.split(".")
    numbers = [position for position, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name


def norm_targets(model: PreTrainedModel, norms: Collection[str]) -> list[str]:
    """Ends of the names of a backbone's normalisations, as PEFT's `modules_to_save` matches them.

    PEFT looks at a name's last letters, not at its parts: `norm` is `input_layernorm` too. Where that would take in
    another module, such as a normalisation inside a head, the end is lengthened.

    Args:
        model: The base with any head.
        norms: Their names, relative to the backbone.

    Returns:
        Sorted ends.

    Raises:
        InputError: If there are none.
    """
    if not norms:
        raise InputError(f"{type(model).__name__} has no normalisations to train. Leave `norms` out.")
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    wanted = {prefix + name for name in norms}
    others = [name for name, _ in model.named_modules() if name not in wanted]
    return sorted({_shortest_end(name, others) for name in wanted})


def _shortest_end(name: str, others: Sequence[str]) -> str:
    """The last parts of a module's name, as few as tell it from the others."""
    parts = name.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in ends if not any(other.endswith(end) for other in others)), name)


def adapter_config(
    model: PreTrainedModel,
    head: str,
    *,
    method: str,
    rank: int,
    alpha: float | None,
    targets: Sequence[str] | None,
    norms: Collection[str] | None = None,
) -> PeftConfig:
    """The PEFT configuration of a new adapter.

    Args:
        model: The base with its head.
        head: The card's head.
        method: `lora` or `bottleneck`.
        rank: LoRA's rank or the bottleneck's width.
        alpha: What is added has the scale `alpha / rank`; by default 2 for LoRA and 1 for the bottleneck.
        targets: Suffixes of module names; by default all linear modules for LoRA, the method's own for the bottleneck.
        norms: The backbone's normalisations, to train and store copies of them beside the adapter; None to leave them.

    Raises:
        InputError: If normalisations are to be trained and there are none.
    """
    task_type = _TASK_TYPES[head]
    saved = None if norms is None else norm_targets(model, norms)
    if method == "bottleneck":
        scaling = 1.0 if alpha is None else alpha / rank
        chosen = None if targets is None else list(targets)
        return BottleneckConfig(
            task_type=task_type, r=rank, scaling=scaling, target_modules=chosen, modules_to_save=saved
        )
    chosen = list(targets) if targets else linear_targets(model)
    return LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=chosen,
        modules_to_save=saved,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def memory_saving_layers(model: Any) -> list[nn.Module]:
    """The layers of a model that can run again on the way back instead of keeping what they computed, made ready.

    Args:
        model: A PEFT model.

    Raises:
        InputError: If it has none.
    """
    base = model.get_base_model()
    if not base.supports_gradient_checkpointing:
        raise InputError(
            f"Gradient checkpointing needs layers that allow it. {type(base).__name__} has none. Leave it out."
        )
    base.gradient_checkpointing_enable({"use_reentrant": False})
    return [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def adapted(
    model: PreTrainedModel, config: PeftConfig, chain: Sequence[Below] = (), base: BaseSignature | None = None
) -> Iterator[Any]:
    """The base with a fresh adapter for the length of the block; afterwards the base is what it was.

    The adapter is always called `default`: PEFT matches adapter names as parts of parameter names, so a task's name
    could lose or swap other tensors.

    Args:
        model: The base with its head.
        config: The adapter's configuration.
        chain: Adapters that lie frozen under it.
        base: The base, where there is a chain.

    Raises:
        InputError: If the targets match no module that the method can adapt, or the chain is of another method.
        IncompatibleAdapterError: If an adapter of the chain does not fit the base.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT still calls transformers' old checkpointing names
            wrapped: PeftModel = get_peft_model(model, config, adapter_name="default")
    except ValueError as error:
        raise InputError(f"The adapter does not go on {type(model).__name__}: {error}") from error
    try:
        if base is not None:
            lay_below(wrapped, chain, base)
        yield wrapped
    finally:
        if model.is_activation_checkpointing:
            model.gradient_checkpointing_disable()
        # Unloading leaves the trained copies of heads and normalisations in the base.
        copied = [(name, m.original_module) for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
        wrapped.unload()
        for name, original in copied:
            model.set_submodule(name, original)
