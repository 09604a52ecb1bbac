"""Layer-norm tuning (Zhao et al. 2023, arXiv 2312.11420): the base's normalisations, trained and stored whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._method import SHARED, Method, Place, Shapes, none
from adapterhub.adapter._types import Norm

__all__ = ["LN_TUNING"]

_WEIGHT, _BIAS = "ln_tuning_layers.weight", "ln_tuning_layers.bias"


def _sites(config: AdapterConfig, base: BaseSignature) -> Collection[str]:
    return () if config.rule.all_linear else base.norms


def _shapes(_: AdapterConfig, base: BaseSignature, place: Place) -> Shapes:
    width, biased = base.norms[place.name]
    return {_WEIGHT: (width,), _BIAS: (width,)} if biased else {_WEIGHT: (width,)}


def _build(_: AdapterConfig, __: Place, tensors: Mapping[str, torch.Tensor]) -> Norm:
    return Norm(tensors[_WEIGHT], tensors.get(_BIAS))


LN_TUNING = Method(
    options=SHARED,
    ignored=frozenset(),
    labels={_WEIGHT: _WEIGHT, _BIAS: _BIAS},
    site="normalisation",
    malformed=none,
    unsupported=none,
    sites=_sites,
    refused=none,
    shapes=_shapes,
    build=_build,
)
