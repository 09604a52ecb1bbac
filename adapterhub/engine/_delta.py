"""What an adapter changes at one module, with everything that depends on the base's weights folded in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.adapter import Adapter, HeadTensors, LowRank, Norm

__all__ = ["Delta", "Folded", "Gain", "fold"]

_PROBES = 1024  # unit vectors at a time


@dataclass(frozen=True)
class Gain:
    """`z ⊙ values`, added to a module's output, or, where z is the input, to its input.

    Args:
        reads: Whether z is the module's `input`, its `output`, or the `normalised` input of a normalisation.
        values: (d_z,).
    """

    reads: Literal["input", "output", "normalised"]
    values: torch.Tensor


@dataclass(frozen=True)
class Delta:
    """One adapter's change of one module: the sum of its parts.

    Args:
        low: A low-rank part; its own `up_bias` and `magnitude` are None, being in `shift` and in `up` and `gain`.
        gain: An elementwise part.
        shift: (d_out,), added to the output.
    """

    low: LowRank | None = None
    gain: Gain | None = None
    shift: torch.Tensor | None = None


@dataclass(frozen=True)
class Folded:
    """An adapter as the engine runs it.

    Args:
        sha256: Content hash of the adapter's files.
        deltas: By module name, relative to the backbone or `lm_head`.
        head: The head, or None where the base's LM head answers.
    """

    sha256: str
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    head: HeadTensors | None = None

    @cached_property
    def ranks(self) -> int:
        """Ranks of the arena that the adapter takes: its largest, and at least one, so that heads are bounded too."""
        return max([1, *(delta.low.rank for delta in self.deltas.values() if delta.low is not None)])

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def held_nbytes(self) -> int:
        """Bytes of the memory that the tensors are views on."""
        storages = (tensor.untyped_storage() for tensor in self._tensors())
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def _tensors(self) -> list[torch.Tensor]:
        parts: list[object] = [self.head]
        for delta in self.deltas.values():
            parts += [delta.low, delta.gain, delta]
        values = [value for part in parts if part is not None for value in vars(part).values()]
        return [value for value in values if isinstance(value, torch.Tensor)]


def fold(adapter: Adapter, module: Callable[[str], nn.Module]) -> Folded:
    """Fold the base's weights into an adapter's parts.

    DoRA's column norm and the difference to a normalisation's own parameters are computed here, once, in float32.

    Args:
        adapter: What was read from its folder.
        module: Finds a module of the base by its backbone-relative name.
    """
    deltas: dict[str, Delta] = {}
    for name, low in adapter.modules.items():
        deltas[name] = _linear(low) if low.magnitude is None else _dora(low, module(name))
    for name, scaling in adapter.scalings.items():
        deltas[name] = Delta(gain=Gain(scaling.scales, scaling.factors - 1))
    for name, norm in adapter.norms.items():
        deltas[name] = _norm(norm, module(name))
    return Folded(adapter.sha256, deltas, adapter.head)


def _linear(low: LowRank) -> Delta:
    return Delta(LowRank(low.down, low.up, low.reads, low.activation, low.bias), shift=low.up_bias)


def _dora(low: LowRank, module: nn.Module) -> Delta:
    """`s (W x + B A x) + b` with `s = m / ‖W + B A‖`, as what is added to `W x + b` (Liu et al. 2024, 4.3)."""
    assert low.magnitude is not None
    weight = _matrix(module)
    norm = (weight + low.up.T @ low.down).norm(dim=1)
    scale = torch.where(norm > 0, low.magnitude / norm, 1)  # a row of zeros has no direction, and gives nothing
    bias = getattr(module, "bias", None)
    shift = None if bias is None else (1 - scale) * _wide(bias)
    part = LowRank(low.down, low.up * scale, low.reads, low.activation, low.bias)
    return Delta(part, Gain("output", scale - 1), shift)


def _norm(norm: Norm, module: nn.Module) -> Delta:
    shift = None if norm.bias is None else norm.bias - _wide(module.bias)  # type: ignore[arg-type]
    return Delta(gain=Gain("normalised", norm.weight - _wide(module.weight)), shift=shift)  # type: ignore[arg-type]


def _matrix(module: nn.Module) -> torch.Tensor:
    """A linear module's weight, (d_out, d_in), on the CPU in float32 at least, whichever way it is stored."""
    weight = module.get_parameter("weight")
    if type(weight) is nn.Parameter and weight.is_floating_point():
        return _wide(weight.T if isinstance(module, Conv1D) else weight)
    if type(weight).dequantize is not torch.Tensor.dequantize:
        return _wide(weight.dequantize())
    return _probed(module, weight.device)


def _probed(module: nn.Module, device: torch.device) -> torch.Tensor:
    """The matrix by which a linear module of any kind multiplies: what it answers to every unit vector."""
    size: int = module.in_features  # type: ignore[assignment]
    forward = type(module).forward  # not the instance's, which follows the running plan
    rows = []
    with torch.no_grad():
        still = forward(module, torch.zeros(1, size, device=device))
        for start in range(0, size, _PROBES):
            ones = torch.zeros(min(_PROBES, size - start), size, device=device)
            ones.diagonal(start).fill_(1)
            rows.append(forward(module, ones) - still)
    return _wide(torch.cat(rows).T)


def _wide(value: torch.Tensor) -> torch.Tensor:
    """A tensor of numbers on the CPU, in float32 at least."""
    return value.detach().to("cpu", torch.promote_types(value.dtype, torch.float32))
