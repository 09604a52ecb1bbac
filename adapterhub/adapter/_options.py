"""Every option of `adapter_config.json`: which are supported, and by name which are not."""

from __future__ import annotations

from typing import Literal

from adapterhub.adapter._config import strings
from adapterhub.adapter._method import Fields, name_faults, regex_fault
from adapterhub.adapter._supported import METHODS, method_fault

__all__ = ["HEAD_KINDS", "HEAD_MODULES", "malformed_faults", "unsupported_faults"]

HEAD_MODULES = ("classifier", "score")
HEAD_KINDS: dict[str, Literal["sequence", "token"]] = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token"}
_TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", *HEAD_KINDS)
_RECORDS = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"}
_INERT: tuple[object, ...] = (None, False, "", "none", [], {})


def malformed_faults(fields: Fields) -> list[str]:
    """What keeps a configuration from being read at all, a line each.

    Args:
        fields: The parsed `adapter_config.json`.
    """
    found = fields.get("peft_type")
    fault = method_fault(found)
    if fault is not None:
        return [fault]
    method = METHODS[str(found)]
    blocks = _block_faults(fields) if "layers_to_transform" in method.options else []
    return method.malformed(fields) + _module_faults(fields) + blocks


def unsupported_faults(fields: Fields) -> list[str]:
    """What a readable configuration asks for that is not supported, a line each.

    Args:
        fields: The parsed `adapter_config.json`, in which `malformed_faults` found nothing.
    """
    name, task = str(fields["peft_type"]), fields.get("task_type")
    method = METHODS[name]
    known = set(method.options) | method.ignored | _RECORDS
    faults = [
        f"`{option}` is not supported. Found {value!r}. Supported options of {name}: "
        f"{', '.join(sorted(method.options))}."
        for option, value in sorted(fields.items())
        if option not in known and value not in _INERT
    ]
    faults += method.unsupported(fields)
    if task is not None and task not in _TASKS:
        faults.append(f"task_type should be one of {', '.join(_TASKS)}, or null. Found {task!r}.")
    return faults


def _module_faults(fields: Fields) -> list[str]:
    faults = [fault for name in ("exclude_modules", "target_modules") for fault in name_faults(name, fields.get(name))]
    whole = fields.get("modules_to_save")
    if whole is not None and not _is_list(whole, str):
        faults.append(f"`modules_to_save` should be a list of module names. Found {whole!r}.")
    if not fields.get("target_modules"):
        faults.append("`target_modules` should name at least one module. Found none.")
    return faults


def _block_faults(fields: Fields) -> list[str]:
    faults = []
    layers, patterns = fields.get("layers_to_transform"), fields.get("layers_pattern")
    if layers is not None and type(layers) is not int and not _is_list(layers, int):
        faults.append(f"`layers_to_transform` should be a list of whole numbers. Found {layers!r}.")
    if patterns is not None and not isinstance(patterns, str) and not _is_list(patterns, str):
        faults.append(f"`layers_pattern` should be a list of names. Found {patterns!r}.")
    for pattern in [patterns] if isinstance(patterns, str) else strings(patterns):
        fault = regex_fault("layers_pattern", pattern, r"(?:^|.*?\.){}\.(?P<idx>\d+)\.")
        faults += [fault] if fault else []
    return faults


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)
