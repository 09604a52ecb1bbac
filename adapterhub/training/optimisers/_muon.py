"""Muon on the adapters' matrices and AdamW on the rest, as one optimiser."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

__all__ = ["MuonAdamW"]

_MATRICES = (".lora_A.", ".lora_B.", ".bottleneck_down.", ".bottleneck_up.")


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` on the two matrices of each adapted module, `AdamW` on every other parameter.

    Muon (Jordan 2024) steps along the orthogonal factor of its momentum: all singular values of the update are near
    1, so no task's directions are small. Its steps are scaled to the size of AdamW's ("match_rms_adamw"), so that one
    learning rate serves both. The direction preservation that APT (arXiv 2604.08939) puts before Muon is not here.

    A group is split in two where it holds both sorts; a parameter is told by its name, so a group without `names` goes
    to AdamW. The state is that of one optimiser: `momentum_buffer` for Muon's parameters, AdamW's for the others.

    Args:
        groups: From `parameter_groups`.
        momentum: Decay of Muon's running mean.
        weight_decay: Decoupled decay of both.
    """

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in groups:
            names = group.get("names", [""] * len(group["params"]))
            for chosen, kept in ((matrices, True), (others, False)):
                pairs = [
                    (parameter, name)
                    for parameter, name in zip(group["params"], names, strict=True)
                    if _is_matrix(name, parameter) is kept
                ]
                if pairs:
                    parameters, of = zip(*pairs, strict=True)
                    chosen.append({**group, "params": list(parameters), "names": list(of)})
        self._parts: list[Optimizer] = []
        if matrices:
            options = {"momentum": momentum, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(Muon(matrices, **options))  # type: ignore[arg-type]
        if others:
            self._parts.append(AdamW(others, weight_decay=weight_decay, fused=True))
        self._sizes = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this object's groups and state, so that schedulers and checkpoints see one."""
        start = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups, part.state = self.param_groups[start : start + size], self.state
            start += size

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.state = defaultdict(dict, self.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both parts.

        Args:
            closure: Evaluates the loss again; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and any(part in f".{name}." for part in _MATRICES)
