"""A registry of four tasks, one a head, on a tiny decoder; random adapters made with PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from workshop import llama_base

from adapterhub.adapter import describe_base, seal
from adapterhub.engine import Engine
from adapterhub.model import RoutedModel, load_base
from adapterhub.registry import Registry
from adapterhub.route import Route
from adapterhub.task import Task

BASE_ID = "tests/tiny-llama"
HEADS = {
    "words/colour": ("generation", AutoModelForCausalLM, TaskType.CAUSAL_LM, {}),
    "words/mood": (
        "classification",
        AutoModelForSequenceClassification,
        TaskType.SEQ_CLS,
        {"labels": ["bad", "good", "so"]},
    ),
    "words/names": (
        "token-classification",
        AutoModelForTokenClassification,
        TaskType.TOKEN_CLS,
        {"labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]},
    ),
    "words/size": ("regression", AutoModelForSequenceClassification, TaskType.SEQ_CLS, {}),
}  # fmt: skip


class ByFirstWord:
    """A routing policy that tests can foresee: `colour: …` goes to `words/colour`, anything else to the base."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def route(self, texts: Sequence[str], k: int = 1) -> list[Route]:
        names = [f"words/{text.split(':')[0]}" for text in texts]
        return [Route.to(name) if name in self.registry else Route() for name in names]


@dataclass(frozen=True)
class Hub:
    """The registry, its routed model, and the folder of the base."""

    registry: Registry
    model: RoutedModel
    base: Path

    def reference(self, name: str) -> PeftModel:
        """The task's adapter in bare PEFT."""
        loader, labels = HEADS[name][1], self.registry[name].labels
        extra = {} if HEADS[name][0] == "generation" else {"num_labels": len(labels) or 1}
        model = loader.from_pretrained(self.base, dtype=torch.float32, **extra)
        model.config.pad_token_id = 0
        return PeftModel.from_pretrained(model, self.registry.adapter_path(name)).eval()


def random_adapter(base: Path, name: str, folder: Path, seed: int) -> Path:
    """A sealed PEFT folder with random weights everywhere, the head included."""
    head, loader, kind, fields = HEADS[name]
    extra = {} if head == "generation" else {"num_labels": len(fields.get("labels", ["one"]))}
    torch.manual_seed(seed)
    model = loader.from_pretrained(base, dtype=torch.float32, **extra)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type=kind)
    peft = get_peft_model(model, config)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(folder)
    seal(folder, describe_base(peft.unload(), BASE_ID))
    return folder


def build(root: Path) -> Hub:
    """A registry below `root` with every head, and the model in front of it."""
    registry_root = root / "registry"
    base = llama_base(registry_root / "_base")
    registry = Registry(registry_root)
    for seed, (name, (head, _, _, fields)) in enumerate(HEADS.items()):
        card = {"description": f"The task {name}.", "base_model": "_base", "head": head}
        card["examples"] = [f"{name} example"]
        card |= {"max_new_tokens": 6, "prompt": "{text}\nAnswer:"} if head == "generation" else {}
        adapter = random_adapter(base, name, root / f"adapter-{seed}", seed)
        registry.add(Task.from_dict(name, card | fields), adapter)
    model, tokenizer = load_base(base)
    routed = RoutedModel(Engine(model, model_id=BASE_ID), tokenizer, registry, ByFirstWord(registry))
    return Hub(registry, routed, base)


def tokens(hub: Hub, text: str) -> dict[str, torch.Tensor]:
    """One text as the reference reads it."""
    return dict(AutoTokenizer.from_pretrained(hub.base)(text, return_tensors="pt", return_token_type_ids=False))
