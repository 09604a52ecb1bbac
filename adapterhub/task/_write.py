"""Writing a card: only what the groups above do not say already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adapterhub.durable import sync_folder
from adapterhub.task._card import Task
from adapterhub.task._fields import FIELDS, Field, applies
from adapterhub.task._read import merge

__all__ = ["write_card"]


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes a text with line breaks as one quoted line, as people do."""


def _text(dumper: Any, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None)


_Dumper.add_representer(str, _text)


def write_card(path: Path, task: Task, inherited: Mapping[str, object] | None = None) -> None:
    """Write a card, replacing the file in one step; it has reached the disk when this returns.

    Args:
        path: The file.
        task: The task.
        inherited: Defaults of the groups above (`read_group`); a field equal to what it would inherit is left out.

    Raises:
        OSError: If the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(_dump(task, inherited or {}))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def _dump(task: Task, inherited: Mapping[str, object]) -> str:
    above = merge(task.name, inherited, {"head": task.head})
    parts = []
    for field in FIELDS.values():
        value = _plain(getattr(task, field.name))
        default = inherited.get("head", field.default) if field.name == "head" else above.get(field.name, field.default)
        if not applies(field.name, task.head) or (value == _plain(default) and field.name != "description"):
            continue
        parts.append(_dump_field(field, value))
    return "".join(parts)


def _dump_field(field: Field, value: object) -> str:
    text: str = yaml.dump(
        {field.name: value},
        Dumper=_Dumper,
        allow_unicode=True,
        sort_keys=False,
        width=1_000_000,
        default_flow_style=None if field.flow and isinstance(value, list | dict) else False,
    )
    return text


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
