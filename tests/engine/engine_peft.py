"""Random adapters made by PEFT itself, saved and sealed, and PEFT's own answers to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_mamba, tiny_t5
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
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

BASES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
    "t5": tiny_t5,
    "mamba": tiny_mamba,
}
ATTENTION = {
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "t5": ["q", "v"],
    "mamba": ["x_proj"],
}
MLP = {
    "llama": ["o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "dense"],
    "t5": ["k", "o", "wi", "wo"],
    "mamba": ["in_proj", "x_proj"],  # PEFT refuses LoRA at `out_proj`, and no one calls `dt_proj`
}
# IA³ multiplies the output of the first and the input of the second.
SCALED = {
    "llama": (["k_proj", "v_proj"], ["down_proj"]),
    "gpt2": (["c_attn"], ["mlp.c_proj"]),
    "bert": (["key", "value"], ["output.dense"]),
    "t5": (["k", "v"], ["wo"]),
    "mamba": (["x_proj"], ["in_proj"]),
}
NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "bert": ["LayerNorm"],
    "t5": ["layer_norm", "final_layer_norm"],
    "mamba": ["norm", "norm_f"],
}
EMBEDDING = {
    "llama": "embed_tokens",
    "gpt2": "wte",
    "bert": "word_embeddings",
    "t5": "embed_tokens",
    "mamba": "embeddings",
}
BLOCKS = {"llama": "layers", "gpt2": "h", "bert": "layer", "t5": "block", "mamba": "layers"}
SEQUENCE = {
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "bert": BertForSequenceClassification,
}
TOKEN = {"llama": LlamaForTokenClassification, "gpt2": GPT2ForTokenClassification, "bert": BertForTokenClassification}
TASK = {
    "llama": "CAUSAL_LM",
    "gpt2": "CAUSAL_LM",
    "bert": "FEATURE_EXTRACTION",
    "t5": "SEQ_2_SEQ_LM",
    "mamba": "CAUSAL_LM",
}


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
    with quiet():
        model = get_peft_model(model_for(kind, config.task_type, labels), config, autocast_adapter_dtype=False)
        draw(model, seed)
        # Not the base's own embeddings, which an adapted LM head would draw in.
        model.save_pretrained(folder, save_embedding_layers=False)
    seal(folder, describe_base(base, f"tests/{kind}"))
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what PEFT has to say on merging and on layers that are new to it: neither changes an answer."""
    with warnings.catch_warnings():
        for message in (
            ".*lora_bias=True.*",
            ".*LoRA tensor.*invalid shape.*",
            "Unsupported layer type",
            ".*tied layer.*",
        ):
            warnings.filterwarnings("ignore", message)
        yield


def draw(model: PeftModel, seed: int) -> None:
    """Give every value of an adapter a random value; factors and norms stay near those that change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter.mul_(1 + noise)
            elif "ia3" in name or "ln_tuning" in name or _is_of_a_norm(name):
                parameter.add_(noise)
            else:
                parameter.copy_(noise)


def _is_of_a_norm(name: str) -> bool:
    """Whether a parameter is of a normalisation's trained copy, and not of a head's."""
    module, saved, _ = name.partition(".modules_to_save.")
    return bool(saved) and module.rpartition(".")[2] not in {"score", "classifier"}


def reference(kind: str, folder: Path, labels: int = 3) -> PeftModel:
    """PEFT's own model of a saved adapter."""
    config = PeftConfig.from_pretrained(folder)
    base = model_for(kind, config.task_type, labels)
    with quiet():
        return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()


def lora(kind: str, targets: list[str], rank: int, **options: Any) -> LoraConfig:
    """A LoRA configuration for the test base."""
    return LoraConfig(
        r=rank,
        target_modules=targets,
        fan_in_fan_out=kind == "gpt2",
        **{"lora_alpha": 2 * rank, "task_type": TASK[kind], **options},
    )


