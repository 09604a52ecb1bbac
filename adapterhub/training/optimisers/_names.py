"""Optimisers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch.optim import SGD, AdamW, Optimizer

from adapterhub.errors import InputError, did_you_mean
from adapterhub.training.optimisers._adaptive import AdaptiveMomentum
from adapterhub.training.optimisers._frozen_a import FrozenA
from adapterhub.training.optimisers._muon import MuonAdamW

__all__ = ["OPTIMISERS", "optimizer_of"]

OPTIMISERS: Mapping[str, str] = MappingProxyType(
    {
        "adamw": "AdamW without weight decay",
        "sgd": "plain gradient descent; what a gradient weighting promises holds for it",
        "adaptive_momentum": "AdamW whose momentum gives way where the gradient turns (our reading of APT)",
        "muon": "Muon on the adapters' matrices, AdamW on the rest",
        "lora_fa": "AdamW on each lora_B with A held (LoRA-FA)",
    }
)

_MADE: dict[str, Callable[..., Optimizer]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "adaptive_momentum": AdaptiveMomentum,
    "muon": MuonAdamW,
    "lora_fa": FrozenA,
}
_OPTIONS = {
    "adamw": ("betas", "eps", "weight_decay"),
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adaptive_momentum": ("beta2", "eps", "high", "low", "weight_decay"),
    "muon": ("momentum", "weight_decay"),
    "lora_fa": ("weight_decay",),
}


def optimizer_of(name: str, groups: Iterable[Mapping[str, Any]], **options: Any) -> Optimizer:
    """An optimiser over groups of parameters; all its state is tensors by parameter, as checkpoints need it.

    Args:
        name: One of `OPTIMISERS`.
        groups: From `parameter_groups`, or groups of `params` and `lr` without `names`; they are not changed.
        options: Options of the optimiser; weight decay is 0 unless given.

    Raises:
        InputError: If the name or an option is unknown.
    """
    if name not in OPTIMISERS:
        raise InputError(
            f"An optimiser is one of {', '.join(OPTIMISERS)}. Found {name!r}.{did_you_mean(name, OPTIMISERS)}"
        )
    faults = [
        f"Optimiser {name!r} has the options {', '.join(_OPTIONS[name])}. Found `{option}`."
        + did_you_mean(option, _OPTIONS[name])
        for option in options
        if option not in _OPTIONS[name]
    ]
    if faults:
        raise InputError("\n".join(faults))
    if name == "adamw":
        options = {"weight_decay": 0.0, "fused": True, **options}
    return _MADE[name]([dict(group) for group in groups], **options)
