"""What an adapter is once it has been read: plain tensors by module of the base, and a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

__all__ = ["Adapter", "HeadTensors", "LowRank", "Norm", "Scaling"]


@dataclass(frozen=True)
class LowRank:
    """One adapter's factors at one module of the base.

    With `x` the module's input, `y` its output and `z` what `reads` names, the adapter adds
    `act(z downᵀ + bias) up + up_bias` to `y`. LoRA (Hu et al. 2021) reads the input with the identity as activation;
    the bottleneck (Houlsby et al. 2019) reads the output; LoRA at an embedding reads the tokens, each a one-hot `z`.
    The scale is folded into `up` and `up_bias`.

    Args:
        down: (rank, d_z); d_z is the vocabulary where tokens are read.
        up: (rank, d_out), the scale folded in.
        reads: What `down` reads.
        activation: `identity`, `relu`, `gelu` or `silu`.
        bias: (rank,), added before the activation.
        up_bias: (d_out,), the scale folded in, added with the gate.
        magnitude: (d_out,) of DoRA (Liu et al. 2024): the weight's rows, `W + upᵀ down`, are rescaled to these norms.
    """

    down: torch.Tensor
    up: torch.Tensor
    reads: Literal["input", "output", "tokens"] = "input"
    activation: str = "identity"
    bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of rows of the arena that these factors take."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Scaling:
    """One adapter's elementwise factors at one linear module: IA³ (Liu et al. 2022, arXiv 2205.05638).

    Args:
        factors: (d_in,) or (d_out,), by what is multiplied.
        scales: Whether the module's input or its output is multiplied.
    """

    factors: torch.Tensor
    scales: Literal["input", "output"]


@dataclass(frozen=True)
class Norm:
    """New parameters of one normalisation, in the place of the base's own: layer-norm tuning (arXiv 2312.11420).

    Args:
        weight: (d,).
        bias: (d,), or None where the base's normalisation has none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None


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
        method: PEFT's name of the method: `LORA`, `BOTTLENECK`, `IA3` or `LN_TUNING`.
        base_model: Id of the base it was trained on.
        fingerprint: Fingerprint of that base.
        sha256: Content hash of the adapter's files.
        modules: Factors by module name, relative to the backbone (`layers.0.self_attn.q_proj`) or `lm_head`.
        scalings: Elementwise factors by module name.
        norms: New normalisations by module name.
        head: The head, or None where the base's LM head answers.
        meta: What the file says of itself beside this: the PEFT configuration's canonical form.
    """

    source: str
    method: str
    base_model: str
    fingerprint: str
    sha256: str
    modules: Mapping[str, LowRank] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    head: HeadTensors | None = None
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank over the modules."""
        return max((factors.rank for factors in self.modules.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = [*self.modules.values(), *self.scalings.values(), *self.norms.values()]
        values = [value for part in [*parts, self.head] if part is not None for value in vars(part).values()]
        return sum(t.numel() * t.element_size() for t in values if isinstance(t, torch.Tensor))
