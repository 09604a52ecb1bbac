"""IA³ (Liu et al. 2022, arXiv 2205.05638): one factor for each input or each output of a linear module."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace

import torch
from peft import IA3Model

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._method import SHARED, Fields, Method, Place, Shapes, choice_faults, name_faults, none
from adapterhub.adapter._types import Scaling

__all__ = ["IA3"]


def _malformed(fields: Fields) -> list[str]:
    faults = choice_faults(fields, {"fan_in_fan_out": (False, True)})
    inputs, targets = fields.get("feedforward_modules"), fields.get("target_modules")
    found = name_faults("feedforward_modules", inputs)
    if inputs is None:
        faults.append("`feedforward_modules` should be a list of module names, empty where there is none. Found null.")
    elif not found and isinstance(inputs, list) and isinstance(targets, list) and not _within(inputs, targets):
        faults.append(f"`feedforward_modules` should be among the `target_modules`. Found {inputs!r}.")
    return faults + found


def _within(inputs: list[object], targets: list[object]) -> bool:
    return all(name in targets for name in inputs)


def _reads_input(config: AdapterConfig, name: str) -> bool:
    rule = SimpleNamespace(feedforward_modules=config.options["feedforward_modules"])
    return bool(IA3Model._check_target_module_feedforward(rule, name))


def _sites(_: AdapterConfig, base: BaseSignature) -> Collection[str]:
    return base.modules


def _shapes(config: AdapterConfig, base: BaseSignature, place: Place) -> Shapes:
    d_in, d_out = base.modules[place.name]
    return {"ia3_l": (1, d_in) if _reads_input(config, place.trained) else (d_out, 1)}


def _build(config: AdapterConfig, place: Place, tensors: Mapping[str, torch.Tensor]) -> Scaling:
    return Scaling(tensors["ia3_l"].flatten(), "input" if _reads_input(config, place.trained) else "output")


IA3 = Method(
    options=SHARED | {"fan_in_fan_out": False, "feedforward_modules": None},
    ignored=frozenset({"init_ia3_weights"}),
    labels={"ia3_l": "ia3_l"},
    site="linear module",
    malformed=_malformed,
    unsupported=none,
    sites=_sites,
    refused=none,
    shapes=_shapes,
    build=_build,
)
