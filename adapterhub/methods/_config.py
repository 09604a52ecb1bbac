"""What is stored of a bottleneck adapter beside its tensors."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from peft import PeftConfig
from torch.nn import functional

from adapterhub.errors import InputError, did_you_mean

__all__ = ["ACTIVATIONS", "BottleneckConfig", "HubPeftType"]

# The non-linearities of a bottleneck, by the name that is stored.
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class HubPeftType(str, enum.Enum):  # noqa: UP042  see the docstring
    """Names of our own PEFT methods.

    PEFT's own enum is closed, and its lookups go by hash and equality, which a string enum shares with the string in
    the JSON file. Not `StrEnum`: PEFT's status report splits `str(member)` at its dot.
    """

    BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """Configuration of a bottleneck adapter.

    The method of Houlsby et al. 2019 (arXiv 1902.00751) and Pfeiffer et al. 2020 (arXiv 2005.00247).
    At each target module, `y = W x` becomes `y + scaling * (up act(down y))` with affine `down` and `up`.

    Args:
        r: Width of the bottleneck.
        activation: `relu`, `gelu` or `silu`.
        scaling: Factor on what the adapter adds.
        target_modules: Names or suffixes of linear modules, or one regular expression; by default those before the two
            residual additions of a block, for architectures that are known.
        exclude_modules: Names or suffixes, or one regular expression, of modules to leave alone.
        modules_to_save: Modules that are trained whole and stored beside the adapter, such as a classification head.
        layers_to_transform: Indices of the blocks to adapt; all by default.
        layers_pattern: Name of the list that holds the blocks, where it cannot be guessed.

    Raises:
        InputError: If the width, the activation or the scaling is outside what is described.
    """

    r: int = field(default=16, metadata={"help": "Width of the bottleneck."})
    activation: str = field(default="relu", metadata={"help": "One of relu, gelu, silu."})
    scaling: float = field(default=1.0, metadata={"help": "Factor on what the adapter adds."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names or suffixes of linear modules, or one regular expression."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names or suffixes, or one regular expression, of modules to leave alone."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained whole and stored beside the adapter."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list that holds the blocks."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HubPeftType.BOTTLENECK
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        faults = list(_faults(self))
        if faults:
            raise InputError("\n".join(faults))


def _faults(config: BottleneckConfig) -> list[str]:
    faults = []
    if isinstance(config.r, bool) or not isinstance(config.r, int) or config.r < 1:
        faults.append(f"`r` should be a whole number of at least 1. Found {config.r!r}.")
    if config.activation not in ACTIVATIONS:
        near = did_you_mean(str(config.activation), ACTIVATIONS)
        faults.append(f"`activation` should be one of {', '.join(ACTIVATIONS)}. Found {config.activation!r}.{near}")
    if not isinstance(config.scaling, int | float) or not math.isfinite(config.scaling):
        faults.append(f"`scaling` should be a finite number. Found {config.scaling!r}.")
    return faults
