"""Whether the tensors at one module are those that it must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adapterhub.adapter._method import Shapes
from adapterhub.adapter._tensors import Entry

__all__ = ["labelled", "part_faults"]


def part_faults(name: str, parts: Mapping[str, Entry], shapes: Shapes, labels: Mapping[str, str]) -> list[str]:
    """A line for each tensor that is missing, unexpected, misshapen or of another dtype.

    Args:
        name: The module.
        parts: What the file has there, by the end of the key.
        shapes: What should be there.
        labels: How messages call the parts.
    """
    faults = []
    for part, shape in shapes.items():
        entry, label = parts.get(part), labels[part]
        if entry is None:
            faults.append(f"{name}: {label} missing.")
        elif entry.shape != shape:
            faults.append(f"{name}: {label} should have shape {shape}. Found {entry.shape}.")
        elif not entry.readable:
            faults.append(f"{name}: {label} should be F32, F16 or BF16. Found {entry.dtype}.")
    others = [part for part in parts if part not in shapes]
    if others:
        asked = labelled(labels, shapes)
        faults.append(f"{name}: {labelled(labels, others)} unexpected, since the configuration asks for {asked} there.")
    return faults


def labelled(labels: Mapping[str, str], parts: Iterable[str]) -> str:
    """Parts as messages call them.

    Args:
        labels: How messages call the parts.
        parts: Some of them.
    """
    return ", ".join(labels[part] for part in parts)
