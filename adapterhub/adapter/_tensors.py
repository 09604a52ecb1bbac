"""A safetensors file in memory: its header checked whole before a tensor is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from adapterhub.adapter._files import parse_json
from adapterhub.errors import IntegrityError

__all__ = ["Entry", "read_header", "read_tensor"]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
}
_SIZES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it.

    Args:
        dtype: The file format's name of the dtype.
        shape: Its shape.
        start: First byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def readable(self) -> bool:
        """Whether the dtype is one that adapters have."""
        return self.dtype in _DTYPES


def read_header(data: bytearray, where: str) -> dict[str, Entry]:
    """Check the header of a safetensors file against the format and the file's length.

    Args:
        data: The whole file.
        where: The file, for messages.

    Returns:
        Entries by key.

    Raises:
        IntegrityError: If the file is cut off, too long, or its header does not describe it.
    """
    length = int.from_bytes(data[:8], "little")
    begin = 8 + length
    if len(data) < 8 or begin > len(data):
        raise _broken(where, f"a header of {length:,} bytes in a file of {len(data):,}")
    header = parse_json(data[8:begin], f"{where}: the header")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    entries = {}
    for key, value in header.items():
        dtype, shape, (first, last) = _fields(value, f"{where}: {key}")
        if last - first != math.prod(shape) * _SIZES[dtype]:
            raise _broken(where, f"{key} of shape {shape} and dtype {dtype} in {last - first:,} bytes")
        spans.append((first, last))
        entries[key] = Entry(dtype, shape, begin + first)
    _check_spans(sorted(spans), len(data) - begin, where)
    return entries


def read_tensor(data: bytearray, entry: Entry) -> torch.Tensor:
    """One tensor as float32.

    Args:
        data: The whole file.
        entry: Which tensor; its dtype is readable.

    Returns:
        A view on `data` where that holds float32, otherwise a copy.
    """
    count = math.prod(entry.shape)
    if not count:
        return torch.empty(entry.shape)
    dtype = _DTYPES[entry.dtype]
    return torch.frombuffer(data, dtype=dtype, count=count, offset=entry.start).view(entry.shape).float()


def _fields(value: object, where: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(where, f"an entry {value!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in _SIZES:
        raise _broken(where, f"the dtype {dtype!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise _broken(where, f"the numbers {numbers!r}")
    if len(offsets) != 2:
        raise _broken(where, f"the offsets {offsets!r}")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _check_spans(spans: list[tuple[int, int]], size: int, where: str) -> None:
    """The tensors' bytes follow one another and fill the file: nothing is shared, hidden or cut off."""
    end = 0
    for first, last in spans:
        if first != end or last < first:
            raise _broken(where, f"tensors that overlap or leave a gap at byte {end:,}")
        end = last
    if end != size:
        raise _broken(where, f"{size:,} bytes of tensors where the header describes {end:,}")


def _broken(where: str, found: str) -> IntegrityError:
    return IntegrityError(f"{where} is not a whole safetensors file. Found {found}. Fetch the file again.")
