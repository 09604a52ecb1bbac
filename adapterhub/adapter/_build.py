"""An adapter's parts from a file whose header fits."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._head import build_head
from adapterhub.adapter._layout import Layout
from adapterhub.adapter._norms import build_norm
from adapterhub.adapter._supported import METHODS
from adapterhub.adapter._tensors import Header, read_tensors
from adapterhub.adapter._types import HeadTensors, LowRank, Norm, Scaling

__all__ = ["Parts", "build"]


@dataclass(frozen=True)
class Parts:
    """What an adapter is made of, by module name.

    Args:
        modules: Factors.
        scalings: Elementwise factors.
        norms: New normalisations.
        head: The head, or None.
        faults: A line for each tensor that holds NaN or infinity; then nothing else is filled.
    """

    modules: dict[str, LowRank] = field(default_factory=dict)
    scalings: dict[str, Scaling] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    head: HeadTensors | None = None
    faults: tuple[str, ...] = ()


def build(data: bytearray, header: Header, layout: Layout, config: AdapterConfig) -> Parts:
    """Read every tensor, look at every value, and fold the scales in.

    Args:
        data: The safetensors file; tensors are views on it, so it is written to.
        header: Its header.
        layout: Its entries by place, which fit.
        config: The adapter's configuration.
    """
    values, bad = read_tensors(data, header)
    if bad:
        return Parts(faults=tuple(_value_faults(set(bad), layout, config)))
    method = METHODS[config.method]
    parts = Parts(head=build_head(layout.head, config, values))
    parts.norms.update({name: build_norm(entries, values) for name, entries in layout.norms.items()})
    for name, entries in layout.modules.items():
        tensors = {part: values[entry.key] for part, entry in entries.items()}
        part = method.build(config, layout.place(name), tensors)
        if isinstance(part, LowRank):
            parts.modules[name] = part
        elif isinstance(part, Scaling):
            parts.scalings[name] = part
        else:
            parts.norms[name] = part
    return parts


def _value_faults(bad: set[str], layout: Layout, config: AdapterConfig) -> list[str]:
    labels = METHODS[config.method].labels
    named = {entry.key: key for key, entry in layout.head.items()}
    named |= {entry.key: f"{name}: {part}" for name, entries in layout.norms.items() for part, entry in entries.items()}
    named |= {
        entry.key: f"{name}: {labels[part]}"
        for name, entries in layout.modules.items()
        for part, entry in entries.items()
    }
    return [f"{what} holds NaN or infinity." for key, what in named.items() if key in bad]
