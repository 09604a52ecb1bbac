"""LoRA-FA: B alone is trained, by a gradient that makes up for A."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from adapterhub.errors import InputError

__all__ = ["FrozenA"]


class FrozenA(AdamW):
    """LoRA-FA (Zhang et al. 2023, arXiv 2308.03303) as in PEFT: `∇B (A Aᵀ)⁻¹` goes into AdamW, A stays as it is.

    The product is the gradient of B for which `B A` moves nearest to a full gradient's step. PEFT's own optimiser keeps
    its state by parameter name with integers in it, works in bfloat16 and wants the model; this one has AdamW's state.
    PEFT's division by the square of the LoRA scale is left out, as AdamW does not see it.

    A's gradient is dropped at each step, whether or not one was computed.

    Args:
        groups: Groups with `params` and `names`; each `lora_B` with its `lora_A`.
        weight_decay: Decoupled decay.

    Raises:
        InputError: If a `lora_B` is without its `lora_A`.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, weight_decay: float = 0.0) -> None:
        taken = [dict(group) for group in groups]
        named: dict[str, Tensor] = {}
        for group in taken:
            named.update(zip(group.get("names", ()), group["params"], strict=False))
        pairs = {name: name.replace("lora_B", "lora_A") for name in named if "lora_B" in name}
        if lone := [name for name, other in pairs.items() if other not in named]:
            raise InputError(f"LoRA-FA takes each lora_B with its lora_A. Found alone: {', '.join(lone)}.")
        self._pairs = [(named[other], named[name]) for name, other in pairs.items()]
        super().__init__(taken, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; the gradients of the A are dropped, those of the B replaced.

        Args:
            closure: Evaluates the loss again; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for a, b in self._pairs:
            a.grad = None
            if b.grad is not None:
                square = a @ a.T + 1e-8 * torch.eye(len(a), dtype=a.dtype, device=a.device)
                b.grad = torch.linalg.solve(square, b.grad.T).T.contiguous()
        super().step()
        return loss
