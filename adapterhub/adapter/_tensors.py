"""A safetensors file in memory: its header checked whole before a tensor is made.

A matrix may be stored as int8: `KEY` as a flat list of I8 values, row behind row, and `KEY.scale` with one number for
each row by which its values are multiplied. It is one entry here, with the matrix's shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import torch

from adapterhub.adapter._files import parse_json
from adapterhub.errors import IntegrityError

__all__ = ["DTYPES", "SCALE", "Entry", "Header", "read_header", "read_tensors"]

SCALE = ".scale"  # behind the key of a matrix that is stored as int8

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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


# Bytes of a header of some 3,000 tensors; larger ones are checked each time.
_REMEMBERED = 1 << 19
_ALIGNED = 8


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it.

    Args:
        key: Its name.
        dtype: The file format's name of the dtype.
        shape: Its shape.
        start: First byte in the file.
        scale: The rows' scales where the values are int8, else None.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    scale: Entry | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def readable(self) -> bool:
        """Whether the dtype is one that adapters have."""
        return self.dtype in DTYPES or self.scale is not None


@dataclass(frozen=True, eq=False)
class Header:
    """A checked header; equal to itself only. Files with the same header share one.

    Args:
        entries: Entries by key, in the order of their bytes.
        begin: Where the first tensor begins.
    """

    entries: Mapping[str, Entry]
    begin: int

    @property
    def remembered(self) -> bool:
        """Whether the same bytes give the same object for a while."""
        return self.begin < _REMEMBERED


def read_header(data: bytearray, where: str) -> Header:
    """Check the header of a safetensors file against the format and the file's length.

    Adapters of one shape have one header, so it is checked once for all of them.

    Args:
        data: The whole file.
        where: The file, for messages.

    Raises:
        IntegrityError: If the file is cut off, too long, or its header does not describe it.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or begin > len(data):
            raise _broken(f"a header of {begin - 8:,} bytes in a file of {len(data):,}")
        parse = _parse if begin < _REMEMBERED else _parse.__wrapped__
        return parse(bytes(data[8:begin]), len(data))
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from None


def read_tensors(data: bytearray, header: Header) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All tensors as float32, and the keys of those that hold NaN or infinity.

    Args:
        data: The whole file.
        header: Its header; every dtype is readable.

    Returns:
        The tensors by key, views on `data` where that holds float32 and on a copy elsewhere; and the keys.
    """
    entries = header.entries.values()
    dtypes = {entry.dtype for entry in entries}
    if len(dtypes) != 1 or not dtypes <= DTYPES.keys() or header.begin % _ALIGNED or len(data) == header.begin:
        values = {entry.key: _alone(data, entry) for entry in entries}
        return values, _infinite(values)
    # The tensors fill the file, so one view and one look at the values serve them all.
    whole = torch.frombuffer(data, dtype=DTYPES[dtypes.pop()], offset=header.begin).float()
    parts = whole.split_with_sizes([entry.count for entry in entries])
    values = {entry.key: part.view(entry.shape) for entry, part in zip(entries, parts, strict=True)}
    return values, [] if _finite(whole) else _infinite(values)


def _alone(data: bytearray, entry: Entry) -> torch.Tensor:
    if not entry.count:
        return torch.empty(entry.shape)
    size = entry.count * _SIZES[entry.dtype]
    # A copy, because the bytes may begin anywhere.
    raw = data[entry.start : entry.start + size]
    if entry.scale is not None:
        steps = torch.frombuffer(raw, dtype=torch.int8).view(entry.shape).float()
        return steps.mul_(_alone(data, entry.scale)[:, None])
    return torch.frombuffer(raw, dtype=DTYPES[entry.dtype]).view(entry.shape).float()


def _infinite(values: Mapping[str, torch.Tensor]) -> list[str]:
    return [key for key, value in values.items() if value.numel() and not _finite(value)]


def _finite(value: torch.Tensor) -> bool:
    # One pass without a mask, five times as fast; both ends are NaN where any value is.
    low, high = value.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


@lru_cache(maxsize=32)
def _parse(raw: bytes, size: int) -> Header:
    """A header's bytes in a file of a size."""
    begin = 8 + len(raw)
    fields = parse_json(raw, "the header")
    fields.pop("__metadata__", None)
    spans, entries = [], []
    for key, value in fields.items():
        dtype, shape, (first, last) = _fields(key, value)
        if last - first != math.prod(shape) * _SIZES[dtype]:
            raise _broken(f"{key} of shape {shape} and dtype {dtype} in {last - first:,} bytes")
        spans.append((first, last))
        entries.append(Entry(key, dtype, shape, begin + first))
    _check_spans(sorted(spans), size - begin)
    entries.sort(key=lambda entry: entry.start)
    return Header(MappingProxyType(_paired({entry.key: entry for entry in entries})), begin)


def _paired(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Int8 values and their rows' scales as one entry; what does not pair is left, and read as what it is."""
    for key, entry in list(entries.items()):
        scale = entries.get(key + SCALE)
        if entry.dtype != "I8" or len(entry.shape) != 1 or scale is None or scale.dtype not in DTYPES:
            continue
        if len(scale.shape) == 1 and scale.count and entry.count % scale.count == 0:
            del entries[scale.key]
            entries[key] = replace(entry, shape=(scale.count, entry.count // scale.count), scale=scale)
    return entries


def _fields(key: str, value: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(f"{key} as {value!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _broken(f"{key} of the dtype {dtype!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise _broken(f"{key} with the numbers {numbers!r}")
    if len(offsets) != 2:
        raise _broken(f"{key} with the offsets {offsets!r}")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _check_spans(spans: list[tuple[int, int]], size: int) -> None:
    """The tensors' bytes follow one another and fill the file: nothing is shared, hidden or cut off."""
    end = 0
    for first, last in spans:
        if first != end or last < first:
            raise _broken(f"tensors that overlap or leave a gap at byte {end:,}")
        end = last
    if end != size:
        raise _broken(f"{size:,} bytes of tensors where the header describes {end:,}")


def _broken(found: str) -> IntegrityError:
    return IntegrityError(f"not a whole safetensors file. Found {found}. Fetch the file again.")