def methods(kind: str, rank: int) -> dict[str, PeftConfig]:
    """A configuration of every method, and of every option of LoRA that changes the forward pass."""
    targets, task = MLP[kind], TASK[kind]
    outputs, inputs = SCALED[kind]
    return {
        "lora": lora(kind, targets, rank),
        "rslora": lora(kind, targets, rank, use_rslora=True),
        "patterns": lora(
            kind, targets, rank, rank_pattern={targets[0]: rank + 3}, alpha_pattern={targets[-1]: 3, r"1\..*": 5}
        ),
        "dora": lora(kind, targets, rank, use_dora=True),
        "dora-patterns": lora(
            kind, targets, rank, use_dora=True, use_rslora=True, rank_pattern={targets[-1]: 2 * rank}
        ),
        "lora-bias": lora(kind, targets, rank, lora_bias=True),
        "embedding": lora(kind, [EMBEDDING[kind], *ATTENTION[kind]], rank),
        "blocks": lora(kind, targets, rank, layers_to_transform=[1], layers_pattern=BLOCKS[kind]),
        "regex": lora(kind, rf".*\.0\..*({'|'.join(targets)})", rank, exclude_modules=[targets[0]]),  # type: ignore[arg-type]
        "bottleneck": BottleneckConfig(r=rank, activation="gelu", scaling=0.5, target_modules=targets, task_type=task),
        "bottleneck-relu": BottleneckConfig(r=rank, activation="relu", target_modules=targets, task_type=task),
        "ia3": IA3Config(
            target_modules=[*outputs, *inputs],
            feedforward_modules=inputs,
            fan_in_fan_out=kind == "gpt2",
            task_type=task,
        ),
        "norms": LNTuningConfig(target_modules=NORMS[kind], task_type=task),
        "lora-norms": lora(kind, targets, rank, modules_to_save=list(NORMS[kind])),
        "bottleneck-norms": BottleneckConfig(
            r=rank, activation="silu", target_modules=targets, modules_to_save=NORMS[kind][-1:], task_type=task
        ),
    }


METHODS = tuple(methods("llama", 1))


def make_methods(kind: str, root: Path, names: Sequence[str] = METHODS, *, rank: int | None = None) -> dict[str, Path]:
    """One adapter of each of these methods, of ranks 1, 3, 5 ... up to 17, or all of one rank."""
    folders = {}
    for seed, name in enumerate(names):
        config = methods(kind, (1 + 2 * seed) % 18 if rank is None else rank)[name]
        folders[name] = save(kind, root / name, config, seed)
    return folders


def make_adapters(kind: str, root: Path) -> dict[str, Path]:
    """LoRA and bottlenecks of several ranks, and, where the base has classes with heads, three that bring a head."""
    # The base's own default targets, where there are any.
    bottleneck = {"task_type": TASK[kind], "target_modules": None if kind in SEQUENCE else MLP[kind]}
    configs: dict[str, PeftConfig] = {
        "small": lora(kind, ATTENTION[kind], 3),
        "wide": lora(kind, MLP[kind], 8, lora_alpha=4),
        "pattern": lora(
            kind, MLP[kind], 4, use_rslora=True, rank_pattern={MLP[kind][0]: 6}, alpha_pattern={MLP[kind][1]: 3}
        ),
        "neck": BottleneckConfig(r=5, activation="gelu", scaling=0.5, **bottleneck),
        "neck-relu": BottleneckConfig(r=4, activation="relu", **bottleneck),
    }
    if kind in SEQUENCE:
        configs["sequence"] = lora(kind, ATTENTION[kind], 4, task_type="SEQ_CLS")
        configs["tokens"] = lora(kind, MLP[kind], 3, task_type="TOKEN_CLS")
        configs["sequence-neck"] = BottleneckConfig(r=3, activation="silu", **{**bottleneck, "task_type": "SEQ_CLS"})
        configs["tokens-norms"] = lora(kind, MLP[kind], 2, task_type="TOKEN_CLS", modules_to_save=NORMS[kind][:1])
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
