"""What an adapter is once it has been read: plain tensors by module of the base, and a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

__all__ = ["Adapter", "HeadTensors", "LowRank"]


@dataclass(frozen=True)
class LowRank:
    """One adapter's factors at one module of the base.

    With `x` the module's input, `y` its output and `z` the one of the two that `reads` names, the adapter adds
    `act(z downᵀ + bias) up + up_bias` to `y`. LoRA (Hu et al. 2021) reads the input with the identity as activation;
    the bottleneck (Houlsby et al. 2019) reads the output. The scale is folded into `up` and `up_bias`.

    Args:
        down: (rank, d_z).
        up: (rank, d_out), the scale folded in.
        reads: Which side of the module `down` reads.
        activation: `identity`, `relu`, `gelu` or `silu`.
        bias: (rank,), added before the activation.
        up_bias: (d_out,), the scale folded in, added with the gate.
    """

    down: torch.Tensor
    up: torch.Tensor
    reads: Literal["input", "output"] = "input"
    activation: str = "identity"
    bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of rows of the arena that these factors take."""
        return self.down.shape[0]


@dataclass(frozen=True)
class HeadTensors:
    """A linear head on the backbone's hidden states.

    Args:
        kind: `sequence` answers once for a text, `token` once for a token.
        weight: (labels, hidden).
        bias: (labels,) or None.
    """

    kind: Literal["sequence", "token"]
    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter that has passed every check against one base model.

    Args:
        source: Where it was read from, for messages.
        method: PEFT's name of the method: `LORA` or `BOTTLENECK`.
        base_model: Id of the base it was trained on.
        fingerprint: Fingerprint of that base.
        sha256: Content hash of the adapter's files.
        modules: Factors by module name, relative to the backbone (`layers.0.self_attn.q_proj`) or `lm_head`.
        head: The head, or None where the base's LM head answers.
        meta: What the file says of itself beside this: the PEFT configuration's canonical form.
    """

    source: str
    method: str
    base_model: str
    fingerprint: str
    sha256: str
    modules: Mapping[str, LowRank]
    head: HeadTensors | None = None
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank over the modules."""
        return max((factors.rank for factors in self.modules.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [t for m in self.modules.values() for t in (m.down, m.up, m.bias, m.up_bias) if t is not None]
        if self.head is not None:
            tensors += [t for t in (self.head.weight, self.head.bias) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)
