"""The bottleneck (Houlsby et al. 2019) of `adapterhub.methods`: a small network on a linear module's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

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
    none,
    number_faults,
    rank_faults,
)
from adapterhub.adapter._types import LowRank
from adapterhub.methods import ACTIVATIONS

__all__ = ["BOTTLENECK"]


def _malformed(fields: Fields) -> list[str]:
    return [
        *rank_faults("r", fields.get("r")),
        *number_faults("scaling", fields.get("scaling", 1.0)),
        *choice_faults(fields, {"activation": tuple(sorted(ACTIVATIONS))}),
    ]


def _sites(_: AdapterConfig, base: BaseSignature) -> Collection[str]:
    return base.modules


def _shapes(config: AdapterConfig, base: BaseSignature, place: Place) -> Shapes:
    rank, (_, d_out) = config.options["r"], base.modules[place.name]
    assert isinstance(rank, int)
    return {
        "bottleneck_down.weight": (rank, d_out),
        "bottleneck_down.bias": (rank,),
        "bottleneck_up.weight": (d_out, rank),
        "bottleneck_up.bias": (d_out,),
    }


def _build(config: AdapterConfig, _: Place, tensors: Mapping[str, torch.Tensor]) -> LowRank:
    scale = float(str(config.options["scaling"]))
    up, up_bias = tensors["bottleneck_up.weight"], tensors["bottleneck_up.bias"]
    if scale != 1:
        up.mul_(scale)
        up_bias.mul_(scale)
    return LowRank(
        tensors["bottleneck_down.weight"],
        up.t(),
        "output",
        str(config.options["activation"]),
        tensors["bottleneck_down.bias"],
        up_bias,
    )


BOTTLENECK = Method(
    options=SHARED | LAYERS | {"activation": "relu", "r": None, "scaling": 1.0},
    ignored=frozenset(),
    labels={
        "bottleneck_down.weight": "bottleneck_down",
        "bottleneck_down.bias": "bottleneck_down.bias",
        "bottleneck_up.weight": "bottleneck_up",
        "bottleneck_up.bias": "bottleneck_up.bias",
    },
    site="linear module",
    malformed=_malformed,
    unsupported=none,
    sites=_sites,
    refused=none,
    shapes=_shapes,
    build=_build,
)
