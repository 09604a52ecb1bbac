"""Adapters on disk: read strictly, checked whole against one base, sealed to it."""

from __future__ import annotations

import adapterhub.methods  # noqa: F401  makes PEFT know our methods before a configuration is read
from adapterhub.adapter._base import BaseSignature, describe_base
from adapterhub.adapter._convert import Conversion, convert_to_lora
from adapterhub.adapter._copy import plain_copy
from adapterhub.adapter._files import content_hash, sealed_stack, verified_hash
from adapterhub.adapter._int8 import Quantisation, dequantise, quantise
from adapterhub.adapter._mixture import export_mixture, mixture_rank
from adapterhub.adapter._read import read_adapter, seal
from adapterhub.adapter._similarity import adapter_similarity
from adapterhub.adapter._truncate import ModuleLoss, Truncation, truncate_rank
from adapterhub.adapter._types import Adapter, HeadTensors, LowRank, Norm, Scaling
from adapterhub.adapter._values import stored_tensors

__all__ = [
    "Adapter",
    "BaseSignature",
    "Conversion",
    "HeadTensors",
    "LowRank",
    "ModuleLoss",
    "Norm",
    "Quantisation",
    "Scaling",
    "Truncation",
    "adapter_similarity",
    "content_hash",
    "convert_to_lora",
    "dequantise",
    "describe_base",
    "export_mixture",
    "mixture_rank",
    "plain_copy",
    "quantise",
    "read_adapter",
    "seal",
    "sealed_stack",
    "stored_tensors",
    "truncate_rank",
    "verified_hash",
]
