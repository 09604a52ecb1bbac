"""What a supported `adapter_config.json` asks for: where the adapter is, and the options that shape it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from peft.tuners.tuners_utils import check_target_module_exists

__all__ = ["SETS", "AdapterConfig", "TargetRule", "read_config", "strings"]

# Lists whose order has no meaning and changes from one process to the next.
SETS = ("exclude_modules", "feedforward_modules", "modules_to_save", "target_modules")


@dataclass(frozen=True)
class TargetRule:
    """Which modules an adapter is at, in the form in which PEFT's own rule reads it.

    Args:
        target_modules: Names and suffixes, or one regular expression.
        exclude_modules: The same, for modules that are left alone.
        modules_to_save: Ends of the names of modules that are stored whole.
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

    @property
    def all_linear(self) -> bool:
        """Whether PEFT would put the adapter at every linear module but the output layer."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear"

    def matches(self, name: str) -> bool:
        """Whether PEFT would put the adapter at this module.

        Args:
            name: The module's name in the model that was trained.
        """
        return name != "lm_head" if self.all_linear else bool(check_target_module_exists(self, name))

    def saves(self, name: str) -> bool:
        """Whether PEFT would store this module whole: it looks at the last letters, so `norm` names `input_norm` too.

        Args:
            name: The module's name in the keys of a file.
        """
        return name.endswith(self.modules_to_save)


@dataclass(frozen=True)
class AdapterConfig:
    """A configuration that can be read; two are equal where their methods and options are.

    Args:
        method: PEFT's name of the method.
        canonical: The options as JSON with sorted keys.
        head: What the head answers for, or None without a head.
        rule: Which modules the adapter is at.
        options: The options that shape the adapter, each with its value; set-like lists sorted.
    """

    method: str
    canonical: str
    head: Literal["sequence", "token"] | None = field(compare=False)
    rule: TargetRule = field(compare=False)
    options: Mapping[str, object] = field(compare=False)


def read_config(
    fields: Mapping[str, object],
    defaults: Mapping[str, object],
    heads: Mapping[str, Literal["sequence", "token"]],
) -> AdapterConfig:
    """Read a configuration in which `malformed_faults` found nothing.

    Args:
        fields: The parsed `adapter_config.json`.
        defaults: The options of the method that shape an adapter, each with the value that a missing one has.
        heads: What a head answers for, by `task_type`.
    """
    options = {name: fields.get(name, default) for name, default in sorted(defaults.items())}
    for name in SETS:
        value = options.get(name)
        if isinstance(value, list):
            options[name] = sorted(set(value))
    rule = TargetRule(
        target_modules=_names(options["target_modules"]) or frozenset(),
        exclude_modules=_names(options["exclude_modules"]),
        modules_to_save=tuple(strings(options["modules_to_save"])),
        layers_to_transform=options.get("layers_to_transform"),  # type: ignore[arg-type]
        layers_pattern=options.get("layers_pattern"),  # type: ignore[arg-type]
    )
    canonical = json.dumps(options, sort_keys=True)
    return AdapterConfig(str(fields["peft_type"]), canonical, heads.get(str(fields.get("task_type"))), rule, options)


def strings(value: object) -> list[str]:
    """The strings in a list, or none.

    Args:
        value: What the file holds.
    """
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _names(value: object) -> frozenset[str] | str | None:
    return value if isinstance(value, str) else frozenset(strings(value)) or None
