"""The bottleneck around one linear module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.errors import InputError
from adapterhub.methods._config import ACTIVATIONS, BottleneckConfig

__all__ = ["BASE_ROW", "BottleneckLayer"]

# PEFT's name for a row of a mixed batch that takes no adapter.
BASE_ROW = "__base__"


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear module with bottleneck adapters on its output.

    With `y = W x` and the active adapters `a`, the output is `y + Σₐ scalingₐ (Uₐ actₐ(Dₐ y + bₐ) + cₐ)`. `U` and `c`
    start at zero, so that a new adapter is the identity.

    Args:
        base_layer: `nn.Linear` or `Conv1D` with d_out outputs, or a PEFT layer around one.
        adapter_name: Name of the first adapter.
        config: Its configuration.

    Raises:
        InputError: If the module is neither of the two.
    """

    # D is (r, d_out) and U is (d_out, r); the two dictionaries hold what delete_adapter must take away as well.
    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_activation", "bottleneck_scaling")

    # Of PEFT's class; told again because `nn.Module` answers type checkers for every name.
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _cast_input_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_activation: dict[str, str] = {}
        self.bottleneck_scaling: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.in_features, self.out_features = _features(self.get_base_layer())
        self._active_adapter = [adapter_name]
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, or make it anew.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
        """
        down = nn.Linear(self.out_features, config.r)
        up = nn.Linear(config.r, self.out_features)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_activation[adapter_name] = config.activation
        self.bottleneck_scaling[adapter_name] = float(config.scaling)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Run the module and its adapters.

        Args:
            x: (rows, ..., d_in).
            *args: Passed to the module.
            adapter_names: One adapter for each row, `__base__` for none; by default the active ones for all rows.
            **kwargs: Passed to the module.

        Returns:
            (rows, ..., d_out) in the dtype of the module's output.
        """
        y: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        if adapter_names is not None:
            return self._forward_mixed(y, adapter_names)
        deltas = [self.delta(name, y) for name in self.active_adapters if name in self.bottleneck_down]
        return sum(deltas, start=y)

    def delta(self, adapter_name: str, y: torch.Tensor) -> torch.Tensor:
        """What one adapter adds to the module's output.

        Args:
            adapter_name: Name of the adapter.
            y: (..., d_out), the module's output without adapters.

        Returns:
            (..., d_out) in the dtype of `y`.
        """
        down, up = self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name]
        act = ACTIVATIONS[self.bottleneck_activation[adapter_name]]
        weight: torch.Tensor = down.weight  # type: ignore[assignment]
        added: torch.Tensor = (
            up(act(down(self._cast_input_dtype(y, weight.dtype)))) * self.bottleneck_scaling[adapter_name]
        )
        return added.to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: what the adapter adds is not linear.

        Raises:
            InputError: Always.
        """
        del safe_merge, adapter_names
        raise InputError(
            "Only a linear adapter can be merged into its base. Found a bottleneck, which is not linear. Keep it "
            "beside the base, or take it off with `unload()`."
        )

    def unmerge(self) -> None:
        """Do nothing: a bottleneck is never merged."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter is a change of the weight: it is not."""
        del adapter_name
        return False

    def _forward_mixed(self, y: torch.Tensor, adapter_names: list[str]) -> torch.Tensor:
        if len(adapter_names) != len(y):
            raise InputError(
                f"A mixed batch needs one adapter name for each row. Found {len(adapter_names)} names and {len(y)} "
                f"rows. Write `{BASE_ROW}` for a row without an adapter."
            )
        # The sums go to a copy: autograd may still need `y`.
        out = y.clone()
        for name in sorted(set(adapter_names) - {BASE_ROW}):
            if name not in self.bottleneck_down:
                continue
            rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=y.device)
            out[rows] = y[rows] + self.delta(name, y[rows])
        return out


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return int(d_in), int(d_out)
    raise InputError(
        f"A bottleneck adapts `nn.Linear` and `Conv1D`. Found {type(module).__name__}. Name linear modules in "
        "`target_modules`."
    )
