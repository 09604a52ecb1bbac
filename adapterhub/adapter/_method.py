"""What the room asks of a method, and checks of options that several methods share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._types import LowRank, Norm, Scaling

__all__ = [
    "LAYERS",
    "ROOT",
    "SHARED",
    "Fields",
    "Method",
    "Place",
    "Shapes",
    "choice_faults",
    "name_faults",
    "none",
    "number_faults",
    "rank_faults",
    "regex_fault",
]

Fields: TypeAlias = Mapping[str, object]
Shapes: TypeAlias = dict[str, tuple[int, ...]]

ROOT = "base_model.model."
# Options that every method has, and those that choose blocks, with the value that a missing one has.
SHARED: dict[str, object] = {
    "exclude_modules": None,
    "modules_to_save": None,
    "target_modules": None,
    "task_type": None,
}
LAYERS: dict[str, object] = {"layers_pattern": None, "layers_to_transform": None}


class Place(NamedTuple):
    """A module of the base.

    Args:
        name: Relative to the backbone, or `lm_head`.
        trained: Its name in the model that was trained, which is what PEFT's patterns match.
    """

    name: str
    trained: str


@dataclass(frozen=True)
class Method:
    """One PEFT method: its options, its tensors at a module, and what they are once read.

    Args:
        options: Options that change the forward pass, each with the value that a missing one has.
        ignored: Options that act in training only, or only together with one that is refused.
        labels: How messages call the tensors at a module, by the end of their key.
        site: How messages call the modules that the method can be at.
        malformed: What keeps the options from being read, a line each.
        unsupported: What readable options ask for that is not supported, a line each.
        sites: Names of the base's modules at which a target rule may look.
        refused: What is not supported at these targets of this base, a line each.
        shapes: The tensors that a module must have, by the end of their key.
        build: What these tensors are. They may be written to.
    """

    options: Fields
    ignored: frozenset[str]
    labels: Mapping[str, str]
    site: str
    malformed: Callable[[Fields], list[str]]
    unsupported: Callable[[Fields], list[str]]
    sites: Callable[[AdapterConfig, BaseSignature], Collection[str]]
    refused: Callable[[AdapterConfig, BaseSignature, Sequence[Place]], list[str]]
    shapes: Callable[[AdapterConfig, BaseSignature, Place], Shapes]
    build: Callable[[AdapterConfig, Place, Mapping[str, torch.Tensor]], LowRank | Scaling | Norm]


def none(*_: object) -> list[str]:
    """No faults."""
    return []


def rank_faults(name: str, value: object) -> list[str]:
    """A line where a rank is no whole number of at least 1.

    Args:
        name: Of the option.
        value: What the file holds.
    """
    if type(value) is int and value >= 1:
        return []
    return [f"`{name}` should be a whole number of at least 1. Found {value!r}."]


def number_faults(name: str, value: object) -> list[str]:
    """A line where a factor is no finite number.

    Args:
        name: Of the option.
        value: What the file holds.
    """
    if type(value) in (int, float) and math.isfinite(float(str(value))):
        return []
    return [f"`{name}` should be a finite number. Found {value!r}."]


def choice_faults(fields: Fields, choices: Mapping[str, tuple[object, ...]]) -> list[str]:
    """A line for each option that is given and has none of its values.

    Args:
        fields: The parsed `adapter_config.json`.
        choices: The values that an option may have.
    """
    return [
        f"`{name}` should be one of {', '.join(map(str, allowed))}. Found {fields[name]!r}."
        for name, allowed in choices.items()
        if name in fields and fields[name] not in allowed
    ]


def name_faults(name: str, value: object, inside: str = "{}") -> list[str]:
    """A line where a value is neither null, a list of module names, nor a regular expression.

    Args:
        name: Of the option.
        value: What the file holds.
        inside: The larger expression into which PEFT puts this one.
    """
    if isinstance(value, str):
        return [fault] if (fault := regex_fault(name, value, inside)) else []
    if value is None or (isinstance(value, list) and all(type(item) is str for item in value)):
        return []
    return [f"`{name}` should be a list of module names. Found {value!r}."]


def regex_fault(name: str, pattern: str, inside: str = "{}") -> str | None:
    """A line where a pattern is no regular expression at the place where PEFT uses it.

    Args:
        name: Of the option.
        pattern: What the file holds.
        inside: The larger expression into which PEFT puts it, where less is allowed: no flags, no open groups.
    """
    try:
        re.compile(inside.replace("{}", pattern))
    except re.error as error:
        return f"`{name}` should be a regular expression. Found {pattern!r}: {error}."
    return None
