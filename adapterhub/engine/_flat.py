"""A folded adapter as one buffer and a small header, from which all its tensors are views again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch

from adapterhub.adapter import HeadTensors, LowRank
from adapterhub.engine._delta import Delta, Folded, Gain
from adapterhub.errors import InputError

__all__ = ["SCHEMA", "Flat", "aligned", "compact", "restored"]

_ALIGN = 64
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_PARTS = (LowRank, Gain, Delta, HeadTensors, Folded)
_CLASSES: dict[str, Callable[..., Any]] = {kind.__name__: kind for kind in _PARTS}
_FIELDS: dict[type, tuple[str, ...]] = {kind: tuple(item.name for item in fields(kind)) for kind in _PARTS}
SCHEMA = [[kind.__name__, *names] for kind, names in _FIELDS.items()]
"""The parts of a folded adapter and their fields: a header of another schema cannot be restored."""


def compact(folded: Folded) -> Folded:
    """The same adapter on one buffer of its own.

    What is read from a PEFT folder may be views on the whole file beside copies of parts of it, and then holds more
    memory than its `nbytes` say.

    Args:
        folded: The adapter.
    """
    flat = Flat(folded)
    return restored(flat.header, flat.written(0), 0)


class Flat:
    """An adapter as JSON values and a buffer.

    Tensors of one dtype and shape lie in the buffer as one stack, because one call makes the views of a whole stack.

    Args:
        folded: The adapter; its tensors may be anywhere and need not be contiguous.

    Raises:
        InputError: If it holds anything but texts and tensors of usual dtypes.
    """

    def __init__(self, folded: Folded) -> None:
        self._tensors: list[torch.Tensor] = []  # as they are met
        record = self._record(folded)
        self._stacks: dict[tuple[int, torch.Size], list[int]] = {}
        for index, tensor in enumerate(self._tensors):
            self._stacks.setdefault((_CODES[tensor.dtype], tensor.shape), []).append(index)
        stacks = [[code, len(members), *shape] for (code, shape), members in self._stacks.items()]
        self.header = [record, stacks, [index for members in self._stacks.values() for index in members]]

    def written(self, begin: int) -> torch.Tensor:
        """A buffer, uint8, with the stacks from `begin` on, which is `aligned`."""
        stacks = self.header[1]
        data = torch.zeros(begin + sum(map(_length, stacks)), dtype=torch.uint8)
        for stack, members in zip(_views(stacks, data, begin), self._stacks.values(), strict=True):
            torch.stack([self._tensors[index].detach().cpu() for index in members], out=stack)
        return data

    def _record(self, value: Any) -> Any:
        """A tensor as its number, a part as `[its class, *fields]`, the rest as it is."""
        if isinstance(value, torch.Tensor) and value.dtype in _CODES:
            self._tensors.append(value)
            return len(self._tensors) - 1
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, Mapping):
            return {key: self._record(item) for key, item in value.items()}
        if type(value) in _FIELDS:
            return [type(value).__name__, *(self._record(getattr(value, name)) for name in _FIELDS[type(value)])]
        found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"A folded adapter holds texts and tensors of {', '.join(map(str, _DTYPES))}. Found {found}.")


def restored(header: Any, data: torch.Tensor, begin: int) -> Folded:
    """The adapter of a header, its tensors views on a buffer.

    Args:
        header: What `Flat.header` was, perhaps through JSON.
        data: What `Flat.written` returned, uint8.
        begin: Where its stacks begin.
    """
    record, stacks, order = header
    views = [view for stack in _views(stacks, data, begin) for view in stack.unbind()]
    folded = _value(record, dict(zip(order, views, strict=True)))
    assert isinstance(folded, Folded)
    return folded


def _value(item: Any, tensors: Mapping[int, torch.Tensor]) -> Any:  # no closure: its cycle would keep the buffer alive
    kind = type(item)
    if kind is int:
        return tensors[item]
    if kind is list:
        return _CLASSES[item[0]](*[_value(part, tensors) for part in item[1:]])
    return {key: _value(entry, tensors) for key, entry in item.items()} if kind is dict else item


def _views(stacks: Iterable[list[int]], data: torch.Tensor, begin: int) -> list[torch.Tensor]:
    """The stacks, each `[dtype's code, members, *shape of one]`, as views on `data` from `begin` on."""
    views = []
    for code, *shape in stacks:
        nbytes = math.prod(shape) * _DTYPES[code].itemsize
        views.append(data[begin : begin + nbytes].view(_DTYPES[code]).view(shape))
        begin += aligned(nbytes)
    return views


def _length(stack: list[int]) -> int:
    return aligned(math.prod(stack[1:]) * _DTYPES[stack[0]].itemsize)


def aligned(size: int) -> int:
    """The next place where a stack may begin."""
    return -(-size // _ALIGN) * _ALIGN
