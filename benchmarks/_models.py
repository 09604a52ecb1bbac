"""Random bases and random adapters: what is measured here is cost, and equality with PEFT, never quality."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapterhub.adapter import BaseSignature, describe_base, seal

MODEL_ID = "bench"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SEVEN = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Setting:
    """One base and the adapters on it.

    Args:
        name: What the tables call it.
        hidden: Width; a head has 64 of it.
        targets: Names of the adapted modules.
        ranks: The adapters' ranks, in turn.
        grouped: Whether two heads share a key, and the input and output embeddings are one.
    """

    name: str
    hidden: int
    layers: int
    mlp: int
    targets: tuple[str, ...]
    ranks: tuple[int, ...]
    vocabulary: int = 8192
    grouped: bool = True
    dtype: torch.dtype = torch.float32

    def base(self) -> LlamaForCausalLM:
        """The base, the same at every call."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.mlp,
            num_hidden_layers=self.layers, num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // (128 if self.grouped else 64), max_position_embeddings=512,
            pad_token_id=0, eos_token_id=None, bos_token_id=1, tie_word_embeddings=self.grouped,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(self.dtype).eval()

    def rank(self, number: int) -> int:
        """The rank of adapter `number`."""
        return self.ranks[number % len(self.ranks)]

    def adapters(self, folder: Path, count: int, base: LlamaForCausalLM) -> dict[str, Path]:
        """`count` sealed PEFT folders under `folder`, by name."""
        signature = describe_base(base, MODEL_ID)
        widths = linear_widths(base, self.targets)
        return {
            f"s{number:05d}": write_adapter(
                folder / f"s{number:05d}", widths, self.targets, self.rank(number), number, signature
            )
            for number in range(count)
        }


def twin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A second model on the very same weights, so that no competitor's memory lies better than another's."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def linear_widths(base: LlamaForCausalLM, targets: Sequence[str] = SEVEN) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of the linear modules whose last name is one of `targets`."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in targets
    }


def write_adapter(
    folder: Path,
    widths: dict[str, tuple[int, int]],
    targets: Sequence[str],
    rank: int,
    seed: int,
    signature: BaseSignature,
) -> Path:
    """A LoRA folder of random factors, large enough to turn most greedy tokens, in float32."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (d_out, d_in) in widths.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, d_in, generator=random) / d_in**0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(d_out, rank, generator=random) * 0.05
    folder.mkdir(parents=True)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), inference_mode=True)
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    seal(folder, signature)
    return folder
