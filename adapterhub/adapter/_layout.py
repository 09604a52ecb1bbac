"""A file's keys sorted by the place in the base that they name."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapterhub.adapter._base import LM_HEAD, BaseSignature
from adapterhub.adapter._config import AdapterConfig
from adapterhub.adapter._method import ROOT, Place
from adapterhub.adapter._options import HEAD_MODULES
from adapterhub.adapter._supported import METHODS
from adapterhub.adapter._tensors import Entry, Header

__all__ = ["Layout", "read_layout"]


@dataclass(frozen=True)
class Layout:
    """A file's entries by place in the base.

    Args:
        prefix: What the trained model had before the backbone's names: `model.` or nothing.
        modules: Entries by module, relative to the backbone, and by part (`lora_A.weight`).
        head: Entries of the head by key (`score.weight`).
        norms: Entries of stored normalisations by module, relative to the backbone, and by part (`weight`).
        strange: Keys that are none of these.
    """

    prefix: str
    modules: dict[str, dict[str, Entry]] = field(default_factory=dict)
    head: dict[str, Entry] = field(default_factory=dict)
    norms: dict[str, dict[str, Entry]] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)

    def place(self, module: str) -> Place:
        """A module of the base with its name in the model that was trained."""
        return Place(module, module if module == LM_HEAD else self.prefix + module)


def read_layout(header: Header, config: AdapterConfig, base: BaseSignature) -> Layout:
    """Sort a file's keys.

    Args:
        header: The file's header.
        config: The adapter's configuration.
        base: The base.
    """
    prefix = f"{base.prefix}." if base.prefix else ""
    prefixed = any(key.startswith(ROOT + prefix) for key in header.entries)
    layout = Layout(prefix if prefixed else "")
    labels = METHODS[config.method].labels
    for key, entry in header.entries.items():
        name = key.removeprefix(ROOT)
        part = next((part for part in labels if name.endswith(f".{part}")), None)
        module = name.removesuffix(f".{part}")
        if name == key:
            layout.strange.append(key)
        elif part is not None and module == LM_HEAD:
            layout.modules.setdefault(module, {})[part] = entry
        elif part is not None and module.startswith(layout.prefix):
            layout.modules.setdefault(module.removeprefix(layout.prefix), {})[part] = entry
        elif config.head and name.split(".")[0] in HEAD_MODULES:
            layout.head[name] = entry
        elif (norm := _stored_norm(name, layout.prefix, config, base)) is not None:
            layout.norms.setdefault(norm, {})[name.rpartition(".")[2]] = entry
        else:
            layout.strange.append(key)
    return layout


def _stored_norm(name: str, prefix: str, config: AdapterConfig, base: BaseSignature) -> str | None:
    """The base's normalisation to which a tensor belongs, where the configuration says that it is stored whole."""
    trained, _, part = name.rpartition(".")
    module = trained.removeprefix(prefix)
    known = part in ("weight", "bias") and trained.startswith(prefix) and module in base.norms
    return module if known and config.rule.saves(ROOT + trained) else None
