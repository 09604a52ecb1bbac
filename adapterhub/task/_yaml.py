"""A card's file as plain values, with the line of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adapterhub.task._fields import Fault

__all__ = ["CardFile", "read_file"]

# The C loader is about ten times as fast. Both only compose nodes: no tag ever constructs an object.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 1 << 20
_DEEPEST = 64


@dataclass
class CardFile:
    """What one YAML file says.

    Args:
        path: The file.
        fields: Values by field: str, int, float, bool, None, lists of these, mappings of these.
        lines: Line of each field, and of each of its items as `(field, item)`.
        faults: What is wrong with the file as YAML, each as `path:line: …`.
    """

    path: Path
    fields: dict[str, object] = field(default_factory=dict)
    lines: dict[tuple[str, int | str | None], int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def at(self, line: int, text: str) -> str:
        """A sentence with its place in front."""
        return f"{self.path}:{line}: {text}"

    def locate(self, fault: Fault) -> str:
        """A fault with its place in front; the first line where the field is not in this file."""
        line = self.lines.get((fault.field, fault.item)) or self.lines.get((fault.field, None), 1)
        return self.at(line, fault.text)


def read_file(path: Path) -> CardFile:
    """Read a card's file; every fault is kept, none is raised.

    Args:
        path: A YAML file.
    """
    card = CardFile(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        card.faults.append(card.at(1, f"a card is a file that can be read. Found: {error.strerror}. Correct the file."))
        return card
    try:
        _fill(card, _compose(raw))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        card.faults.append(card.at(line, f"a card is UTF-8. Found the byte {raw[error.start]:#04x}. Save it as UTF-8."))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"{error.problem or error.context}"
        card.faults.append(
            card.at(mark.line + 1 if mark else 1, f"a card is YAML. Found: {problem}. Correct the line.")
        )
    except (yaml.YAMLError, RecursionError, _TooMuchError) as error:
        problem = " ".join(str(error).split())
        card.faults.append(card.at(1, f"a card is YAML. Found: {problem}. Correct the file."))
    return card


class _TooMuchError(Exception):
    """A file that no card needs."""


def _compose(raw: bytes) -> yaml.Node | None:
    if len(raw) > _LARGEST:
        raise _TooMuchError(f"{len(raw):,} bytes, more than {_LARGEST:,}")
    text = raw.decode("utf-8-sig")
    # The C composer recurses on the C stack, where Python's limit does not protect it.
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise _TooMuchError(f"more than {_DEEPEST} levels")
    node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    return node


def _fill(card: CardFile, root: yaml.Node | None) -> None:
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        card.faults.append(
            card.at(_line(root), "a card is a mapping of fields. Found something else. Write `field: value`.")
        )
        return
    for key, node in root.value:
        name = _key(card, key, "a field", {known for known, item in card.lines if item is None})
        if name is None:
            continue
        card.lines[name, None] = _line(key)
        card.fields[name] = _value(card, name, node)


def _key(card: CardFile, node: yaml.Node, what: str, seen: set[str]) -> str | None:
    if not isinstance(node, yaml.ScalarNode) or _kind(node) in ("null", "merge"):
        card.faults.append(card.at(_line(node), f"{what}'s name is text. Found something else. Write `name: value`."))
        return None
    name = str(node.value)
    if name in seen:
        text = f"{what} stands once. Found `{name}` a second time. Remove one of them."
        card.faults.append(card.at(_line(node), text))
        return None
    return name


def _value(card: CardFile, name: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        card.lines.update({(name, place): _line(item) for place, item in enumerate(node.value)})
        return [_scalar(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(card, name, node)
    return _scalar(node)


def _mapping(card: CardFile, name: str, node: yaml.MappingNode) -> Mapping[str, object]:
    values: dict[str, object] = {}
    for key, item in node.value:
        part = _key(card, key, f"a name in `{name}`", set(values))
        if part is not None:
            card.lines[name, part] = _line(key)
            values[part] = _scalar(item)
    return values


def _scalar(node: yaml.Node) -> object:
    """A scalar by YAML's rules; a nested collection, which no field holds, by its bare kind."""
    if not isinstance(node, yaml.ScalarNode):
        return [] if isinstance(node, yaml.SequenceNode) else {}
    kind, text = _kind(node), str(node.value)
    if kind == "str":
        return text
    try:
        return _PLAIN[kind](node)
    except (KeyError, ValueError, IndexError):  # another tag, or `!!int many`
        return _Odd(kind, text)


class _Odd:
    """A scalar that YAML reads as neither text nor number, such as a date; every check of a field refuses it."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text

    def __repr__(self) -> str:
        return f"{self.text} ({self.kind})"


_SAFE = yaml.constructor.SafeConstructor()
_PLAIN: Mapping[str, Callable[[Any], object]] = {
    "int": _SAFE.construct_yaml_int,
    "float": _SAFE.construct_yaml_float,
    "bool": _SAFE.construct_yaml_bool,
    "null": _SAFE.construct_yaml_null,
}


def _kind(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
