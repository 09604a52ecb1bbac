"""Whether an adapter's tensors fit a base, key by key and shape by shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from adapterhub.adapter._base import LM_HEAD, POOLER, BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._head import head_faults
from adapterhub.adapter._layout import Layout, read_layout
from adapterhub.adapter._method import ROOT, Shapes
from adapterhub.adapter._norms import norm_faults
from adapterhub.adapter._options import HEAD_KINDS, HEAD_MODULES
from adapterhub.adapter._parts import labelled, part_faults
from adapterhub.adapter._supported import METHODS
from adapterhub.adapter._tensors import Header

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """What the header, the configuration and the base say of one another. It is shared: do not write to it.

    Args:
        layout: The file's entries by place.
        faults: Every way in which the file does not fit the base, a line each.
        unproven: Faults only of an adapter that no seal binds to the base.
    """

    layout: Layout
    faults: tuple[str, ...]
    unproven: tuple[str, ...]


@lru_cache(maxsize=64)
def fit(header: Header, config: AdapterConfig, base: BaseSignature) -> Fit:
    """Hold a file's keys, shapes and dtypes against a base.

    Adapters trained in the same way share all three, so the work is done once for them.

    Args:
        header: The file's header.
        config: The adapter's configuration.
        base: The base.
    """
    layout = read_layout(header, config, base)
    method = METHODS[config.method]
    sites = dict.fromkeys(method.sites(config, base))
    targets = {name: layout.place(name) for name in sites if config.rule.matches(layout.place(name).trained)}
    faults = []
    if not targets:
        faults.append(f"`target_modules` names no {method.site} of the base.")
    faults += method.refused(config, base, list(targets.values()))
    wanted = {name: method.shapes(config, base, place) for name, place in targets.items()}
    for name in [*sites, *(name for name in layout.modules if name not in sites)]:
        faults += _module_faults(name, layout, wanted, config, known=name in sites)
    faults += head_faults(layout.head, config, base)
    faults += norm_faults(layout, config, base)
    faults += [_strange_fault(key, config.method) for key in layout.strange if not _is_told(key, config)]
    return Fit(layout, tuple(faults), tuple(_smaller_model_faults(layout, config, base)))


def _module_faults(
    name: str, layout: Layout, wanted: Mapping[str, Shapes], config: AdapterConfig, *, known: bool
) -> list[str]:
    method = METHODS[config.method]
    parts, shapes = layout.modules.get(name), wanted.get(name)
    if parts is None:
        if shapes is None or name.startswith(_optional(config)):
            return []
        return [f"{name}: {labelled(method.labels, shapes)} missing, though `target_modules` names it."]
    if not known:
        found = ", ".join(f"{method.labels[part]} {entry.shape}" for part, entry in parts.items())
        return [f"{name}: the base has no such {method.site}. Found {found}."]
    if shapes is None:
        return [f"{name}: {labelled(method.labels, parts)} unexpected, since `target_modules` does not name it."]
    return part_faults(name, parts, shapes, method.labels)


def _strange_fault(key: str, name: str) -> str:
    labels = METHODS[name].labels
    if not key.startswith(ROOT):
        return f"{key}: unexpected, since PEFT's keys begin with {ROOT}"
    if "embed" in key or ".base_layer." in key:
        return f"{key}: unexpected weights of the base itself. Save the adapter with `save_embedding_layers=False`."
    if key.removeprefix(ROOT).split(".")[0] in HEAD_MODULES:
        return f"{key}: unexpected without a task_type that has a head ({', '.join(HEAD_KINDS)})."
    return f"{key}: unexpected for {name}, which has {labelled(labels, labels)}."


def _is_told(key: str, config: AdapterConfig) -> bool:
    """Whether the fault of an option already speaks of this key."""
    return config.options.get("bias", "none") != "none" and key.endswith(".bias")


def _optional(config: AdapterConfig) -> tuple[str, ...]:
    """Modules that the trained model may have lacked although this base has them: an LM head, BERT's pooler."""
    lm_head = () if config.options["task_type"] in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else (LM_HEAD,)
    pooler = () if config.head == "sequence" else (POOLER,)
    return lm_head + pooler


def _smaller_model_faults(layout: Layout, config: AdapterConfig, base: BaseSignature) -> list[str]:
    """PEFT writes a 2-layer model's `all-linear` as full names of layers 0 and 1, so every key fits 6 layers too."""
    adapted, present = _blocks(layout.modules), _blocks([*base.modules, *base.norms])
    targets = config.rule.target_modules
    one_by_one = not isinstance(targets, str) and any(re.search(r"\.\d+\.", name) for name in targets)
    if not one_by_one or not adapted or adapted != set(range(len(adapted))) or len(adapted) >= len(present):
        return []
    return [
        f"The adapter names the modules of blocks 0 to {max(adapted)} one by one, as PEFT does for a model of "
        f"{len(adapted)} blocks. Found a base of {len(present)}. If it was trained on this base, seal it with "
        "`adapterhub.adapter.seal`."
    ]


def _blocks(names: Iterable[str]) -> set[int]:
    found = (re.search(r"(?:^|\.)(\d+)\.", name) for name in names)
    return {int(match[1]) for match in found if match}
