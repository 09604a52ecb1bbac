"""A weighted sum of LoRA adapters as one plain LoRA adapter: exact, for servers that know neither sums nor gates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch.nn import functional

from adapterhub.adapter._base import LM_HEAD, BaseSignature
from adapterhub.adapter._types import Adapter, LowRank
from adapterhub.adapter._write import check_absent, write_lora
from adapterhub.errors import InputError

__all__ = ["export_mixture", "mixture_rank"]

_Parts = Sequence[tuple[Adapter, float]]


def export_mixture(parts: _Parts, base: BaseSignature, out: Path, *, rank: int | None = None) -> str:
    """Write `Σ gate · adapter` as one sealed PEFT folder that bare PEFT and vLLM load.

    At each module the `lora_A` are stacked and the `lora_B`, times gate and scale, stand side by side: their product is
    the weighted sum exactly, which PEFT's `linear` merge and a server's averages of factors are not. Every module gets
    the same rank, filled up with zeros, because vLLM reads no `rank_pattern`: it is the largest sum of ranks over the
    modules. The scale is 1 (`lora_alpha = r`), no option but `fan_in_fan_out` differs from PEFT's defaults, and
    modules are named in full, so that nothing else matches.

    vLLM takes any rank up to its `--max-lora-rank`, which is at most 512, and fills up by itself. It adapts linear
    modules; a mixture of adapters at embeddings is for PEFT. The same parts give the same bytes.

    Args:
        parts: Adapters and their gates, each a finite multiple of the adapter's own scale; a gate of 0 leaves it out.
        base: The base of them all.
        out: The folder to make; it appears whole or not at all.
        rank: Fill up to this rank, where adapters shall have one rank in common (PEFT's hotswap); by default what is
            needed.

    Returns:
        The content hash of the folder.

    Raises:
        InputError: If `out` exists, no part is left, `rank` is too small, or a part is no plain LoRA adapter sealed to
            this base: one with a head, a bias, DoRA's magnitude, normalisations of its own, or of another method. Every
            fault is listed.
    """
    check_absent(out)
    kept = _kept(parts, base)
    needed = mixture_rank(parts)
    if rank is not None and rank < needed:
        raise InputError(f"`rank` should be at least {needed}, the sum of the parts' ranks. Found {rank}. Raise it.")
    prefix = f"{base.prefix}." if base.prefix and LM_HEAD in base.modules else ""
    named = {name: name if name == LM_HEAD else prefix + name for name in _modules(kept)}
    tensors = {
        f"base_model.model.{named[name]}.{part}": value
        for name in named
        for part, value in _stacked(kept, name, rank or needed)
    }
    config = LoraConfig(
        r=rank or needed,
        lora_alpha=rank or needed,
        target_modules=list(named.values()),
        fan_in_fan_out=any(adapter.meta.get("fan_in_fan_out") is True for adapter, _ in kept),
        task_type="CAUSAL_LM" if LM_HEAD in base.modules else "FEATURE_EXTRACTION",
    )
    return write_lora(out, config, tensors, base, " + ".join(f"{gate:g} {a.source}" for a, gate in kept))


def _kept(parts: _Parts, base: BaseSignature) -> list[tuple[Adapter, float]]:
    """The parts with a gate, once nothing is left to complain about."""
    kept = [(adapter, gate) for adapter, gate in parts if gate != 0]
    faults = [fault for adapter, gate in kept for fault in _faults(adapter, gate, base)]
    if not kept:
        faults = ["there is no adapter with a gate other than 0"]
    if faults:
        raise InputError(
            "A mixture is made of plain LoRA adapters of one base. Found:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nLeave these out, or run the route in the engine, which mixes all methods."
        )
    return kept


def mixture_rank(parts: _Parts) -> int:
    """The rank that a mixture needs: the largest sum of its adapters' ranks over the modules.

    Args:
        parts: Adapters and their gates.
    """
    kept = [(adapter, gate) for adapter, gate in parts if gate != 0]
    return max((sum(low.rank for low, _ in _at(kept, name)) for name in _modules(kept)), default=0)


def _modules(parts: _Parts) -> list[str]:
    return list(dict.fromkeys(name for adapter, _ in parts for name in adapter.modules))


def _at(parts: _Parts, name: str) -> list[tuple[LowRank, float]]:
    return [(adapter.modules[name], gate) for adapter, gate in parts if name in adapter.modules]


def _stacked(parts: _Parts, name: str, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    """PEFT's two tensors of one module: (rank, d_in) and (d_out, rank)."""
    here = _at(parts, name)
    down = torch.cat([low.down for low, _ in here])
    up = torch.cat([low.up * gate for low, gate in here])
    zeros = (0, 0, 0, rank - len(down))
    tokens = here[0][0].reads == "tokens"
    yield "lora_embedding_A" if tokens else "lora_A.weight", functional.pad(down, zeros)
    yield "lora_embedding_B" if tokens else "lora_B.weight", functional.pad(up, zeros).T


def _faults(adapter: Adapter, gate: float, base: BaseSignature) -> Iterator[str]:
    """Why an adapter cannot be a part, a line each."""
    at = adapter.source
    if not math.isfinite(gate):
        yield f"{at}: its gate {gate}, which is not finite"
    if adapter.fingerprint != base.fingerprint or adapter.base_model != base.model_id:
        other = adapter.base_model if adapter.fingerprint else f"{adapter.base_model}, not sealed"
        yield f"{at}: its base {other or 'without an id'} instead of {base.model_id or 'this one, without an id'}"
    if adapter.method != "LORA":
        yield f"{at}: its method {adapter.method}"
    elif not adapter.modules:
        yield f"{at}: no factors at any module"
    if adapter.head is not None:
        yield f"{at}: its head"
    if adapter.norms and adapter.method == "LORA":
        # Their weighted sum needs those of the base, which are not at hand.
        yield f"{at}: its normalisation at {_first(sorted(adapter.norms))}"
    for option, what in (("magnitude", "DoRA's magnitude"), ("up_bias", "a bias"), ("bias", "a bias")):
        names = sorted(name for name, low in adapter.modules.items() if getattr(low, option) is not None)
        if names and adapter.method == "LORA":
            yield f"{at}: {what} at {_first(names)}"


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more modules" if names[1:] else "")
