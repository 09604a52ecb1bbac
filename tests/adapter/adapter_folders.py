"""Folders that real PEFT writes from tiny models, and ways to spoil them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from adapterhub.methods import BottleneckConfig

CONFIG, WEIGHTS, SEAL = "adapter_config.json", "adapter_model.safetensors", "adapterhub.json"


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


def edit_config(folder: Path, **changes) -> None:
    fields = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(fields))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
