"""Random adapters made by PEFT itself, saved and sealed, and PEFT's own answers to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedModel,
)

from adapterhub.adapter import describe_base, seal
from adapterhub.engine import Engine
from adapterhub.methods import BottleneckConfig

BASES: dict[str, Callable[[], PreTrainedModel]] = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}
ATTENTION = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"]}
MLP = {
    "llama": ["o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "dense"],
}
SEQUENCE = {
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "bert": BertForSequenceClassification,
}
TOKEN = {"llama": LlamaForTokenClassification, "gpt2": GPT2ForTokenClassification, "bert": BertForTokenClassification}
TASK = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION"}


def model_for(kind: str, task: str | None = None, labels: int = 3) -> PreTrainedModel:
    """A fresh base of this kind, its backbone always the same, under the head class that the task type asks for."""
    base = BASES[kind]()
    if task not in {"SEQ_CLS", "TOKEN_CLS"}:
        return base
    base.config.num_labels = labels
    model = (SEQUENCE if task == "SEQ_CLS" else TOKEN)[kind](base.config).eval()
    result = model.base_model.load_state_dict(base.base_model.state_dict(), strict=False)
    assert not result.missing_keys
    return model


def save(kind: str, folder: Path, config: PeftConfig, seed: int, labels: int = 3) -> Path:
    """Put `config` on a fresh base, draw all of the adapter's values, save, seal."""
    base = BASES[kind]()
    model = get_peft_model(model_for(kind, config.task_type, labels), config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder, save_embedding_layers=False)  # the base's own, which an adapted LM head would draw in
    seal(folder, describe_base(base, f"tests/{kind}"))
    return folder


def reference(kind: str, folder: Path, labels: int = 3) -> PeftModel:
    """PEFT's own model of a saved adapter."""
    config = PeftConfig.from_pretrained(folder)
    return PeftModel.from_pretrained(
        model_for(kind, config.task_type, labels), folder, autocast_adapter_dtype=False
    ).eval()


def lora(kind: str, targets: list[str], rank: int, **options: Any) -> LoraConfig:
    """A LoRA configuration for the test base."""
    return LoraConfig(
        r=rank,
        target_modules=targets,
        fan_in_fan_out=kind == "gpt2",
        **{"lora_alpha": 2 * rank, "task_type": TASK[kind], **options},
    )


def make_adapters(kind: str, root: Path) -> dict[str, Path]:
    """One adapter of every sort that the engine serves: three ranks, two methods, two heads."""
    bottleneck = {"task_type": TASK[kind]}
    configs: Mapping[str, PeftConfig] = {
        "small": lora(kind, ATTENTION[kind], 3),
        "wide": lora(kind, MLP[kind], 8, lora_alpha=4),
        "pattern": lora(
            kind, MLP[kind], 4, use_rslora=True, rank_pattern={MLP[kind][0]: 6}, alpha_pattern={MLP[kind][1]: 3}
        ),
        "neck": BottleneckConfig(r=5, activation="gelu", scaling=0.5, **bottleneck),
        "neck-relu": BottleneckConfig(r=4, activation="relu", **bottleneck),
        "sequence": lora(kind, ATTENTION[kind], 4, task_type="SEQ_CLS"),
        "tokens": lora(kind, MLP[kind], 3, task_type="TOKEN_CLS"),
        "sequence-neck": BottleneckConfig(r=3, activation="silu", **{**bottleneck, "task_type": "SEQ_CLS"}),
    }
    return {name: save(kind, root / name, config, seed) for seed, (name, config) in enumerate(configs.items())}


def engine_of(kind: str, adapters: Mapping[str, Path], **options: Any) -> Engine:
    """An engine on a fresh base that knows these adapters."""
    engine = Engine(BASES[kind](), model_id=f"tests/{kind}", **options)
    for name, folder in adapters.items():
        engine.add(name, folder)
    return engine


def texts(rows: int, width: int, seed: int = 0, side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids with rows of different lengths, padded with 0 on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 96, (rows, width), generator=generator)
    lengths = torch.tensor([width - 2 * (row % 4) for row in range(rows)])
    places = torch.arange(width)
    mask = places < lengths[:, None] if side == "right" else places >= width - lengths[:, None]
    return ids * mask, mask.long()
