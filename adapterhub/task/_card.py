"""A task: one job with a name and the fields of its card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterhub.errors import CardError
from adapterhub.task._fields import FIELDS, Fault, Head, field_faults
from adapterhub.task._names import name_fault
from adapterhub.task._rules import card_faults

__all__ = ["Task", "fields_faults"]


@dataclass(frozen=True)
class Task:
    """A named job: what it does, how its input and output look, and which adapter answers.

    The eight words of a task's configuration are here: `type` (the first part of the name), `name`, `description`,
    `input_format` (`prompt`), `output_format` (`output`), `loss_weight`, `is_classification`, `is_generation`.

    Args:
        name: Path in the tree, such as `language/grammar`.
        description: What the task does, in a sentence.
        examples: Inputs that belong to the task; the router listens for them.
        prompt: Format of the input, with `{text}` exactly once.
        output: Format of the output, in one line.
        head: What turns hidden states into the answer.
        labels: At least two for `classification`, BIO tags for `token-classification`, none for the others.
        max_new_tokens: Longest answer, in tokens; only for `generation`.
        base_model: Id or path of the frozen model.
        adapter: `v1`, or `hf://org/repo@<commit>/path`, or None while there is none.
        sha256: Content hash of the adapter's folder.
        stack: Tasks whose adapters this one was trained on top of.
        loss_weight: Weight of this task's loss where several are trained together.
        metrics: Measured numbers by name.
        datasets: Where training and measuring data came from.
        license: Licence of the adapter.
        tags: Words to filter by.

    Raises:
        CardError: If a field breaks its rule or contradicts another; the message lists every fault.
    """

    name: str
    description: str
    examples: tuple[str, ...] = ()
    prompt: str = "{text}"
    output: str = ""
    head: Head = "generation"
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 32
    base_model: str = ""
    adapter: str | None = None
    sha256: str | None = None
    stack: tuple[str, ...] = ()
    loss_weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    datasets: tuple[str, ...] = ()
    license: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = _faults(self.name, {"description": self.description, **self.to_dict()})
        if faults:
            raise CardError(f"{self.name}: {fault.text}" for fault in faults)
        for key, item in FIELDS.items():
            object.__setattr__(self, key, _settled(item.kind, getattr(self, key)))

    @property
    def type(self) -> str:
        """The first part of the name: the branch of the tree."""
        return self.name.partition("/")[0]

    @property
    def group(self) -> str:
        """The name of the group above, or the empty string at the top."""
        return self.name.rpartition("/")[0]

    @property
    def input_format(self) -> str:
        """How an input is written for the model: the prompt."""
        return self.prompt

    @property
    def output_format(self) -> str:
        """What the answer looks like."""
        return self.output

    @property
    def is_classification(self) -> bool:
        """Whether the answer is one of the labels, for the text or for each of its tokens."""
        return self.head in ("classification", "token-classification")

    @property
    def is_generation(self) -> bool:
        """Whether the answer is text."""
        return self.head == "generation"

    @property
    def content_hash(self) -> str:
        """Hex sha256 of the description and the examples: all that the router hears of a task."""
        content = {"description": self.description, "examples": list(self.examples)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def format(self, text: str) -> str:
        """Put a text into the prompt; braces other than `{text}` stay.

        Args:
            text: One input.
        """
        return self.prompt.replace("{text}", text)

    def to_dict(self) -> dict[str, object]:
        """The card's fields that differ from their defaults, without the name, as JSON types."""
        found: dict[str, object] = {}
        for key, default in _DEFAULTS.items():
            value = getattr(self, key)
            if value != default and (plain := _plain(value)) != _plain(default):
                found[key] = plain
        return found

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, object], where: str = "") -> Task:
        """Make a task of a card's fields, inherited ones included.

        Args:
            name: The task's name.
            fields: The fields by name.
            where: What the messages begin with; the task's name if empty.

        Raises:
            CardError: If anything is wrong; the message lists every fault.
        """
        faults = _faults(name, fields)
        if faults:
            raise CardError(f"{where or name}: {fault.text}" for fault in faults)
        values: dict[str, Any] = dict(fields)
        return cls(name, **values)

    @classmethod
    def stored(cls, name: str, fields: Mapping[str, object]) -> Task:
        """Make a task of fields that were checked when they were stored; they are not checked again.

        Args:
            name: The task's name.
            fields: What `to_dict` gave.
        """
        task = cls.__new__(cls)
        # Frozen is the assignment, not the mapping behind it: a million rows are read in a tenth of the time.
        task.__dict__.update(_DEFAULTS, name=name)
        task.__dict__.update({key: _settled(FIELDS[key].kind, value) for key, value in fields.items()})
        if "metrics" not in fields:
            task.__dict__["metrics"] = {}
        return task


def fields_faults(name: object, fields: Mapping[str, object]) -> list[str]:
    """Everything that is wrong with a card's name and fields, a sentence each.

    Args:
        name: The task's name.
        fields: The fields by name, inherited ones included.
    """
    return [fault.text for fault in _faults(name, fields)]


def _faults(name: object, fields: Mapping[str, object]) -> list[Fault]:
    fault = name_fault(name)
    faults = field_faults(fields)
    faults += card_faults(fields, {found.field for found in faults})
    stack = fields.get("stack", ())
    if isinstance(stack, list | tuple) and name in stack:
        faults.append(Fault("stack", None, f"`stack` names other tasks. Found {name!r} itself. Remove it."))
    return faults if fault is None else [Fault("name", None, fault), *faults]


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple | list):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


_DEFAULTS: Mapping[str, object] = {key: field.default for key, field in FIELDS.items()}


def _settled(kind: str, value: Any) -> object:
    if value is None:
        return None
    if kind == "numbers":
        return {key: float(number) for key, number in value.items()}
    kinds = {"texts": tuple, "number": float, "integer": int}
    return kinds[kind](value) if kind in kinds else value
