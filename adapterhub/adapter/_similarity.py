"""How alike adapters are, by what they do to the weights and not by how they are factored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adapterhub.adapter._types import Adapter
from adapterhub.errors import InputError

__all__ = ["adapter_similarity"]


def adapter_similarity(adapters: Sequence[Adapter]) -> NDArray[np.float64]:
    """The cosine of every two adapters' ΔW, all modules read as one long vector.

    A factor pair is one of many: B R and R⁻¹ A give the same ΔW = BA, so A and B are never compared. Nor is ΔW formed:
    ⟨B₁A₁, B₂A₂⟩ = tr(B₁ᵀB₂ A₂A₁ᵀ), products of the size of the ranks. A module that only one of two adapters has counts
    as zero in the other; heads and normalisations that are stored beside the factors take no part.

    Args:
        adapters: Plain LoRA adapters of one base, at least one.

    Returns:
        (adapters, adapters), symmetric, with ones on the diagonal.

    Raises:
        InputError: If an adapter is not plain LoRA, is of another base than the first, or adds nothing to the weights,
            so that it has no direction; every fault is listed.
    """
    faults = [fault for adapter in adapters if (fault := _fault(adapter, adapters[0]))]
    if faults or not adapters:
        listed = "\n".join(f"  {fault}" for fault in faults or ["none"])
        raise InputError(f"Adapters are compared by what plain LoRA adds to one base's weights. Found:\n{listed}")
    gram = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.modules):
        gram += _products(adapters, name)
    norms = gram.diagonal().sqrt()
    bare = [adapter.source for adapter, norm in zip(adapters, norms.tolist(), strict=True) if not norm]
    if bare:
        raise InputError(f"An adapter that is compared changes the weights. Found none in {', '.join(bare)}. Train it.")
    found = (gram / norms[:, None] / norms).clamp(-1, 1)
    found.fill_diagonal_(1)
    return found.numpy()


def _products(adapters: Sequence[Adapter], name: str) -> torch.Tensor:
    """⟨ΔW_i, ΔW_j⟩ at one module, (adapters, adapters) float64."""
    here = [(place, adapter.modules[name]) for place, adapter in enumerate(adapters) if name in adapter.modules]
    owner = torch.tensor([place for place, low in here for _ in range(low.rank)])
    ups = torch.cat([low.up.double() for _, low in here])  # (ranks, d_out)
    downs = torch.cat([low.down.double() for _, low in here])  # (ranks, d_in)
    terms = (ups @ ups.T) * (downs @ downs.T)
    rows = torch.zeros(len(adapters), len(owner), dtype=torch.float64).index_add_(0, owner, terms)
    return torch.zeros(len(adapters), len(adapters), dtype=torch.float64).index_add_(1, owner, rows)


def _fault(adapter: Adapter, first: Adapter) -> str | None:
    if adapter.method != "LORA":
        return f"{adapter.source}: its method {adapter.method}"
    if (adapter.base_model, adapter.fingerprint) != (first.base_model, first.fingerprint):
        return f"{adapter.source}: its base {adapter.base_model or 'without an id'} instead of {first.base_model}"
    dora = next((name for name, low in adapter.modules.items() if low.magnitude is not None), None)
    return None if dora is None else f"{adapter.source}: DoRA's magnitude at {dora}"
