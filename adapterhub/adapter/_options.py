"""Every option of `adapter_config.json`: which are supported, and by name which are not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from adapterhub.errors import did_you_mean
from adapterhub.methods import ACTIVATIONS

__all__ = ["HEAD_KINDS", "HEAD_MODULES", "SETS", "USED", "malformed_faults", "strings", "unsupported_faults"]

HEAD_MODULES = ("classifier", "score")
HEAD_KINDS: dict[str, Literal["sequence", "token"]] = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token"}
_TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION", *HEAD_KINDS)
# These start from the base as it is. The others (pissa, olora, loftq, ...) change the base's weights when they start.
_INITS = (None, True, False, "eva", "gaussian", "orthogonal")

_RECORDS = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"}
_SHARED: dict[str, object] = {
    "exclude_modules": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": None,
    "r": None,
    "target_modules": None,
    "task_type": None,
}
# Options that change the forward pass, by method, with the value that a missing one has.
USED: dict[str, dict[str, object]] = {
    "LORA": _SHARED
    | {
        "alpha_pattern": {},
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": None,
        "rank_pattern": {},
        "use_rslora": False,
    },
    "BOTTLENECK": _SHARED | {"activation": "relu", "scaling": 1.0},
}
# Options that act in training only, or only together with one that is refused.
_UNUSED: dict[str, set[str]] = {
    "LORA": {"eva_config", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"},
    "BOTTLENECK": set(),
}
_INERT: tuple[object, ...] = (None, False, "", "none", [], {})
SETS = ("exclude_modules", "modules_to_save", "target_modules")


def malformed_faults(fields: Mapping[str, object]) -> list[str]:
    """What keeps a configuration from being read at all, a line each.

    Args:
        fields: The parsed `adapter_config.json`.
    """
    method = fields.get("peft_type")
    if not isinstance(method, str) or method not in USED:
        near = did_you_mean(str(method), USED)
        known = (
            ""
            if near or method not in PEFT_TYPE_TO_CONFIG_MAPPING
            else " Where PEFT can, convert it with `peft.save_as_lora`."
        )
        return [f"peft_type should be one of {', '.join(sorted(USED))}. Found {method!r}.{near or known}"]
    return _number_faults(method, fields) + _switch_faults(method, fields) + _module_faults(fields)


def unsupported_faults(fields: Mapping[str, object]) -> list[str]:
    """What a readable configuration asks for that is not supported, a line each.

    Args:
        fields: The parsed `adapter_config.json`, in which `malformed_faults` found nothing.
    """
    method, task = str(fields["peft_type"]), fields.get("task_type")
    faults = _option_faults(method, fields)
    if task is not None and task not in _TASKS:
        faults.append(f"task_type should be one of {', '.join(_TASKS)}, or null. Found {task!r}.")
    heads = set(HEAD_MODULES) if str(task) in HEAD_KINDS else set()
    for name in sorted(set(strings(fields.get("modules_to_save"))) - heads):
        faults.append(
            f"modules_to_save: `{name}` is not supported. Supported: {', '.join(HEAD_MODULES)}, with task_type "
            f"{' or '.join(HEAD_KINDS)}."
        )
    return faults


def _option_faults(method: str, fields: Mapping[str, object]) -> list[str]:
    used = USED[method]
    known = set(used) | _UNUSED[method] | _RECORDS
    supported = ", ".join(sorted(used))
    faults = [
        f"`{name}` is not supported. Found {value!r}. Supported options of {method}: {supported}."
        for name, value in sorted(fields.items())
        if name not in known and value not in _INERT
    ]
    init = fields.get("init_lora_weights")
    if method == "LORA" and not any(init is known_init or init == known_init for known_init in _INITS):
        faults.append(
            f"`init_lora_weights` {init!r} is not supported, since it changes the base's weights. Convert the adapter "
            "with PEFT's `path_initial_model_for_weight_conversion`."
        )
    return faults


def _number_faults(method: str, fields: Mapping[str, object]) -> list[str]:
    faults = []
    ranks = {"r": fields.get("r")}
    scales: dict[str, object] = {}
    if method == "LORA":
        scales["lora_alpha"] = fields.get("lora_alpha")
        for pattern, into in (("rank_pattern", ranks), ("alpha_pattern", scales)):
            value = fields.get(pattern) or {}
            if isinstance(value, Mapping):
                into.update({f"{pattern}[{key!r}]": number for key, number in value.items()})
                faults += [fault for key in value if (fault := _regex_fault(pattern, key))]
            else:
                faults.append(f"`{pattern}` should be an object of module patterns. Found {value!r}.")
    else:
        scales["scaling"] = fields.get("scaling", 1.0)
    for name, value in ranks.items():
        if type(value) is not int or value < 1:
            faults.append(f"`{name}` should be a whole number of at least 1. Found {value!r}.")
    for name, value in scales.items():
        if type(value) not in (int, float) or not math.isfinite(float(str(value))):
            faults.append(f"`{name}` should be a finite number. Found {value!r}.")
    return faults


def _switch_faults(method: str, fields: Mapping[str, object]) -> list[str]:
    """Options with few values, each of which changes the forward pass."""
    choices: dict[str, tuple[object, ...]] = {"activation": tuple(sorted(ACTIVATIONS))}
    if method == "LORA":
        choices = {"fan_in_fan_out": (False, True), "use_rslora": (False, True)}
    return [
        f"`{name}` should be one of {', '.join(map(str, allowed))}. Found {fields[name]!r}."
        for name, allowed in choices.items()
        if name in fields and fields[name] not in allowed
    ]


def _module_faults(fields: Mapping[str, object]) -> list[str]:
    faults = []
    for name in SETS:
        value = fields.get(name)
        if isinstance(value, str) and name != "modules_to_save":
            faults += [fault] if (fault := _regex_fault(name, value)) else []
        elif value is not None and not _is_list(value, str):
            faults.append(f"`{name}` should be a list of module names. Found {value!r}.")
    if not fields.get("target_modules"):
        faults.append("`target_modules` should name at least one module. Found none.")
    layers, patterns = fields.get("layers_to_transform"), fields.get("layers_pattern")
    if layers is not None and type(layers) is not int and not _is_list(layers, int):
        faults.append(f"`layers_to_transform` should be a list of whole numbers. Found {layers!r}.")
    if patterns is not None and not isinstance(patterns, str) and not _is_list(patterns, str):
        faults.append(f"`layers_pattern` should be a list of names. Found {patterns!r}.")
    for pattern in [patterns] if isinstance(patterns, str) else strings(patterns):
        faults += [fault] if (fault := _regex_fault("layers_pattern", pattern)) else []
    return faults


def _regex_fault(option: str, pattern: str) -> str | None:
    # PEFT puts all but the target patterns inside a larger one, where less is allowed: no flags, no open groups.
    inside = "{}" if option in SETS else r"(.*\.)?({})\.(?P<idx>\d+)"
    try:
        re.compile(inside.replace("{}", pattern))
    except re.error as error:
        return f"`{option}` should be a regular expression. Found {pattern!r}: {error}."
    return None


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def strings(value: object) -> list[str]:
    """The strings in a list, or none.

    Args:
        value: What the file holds.
    """
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
