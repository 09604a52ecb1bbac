"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024): factors at linear modules and token embeddings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from peft.utils.other import get_pattern_key

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._method import (
    LAYERS,
    SHARED,
    Fields,
    Method,
    Place,
    Shapes,
    choice_faults,
    number_faults,
    rank_faults,
    regex_fault,
)
from adapterhub.adapter._types import LowRank

__all__ = ["LORA"]

# These start from the base as it is. The others (pissa, olora, loftq, ...) change the base's weights when they start.
_INITS = (None, True, False, "eva", "gaussian", "orthogonal")
_SWITCHES = ("fan_in_fan_out", "lora_bias", "use_dora", "use_rslora")


def _malformed(fields: Fields) -> list[str]:
    faults = rank_faults("r", fields.get("r")) + number_faults("lora_alpha", fields.get("lora_alpha"))
    for pattern, check in (("rank_pattern", rank_faults), ("alpha_pattern", number_faults)):
        value = fields.get(pattern) or {}
        if not isinstance(value, Mapping):
            faults.append(f"`{pattern}` should be an object of module patterns. Found {value!r}.")
            continue
        for key, number in value.items():
            faults += check(f"{pattern}[{key!r}]", number)
            faults += [fault] if (fault := regex_fault(pattern, key, r"(.*\.)?({})$")) else []
    switches: dict[str, tuple[object, ...]] = dict.fromkeys(_SWITCHES, (False, True))
    return faults + choice_faults(fields, {"bias": ("none", "lora_only", "all")} | switches)


def _unsupported(fields: Fields) -> list[str]:
    faults = []
    init = fields.get("init_lora_weights")
    if not any(init is known or init == known for known in _INITS):
        faults.append(
            f"`init_lora_weights` {init!r} is not supported, since it changes the base's weights. Convert the adapter "
            "with PEFT's `path_initial_model_for_weight_conversion`."
        )
    if fields.get("use_dora") and fields.get("lora_bias"):
        faults.append("`lora_bias` together with `use_dora` is not supported, by PEFT neither. Found both.")
    return faults


def _sites(config: AdapterConfig, base: BaseSignature) -> Collection[str]:
    return base.modules if config.rule.all_linear else [*base.modules, *base.embeddings]


def _refused(config: AdapterConfig, base: BaseSignature, targets: Sequence[Place]) -> list[str]:
    options = config.options
    tables = [place.name for place in targets if place.name in base.embeddings]
    faults = [
        f"{name}: `{option}` is not supported at an embedding. Found True. Leave the embedding out of "
        "`target_modules`, or train it with plain LoRA."
        for option in ("lora_bias", "use_dora")
        if options[option]
        for name in tables
    ]
    # PEFT's `all` trains every bias of the base, its `lora_only` those of the targets; where there is none, none is.
    trained = {"none": set(), "all": set(base.biases), "lora_only": base.biases & {place.name for place in targets}}
    if found := trained[str(options["bias"])]:
        faults.append(
            f"`bias` {options['bias']!r} is not supported, since it changes {len(found)} biases of the base, as "
            f"{min(found)}.bias. Train with `lora_bias=True` instead."
        )
    return faults


def _shapes(config: AdapterConfig, base: BaseSignature, place: Place) -> Shapes:
    rank = _rank(config, place.trained)
    if place.name in base.embeddings:
        tokens, width = base.embeddings[place.name]
        shapes: Shapes = {"lora_embedding_A": (rank, tokens), "lora_embedding_B": (width, rank)}
    else:
        d_in, width = base.modules[place.name]
        shapes = {"lora_A.weight": (rank, d_in), "lora_B.weight": (width, rank)}
        if config.options["lora_bias"]:
            shapes["lora_B.bias"] = (width,)
    if config.options["use_dora"]:
        shapes["lora_magnitude_vector"] = (width,)
    return shapes


def _build(config: AdapterConfig, place: Place, tensors: Mapping[str, torch.Tensor]) -> LowRank:
    scale = _scale(config, place.trained)
    if "lora_embedding_A" in tensors:
        up = tensors["lora_embedding_B"]
        return LowRank(tensors["lora_embedding_A"], _times(up, scale).t(), "tokens")
    up, bias = tensors["lora_B.weight"], tensors.get("lora_B.bias")
    return LowRank(
        tensors["lora_A.weight"],
        _times(up, scale).t(),
        up_bias=None if bias is None else _times(bias, scale),
        magnitude=tensors.get("lora_magnitude_vector"),
    )


def _times(value: torch.Tensor, scale: float) -> torch.Tensor:
    return value if scale == 1 else value.mul_(scale)


def _rank(config: AdapterConfig, name: str) -> int:
    return int(_at(config, "r", "rank_pattern", name))


def _scale(config: AdapterConfig, name: str) -> float:
    rank = _rank(config, name)
    return _at(config, "lora_alpha", "alpha_pattern", name) / (
        math.sqrt(rank) if config.options["use_rslora"] else rank
    )


def _at(config: AdapterConfig, option: str, pattern: str, name: str) -> float:
    patterns = config.options.get(pattern) or {}
    assert isinstance(patterns, Mapping)
    value = config.options[option]
    if patterns:
        value = patterns.get(get_pattern_key(patterns.keys(), name), value)
    assert isinstance(value, int | float)
    return value


LORA = Method(
    options=SHARED
    | LAYERS
    | {
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": None,
        "lora_bias": False,
        "r": None,
        "rank_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    },
    ignored=frozenset({"eva_config", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"}),
    labels={
        "lora_A.weight": "lora_A",
        "lora_B.weight": "lora_B",
        "lora_B.bias": "lora_B.bias",
        "lora_magnitude_vector": "lora_magnitude_vector",
        "lora_embedding_A": "lora_embedding_A",
        "lora_embedding_B": "lora_embedding_B",
    },
    site="linear module or token embedding",
    malformed=_malformed,
    unsupported=_unsupported,
    sites=_sites,
    refused=_refused,
    shapes=_shapes,
    build=_build,
)
