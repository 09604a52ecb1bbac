"""Adapters on disk: read strictly, checked whole against one base, sealed to it."""

from __future__ import annotations

import adapterhub.methods  # noqa: F401  makes PEFT know our methods before a configuration is read
from adapterhub.adapter._base import BaseSignature, describe_base
from adapterhub.adapter._files import content_hash
from adapterhub.adapter._read import read_adapter, seal
from adapterhub.adapter._types import Adapter, HeadTensors, LowRank

__all__ = [
    "Adapter",
    "BaseSignature",
    "HeadTensors",
    "LowRank",
    "content_hash",
    "describe_base",
    "read_adapter",
    "seal",
]
