"""Folders that real PEFT writes from tiny models, ways to spoil them, and the plain formulas of what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from adapterhub.adapter import BaseSignature, LowRank, Norm, Scaling, read_adapter
from adapterhub.errors import IncompatibleAdapterError
from adapterhub.methods import BottleneckConfig

CONFIG, WEIGHTS, SEAL = "adapter_config.json", "adapter_model.safetensors", "adapterhub.json"
ACTIVATIONS = {"identity": lambda z: z, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


def trained(model: PreTrainedModel, config, seed: int = 3) -> PeftModel:
    """A PEFT model with random weights in every adapter tensor and head, as after training."""
    peft = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return peft


def lora(**options) -> LoraConfig:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    return LoraConfig(**options)


def bottleneck(**options) -> BottleneckConfig:
    return BottleneckConfig(**({"r": 4, "task_type": "CAUSAL_LM"} | options))


def ia3(**options) -> IA3Config:
    targets = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    return IA3Config(**(targets | {"task_type": "CAUSAL_LM"} | options))


def ln_tuning(**options) -> LNTuningConfig:
    return LNTuningConfig(**({"task_type": "CAUSAL_LM"} | options))


def edit_config(folder: Path, **changes) -> None:
    fields = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(fields))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def plain(part: LowRank | Scaling | Norm, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a base's module gives with one part, by the formula in the part's docstring."""
    if isinstance(part, Scaling):
        return module(x * part.factors) if part.scales == "input" else module(x) * part.factors
    if isinstance(part, Norm):
        return _renormed(part, module, x)
    y = module(x)
    if part.magnitude is not None:
        return _rescaled(part, module, x)
    z = {"input": x, "output": y}.get(part.reads)
    if z is None:
        z = functional.one_hot(x, part.down.shape[1]).float()
    hidden = z @ part.down.T
    if part.bias is not None:
        hidden = hidden + part.bias
    added = ACTIVATIONS[part.activation](hidden) @ part.up
    return y + added if part.up_bias is None else y + added + part.up_bias


def _rescaled(part: LowRank, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    changed = weight + part.up.T @ part.down
    y = x @ (changed * (part.magnitude / changed.norm(dim=1))[:, None]).T
    return y if module.bias is None else y + module.bias


def _renormed(part: Norm, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(x, x.shape[-1:], part.weight, part.bias, module.eps)
    assert part.bias is None
    # Gemma's normalisations multiply by 1 + weight.
    offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
    epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * (offset + part.weight)


def unsealed(folder: Path, **changes) -> Path:
    """Unseal a folder and name its base, as a PEFT folder from elsewhere."""
    (folder / SEAL).unlink(missing_ok=True)
    edit_config(folder, **({"base_model_name_or_path": "acme/tiny"} | changes))
    return folder


def faults_of(folder: Path, base: BaseSignature, **options) -> list[str]:
    with pytest.raises(IncompatibleAdapterError) as caught:
        read_adapter(folder, base, **options)
    assert str(caught.value).startswith(f"Adapter {folder} does not fit {base.model_id}:\n")
    return list(caught.value.faults)
