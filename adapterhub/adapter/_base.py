"""What an adapter is checked against: the base model's names, shapes and fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterhub.errors import InputError

__all__ = ["LM_HEAD", "POOLER", "BaseSignature", "describe_base"]

_T = TypeVar("_T")

LM_HEAD = "lm_head"
POOLER = "pooler."

# Enough of every tensor to tell two models apart, little enough to hash in milliseconds.
_ROWS = 2
_VALUES = 256
_SHAPE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "type_vocab_size",
)


@dataclass(frozen=True)
class BaseSignature:
    """What an adapter is checked against.

    Args:
        model_id: Id of the base, as its users write it; empty for a model that was never saved.
        fingerprint: Hash over the configuration's shapes and over values sampled from the backbone. Values are rounded
            to bfloat16 first, so the same checkpoint loaded as float32 or bfloat16 has one fingerprint.
        modules: (d_in, d_out) of each `nn.Linear` and `Conv1D` by its name relative to the backbone, and of `lm_head`
            where there is one.
        embeddings: (tokens, d) of each table that is looked up by token and not scaled afterwards. Tables of positions
            or segments are not among them: a row has no positions of its own there.
        norms: (d, whether it has a bias) of each layer norm or RMS norm over the last dimension.
        biases: Names of the modules that have a bias.
        hidden_size: Width of the hidden states that a head reads.
        prefix: Name of the backbone inside a model with a head (`model`, `transformer`, `bert`, `backbone`); empty
            where the head lies inside, as in T5.
        quantised: Whether its weights were quantised when it was described.
    """

    model_id: str
    fingerprint: str
    modules: Mapping[str, tuple[int, int]]
    embeddings: Mapping[str, tuple[int, int]]
    norms: Mapping[str, tuple[int, bool]]
    biases: frozenset[str]
    hidden_size: int
    prefix: str
    quantised: bool = False

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def describe_base(model: PreTrainedModel, model_id: str | None = None) -> BaseSignature:
    """Describe a base model; call it before the model's modules are wrapped.

    The backbone alone counts: with a causal, a classification or no head on top, the fingerprint is the same. So is
    BERT's with or without its pooler. A quantised model has a fingerprint of its own.

    Args:
        model: A model of transformers.
        model_id: Id of the base; by default where the model was loaded from.

    Returns:
        The signature. It holds no tensors.

    Raises:
        InputError: If adapters are already in the model, or its weights are not loaded.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError(
            "A base is described before adapters are put into it. Found PEFT layers. Call `describe_base` first, or "
            "take them off with `unload()`."
        )
    backbone = model.base_model
    named = dict(backbone.named_modules())
    inside = LM_HEAD in named
    if isinstance(head := getattr(model, LM_HEAD, None), nn.Module):
        named[LM_HEAD] = head
    tokens = model.get_input_embeddings()
    return BaseSignature(
        model_id=model.name_or_path if model_id is None else model_id,
        fingerprint=_fingerprint(model, backbone),
        modules=_by_name(named, _shape),
        embeddings=_by_name(named, partial(_table, tokens)),
        norms=_by_name(named, _norm),
        biases=frozenset(name for name, module in named.items() if _is_biased(module)),
        hidden_size=int(model.config.get_text_config().hidden_size),
        prefix="" if inside else model.base_model_prefix,
        quantised=any(_is_quantised(value) for value in backbone.parameters()),
    )


def _by_name(named: Mapping[str, nn.Module], measure: Callable[[nn.Module], _T | None]) -> Mapping[str, _T]:
    return MappingProxyType({name: found for name, module in named.items() if (found := measure(module)) is not None})


def _table(tokens: nn.Module, module: nn.Module) -> tuple[int, int] | None:
    """The shape of a table as large as the one that is known to be looked up by token, `tokens`."""
    if not isinstance(tokens, nn.Embedding) or not isinstance(module, nn.Embedding) or hasattr(module, "embed_scale"):
        return None
    shape = int(module.weight.shape[0]), int(module.weight.shape[1])
    return shape if shape == tuple(tokens.weight.shape) else None


def _is_quantised(value: torch.Tensor) -> bool:
    """Whether a parameter's numbers are other than what is stored."""
    return not value.is_floating_point() or hasattr(value, "__tensor_flatten__")


def _is_biased(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)


def _norm(module: nn.Module) -> tuple[int, bool] | None:
    if not isinstance(module, nn.LayerNorm) and not type(module).__name__.endswith(("LayerNorm", "RMSNorm")):
        return None
    own = dict(module.named_parameters())
    weight = own.get("weight")
    if weight is None or weight.dim() != 1 or not own.keys() <= {"weight", "bias"}:
        return None
    return len(weight), "bias" in own


def _shape(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return int(d_in), int(d_out)
    return None


def _fingerprint(model: PreTrainedModel, backbone: nn.Module) -> str:
    config = {name: getattr(model.config, name, None) for name in _SHAPE_FIELDS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    kept = [(name, value) for name, value in backbone.named_parameters() if not _belongs_to_head(name)]
    if any(value.is_meta for _, value in kept):
        raise InputError(
            "A base is described from its weights. Found weights on the meta device. Load the model fully first."
        )
    for name, value in sorted(kept, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        for part in _stored(value):
            digest.update(_sample(name, part))
    return digest.hexdigest()


def _belongs_to_head(name: str) -> bool:
    return name.startswith((POOLER, f"{LM_HEAD}."))


def _stored(value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors of a parameter: itself, or what one of another kind (torchao's) is made of."""
    if not hasattr(value, "__tensor_flatten__"):
        yield value
        return
    for name in value.__tensor_flatten__()[0]:
        yield from _stored(getattr(value, name))


def _sample(name: str, value: torch.Tensor) -> bytes:
    """A few values of a tensor, from rows that its name picks."""
    table = value.detach()
    table = table.reshape(1, -1) if table.dim() < 2 else table.flatten(1)
    rows = sorted(_rows(name, len(table)))
    picked = table[rows, :_VALUES].to(torch.bfloat16).contiguous().cpu()
    return picked.view(torch.int16).numpy().tobytes()


def _rows(name: str, count: int) -> Iterable[int]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return {(seed + i * (count // _ROWS)) % count for i in range(_ROWS)}
