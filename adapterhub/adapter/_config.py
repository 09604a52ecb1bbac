"""What a supported `adapter_config.json` asks for: where the adapter is, its ranks and its scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from adapterhub.adapter._options import HEAD_KINDS, SETS, USED, strings

__all__ = ["AdapterConfig", "TargetRule", "read_config"]


@dataclass(frozen=True)
class TargetRule:
    """Which modules an adapter is at, in the form in which PEFT's own rule reads it.

    Args:
        target_modules: Names and suffixes, or one regular expression.
        exclude_modules: The same, for modules that are left alone.
        modules_to_save: Modules stored whole.
        layers_to_transform: Indices of blocks.
        layers_pattern: Names of the list of blocks.
        target_parameters: Always None; PEFT's rule asks for it.
    """

    target_modules: frozenset[str] | str
    exclude_modules: frozenset[str] | str | None = None
    modules_to_save: tuple[str, ...] = ()
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    target_parameters: None = None

    def matches(self, name: str) -> bool:
        """Whether PEFT would put the adapter at this module.

        Args:
            name: The module's name in the model that was trained.
        """
        if isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear":
            return name != "lm_head"
        return bool(check_target_module_exists(self, name))


@dataclass(frozen=True)
class AdapterConfig:
    """A configuration whose every option is supported.

    Args:
        method: `LORA` or `BOTTLENECK`.
        head: What the head answers for, or None without a head.
        rule: Which modules the adapter is at.
        options: The options that shape the adapter, each with its value; set-like lists sorted.
    """

    method: str
    head: Literal["sequence", "token"] | None
    rule: TargetRule
    options: Mapping[str, object]

    def rank(self, name: str) -> int:
        """The rank at a module, by its name in the model that was trained."""
        return int(self._at("r", "rank_pattern", name))

    def scale(self, name: str) -> float:
        """The factor on what the adapter adds at a module: `alpha / r`, with rsLoRA `alpha / √r`."""
        if self.method == "BOTTLENECK":
            return float(str(self.options["scaling"]))
        rank = self.rank(name)
        return self._at("lora_alpha", "alpha_pattern", name) / (math.sqrt(rank) if self.options["use_rslora"] else rank)

    def _at(self, option: str, pattern: str, name: str) -> float:
        patterns = self.options.get(pattern) or {}
        assert isinstance(patterns, Mapping)
        value = patterns.get(get_pattern_key(patterns.keys(), name), self.options[option])
        return float(str(value))


def read_config(fields: Mapping[str, object]) -> AdapterConfig:
    """Read a configuration in which `config_faults` found nothing.

    Args:
        fields: The parsed `adapter_config.json`.
    """
    method = str(fields["peft_type"])
    options = {name: fields.get(name, default) for name, default in sorted(USED[method].items())}
    for name in SETS:
        value = options[name]
        options[name] = sorted(set(value)) if isinstance(value, list) else value
    rule = TargetRule(
        target_modules=_names(options["target_modules"]) or frozenset(),
        exclude_modules=_names(options["exclude_modules"]),
        modules_to_save=tuple(strings(options["modules_to_save"])),
        layers_to_transform=options["layers_to_transform"],  # type: ignore[arg-type]
        layers_pattern=options["layers_pattern"],  # type: ignore[arg-type]
    )
    return AdapterConfig(method, HEAD_KINDS.get(str(fields.get("task_type"))), rule, options)


def _names(value: object) -> frozenset[str] | str | None:
    return value if isinstance(value, str) else frozenset(strings(value)) or None
