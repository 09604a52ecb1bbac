"""Whether an adapter's tensors fit a base, key by key and shape by shape, and what they are there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from adapterhub.adapter._base import LM_HEAD, POOLER, BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._options import HEAD_KINDS, HEAD_MODULES
from adapterhub.adapter._tensors import Entry, read_tensor
from adapterhub.adapter._types import HeadTensors, LowRank

__all__ = ["Layout", "build_head", "build_modules", "fit_faults", "read_layout"]

_ROOT = "base_model.model."
# Parameters at each module, by method, in the order in which faults are told.
_PARTS: dict[str, tuple[str, ...]] = {
    "LORA": ("lora_A.weight", "lora_B.weight"),
    "BOTTLENECK": ("bottleneck_down.weight", "bottleneck_down.bias", "bottleneck_up.weight", "bottleneck_up.bias"),
}


@dataclass(frozen=True)
class Layout:
    """A file's entries by place in the base.

    Args:
        prefix: What the trained model had before the backbone's names: `model.` or nothing.
        modules: Entries by module, relative to the backbone, and by part (`lora_A.weight`).
        head: Entries of the head by key (`score.weight`).
        strange: Keys that are neither.
    """

    prefix: str
    modules: dict[str, dict[str, Entry]] = field(default_factory=dict)
    head: dict[str, Entry] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)

    def trained_name(self, module: str) -> str:
        """A module's name in the model that was trained, which is what PEFT's patterns match."""
        return module if module == LM_HEAD else self.prefix + module


def read_layout(entries: Mapping[str, Entry], config: AdapterConfig, base: BaseSignature) -> Layout:
    """Sort a file's keys by the place in the base that they name.

    Args:
        entries: The file's header.
        config: The adapter's configuration.
        base: The base.
    """
    prefix = f"{base.prefix}."
    prefixed = any(key.startswith(_ROOT + prefix) for key in entries)
    layout = Layout(prefix if prefixed else "")
    for key, entry in entries.items():
        name = key.removeprefix(_ROOT)
        part = next((part for part in _PARTS[config.method] if name.endswith(f".{part}")), None)
        module = name.removesuffix(f".{part}")
        if name == key:
            layout.strange.append(key)
        elif part is not None and module == LM_HEAD:
            layout.modules.setdefault(module, {})[part] = entry
        elif part is not None and module.startswith(layout.prefix):
            layout.modules.setdefault(module.removeprefix(layout.prefix), {})[part] = entry
        elif config.head and name.split(".")[0] in HEAD_MODULES:
            layout.head[name] = entry
        else:
            layout.strange.append(key)
    return layout


def fit_faults(layout: Layout, config: AdapterConfig, base: BaseSignature) -> list[str]:
    """Every way in which a file does not fit a base, a line each.

    Args:
        layout: The file's entries by place.
        config: The adapter's configuration.
        base: The base.
    """
    faults = []
    targets = {name for name in base.modules if config.rule.matches(layout.trained_name(name))}
    optional = _optional(config)
    for name in [*base.modules, *(name for name in layout.modules if name not in base.modules)]:
        parts = layout.modules.get(name)
        if parts is None:
            if name in targets and not name.startswith(optional):
                faults.append(f"{name}: {_short(_PARTS[config.method])} missing, though `target_modules` names it.")
        elif name not in base.modules:
            found = ", ".join(f"{_short((part,))} {entry.shape}" for part, entry in parts.items())
            faults.append(f"{name}: the base has no such linear module. Found {found}.")
        elif name not in targets:
            faults.append(f"{name}: {_short(tuple(parts))} unexpected, since `target_modules` does not name it.")
        else:
            faults += _part_faults(name, parts, _shapes(name, layout, config, base))
    faults += _head_faults(layout, config, base)
    faults += [_strange_fault(key, config.method) for key in layout.strange]
    if not targets:
        faults.append("`target_modules` names no linear module of the base.")
    return faults


def build_modules(data: bytearray, layout: Layout, config: AdapterConfig) -> tuple[dict[str, LowRank], list[str]]:
    """Factors by module, and a line for each tensor that holds NaN or infinity.

    Args:
        data: The safetensors file.
        layout: Entries that fit.
        config: The adapter's configuration.
    """
    modules, faults = {}, []
    for name, parts in layout.modules.items():
        tensors = {part: read_tensor(data, entry) for part, entry in parts.items()}
        faults += [
            f"{name}: {_short((part,))} holds NaN or infinity." for part, value in tensors.items() if not _finite(value)
        ]
        down, bias, up, up_bias = (tensors.get(part) for part in _slots(config.method))
        assert down is not None
        assert up is not None
        scale = config.scale(layout.trained_name(name))
        for value in (up, up_bias):
            if value is not None and scale != 1:
                value.mul_(scale)
        modules[name] = (
            LowRank(down, up.t())
            if config.method == "LORA"
            else LowRank(down, up.t(), "output", str(config.options["activation"]), bias, up_bias)
        )
    return modules, faults


def build_head(data: bytearray, layout: Layout, config: AdapterConfig) -> tuple[HeadTensors | None, list[str]]:
    """The head, and a line for each of its tensors that holds NaN or infinity.

    Args:
        data: The safetensors file.
        layout: Entries that fit.
        config: The adapter's configuration.
    """
    if config.head is None:
        return None, []
    tensors = {key: read_tensor(data, entry) for key, entry in layout.head.items()}
    faults = [f"{key} holds NaN or infinity." for key, value in tensors.items() if not _finite(value)]
    by_part = {key.rpartition(".")[2]: value for key, value in tensors.items()}
    return HeadTensors(config.head, by_part["weight"], by_part.get("bias")), faults


def _slots(method: str) -> tuple[str, str, str, str]:
    """The parts that are down, bias, up and up_bias; LoRA has no biases."""
    if method == "LORA":
        return "lora_A.weight", "", "lora_B.weight", ""
    return "bottleneck_down.weight", "bottleneck_down.bias", "bottleneck_up.weight", "bottleneck_up.bias"


def _shapes(name: str, layout: Layout, config: AdapterConfig, base: BaseSignature) -> dict[str, tuple[int, ...]]:
    d_in, d_out = base.modules[name]
    rank = config.rank(layout.trained_name(name))
    shapes = (
        [(rank, d_in), (d_out, rank)] if config.method == "LORA" else [(rank, d_out), (rank,), (d_out, rank), (d_out,)]
    )
    return dict(zip(_PARTS[config.method], shapes, strict=True))


def _part_faults(name: str, parts: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    faults = []
    for part, shape in shapes.items():
        entry = parts.get(part)
        if entry is None:
            faults.append(f"{name}: {_short((part,))} missing.")
        elif entry.shape != shape:
            faults.append(f"{name}: {_short((part,))} should have shape {shape}. Found {entry.shape}.")
        elif not entry.readable:
            faults.append(f"{name}: {_short((part,))} should be F32, F16 or BF16. Found {entry.dtype}.")
    return faults


def _head_faults(layout: Layout, config: AdapterConfig, base: BaseSignature) -> list[str]:
    if config.head is None:
        return []
    names = {key.split(".")[0] for key in layout.head}
    if len(names) != 1:
        found = ", ".join(sorted(layout.head)) or "none"
        return [
            f"The adapter should bring one head, {' or '.join(HEAD_MODULES)}. Found {found}. Train it with a task type."
        ]
    (name,) = names
    faults = []
    weight, bias = layout.head.get(f"{name}.weight"), layout.head.get(f"{name}.bias")
    if weight is None:
        faults.append(f"{name}.weight missing.")
    elif len(weight.shape) != 2 or weight.shape[1] != base.hidden_size or not weight.shape[0]:
        faults.append(f"{name}.weight should have shape (labels, {base.hidden_size}). Found {weight.shape}.")
    elif bias is not None and bias.shape != weight.shape[:1]:
        faults.append(f"{name}.bias should have shape {weight.shape[:1]}. Found {bias.shape}.")
    for key, entry in layout.head.items():
        if key not in (f"{name}.weight", f"{name}.bias"):
            faults.append(f"{key}: unexpected, since a head is one linear module. Found {entry.shape}.")
        elif not entry.readable:
            faults.append(f"{key} should be F32, F16 or BF16. Found {entry.dtype}.")
    return faults


def _strange_fault(key: str, method: str) -> str:
    if not key.startswith(_ROOT):
        return f"{key}: unexpected, since PEFT's keys begin with {_ROOT}"
    if "embed" in key or ".base_layer." in key:
        return f"{key}: unexpected weights of the base itself. Save the adapter with `save_embedding_layers=False`."
    if key.removeprefix(_ROOT).split(".")[0] in HEAD_MODULES:
        return f"{key}: unexpected without a task_type that has a head ({', '.join(HEAD_KINDS)})."
    return f"{key}: unexpected for {method}, which has {_short(_PARTS[method])} at linear modules."


def _optional(config: AdapterConfig) -> tuple[str, ...]:
    """Modules that the trained model may have lacked although this base has them: an LM head, BERT's pooler."""
    lm_head = () if config.options["task_type"] == "CAUSAL_LM" else (LM_HEAD,)
    pooler = () if config.head == "sequence" else (POOLER,)
    return lm_head + pooler


def _finite(value: torch.Tensor) -> bool:
    # One pass without a mask, five times as fast; both ends are NaN where any value is.
    low, high = value.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _short(parts: tuple[str, ...]) -> str:
    return ", ".join(part.removesuffix(".weight") for part in parts)
