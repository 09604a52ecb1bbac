"""Rows read from the pages of a SQLite file themselves, where the tree above the pages is damaged.

The layout is SQLite's file format: a leaf of a table is a page of type 13 with cells of (length, number, record), and a
record is a header of types followed by the values; what does not fit lies in a chain of overflow pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["rows_of"]

_LEAF = 13
_HEADER = 100  # of the file, before the first page's own
_WIDTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def rows_of(path: Path, page: int, columns: int) -> Iterator[list[object]]:
    """Every record with a number of columns that is found on any leaf of any table, deleted ones included.

    Args:
        path: The file.
        page: Bytes of a page.
        columns: Number of columns; the first is the row's number.
    """
    with path.open("rb") as file:
        for number in range(1, path.stat().st_size // page + 1):
            file.seek((number - 1) * page)
            raw = file.read(page)
            start = _HEADER if number == 1 else 0
            if raw[start] != _LEAF:
                continue
            for cell in range(int.from_bytes(raw[start + 3 : start + 5], "big")):
                at = start + 8 + 2 * cell
                row = _row(file, raw, int.from_bytes(raw[at : at + 2], "big"), columns)
                if row is not None:
                    yield row


def _row(file: BinaryIO, raw: bytes, at: int, columns: int) -> list[object] | None:
    try:
        length, at = _varint(raw, at)
        key, at = _varint(raw, at)
        record = _payload(file, raw, at, length)
        types = _types(record)
        if len(types) != columns:
            return None
        return [key, *_values(record, types)[1:]]
    except (IndexError, ValueError):
        return None


def _payload(file: BinaryIO, raw: bytes, at: int, length: int) -> bytes:
    page = len(raw)
    most, least = page - 35, (page - 12) * 32 // 255 - 23
    if length <= most:
        return raw[at : at + length]
    local = least + (length - least) % (page - 4)
    local = local if local <= most else least
    parts, following = [raw[at : at + local]], int.from_bytes(raw[at + local : at + local + 4], "big")
    for _ in range(length // (page - 4) + 1):
        if not following:
            break
        file.seek((following - 1) * page)
        part = file.read(page)
        following = int.from_bytes(part[:4], "big")
        parts.append(part[4:])
    return b"".join(parts)[:length]


def _types(record: bytes) -> list[int]:
    end, at = _varint(record, 0)
    types = []
    while at < end:
        kind, at = _varint(record, at)
        types.append(kind)
    return types


def _values(record: bytes, types: list[int]) -> list[object]:
    at, values = _varint(record, 0)[0], []
    for kind in types:
        size = (kind - 12) // 2 if kind >= 12 else _WIDTHS.get(kind, 0)
        part = record[at : at + size]
        if len(part) != size:
            raise ValueError("the record is cut off")
        values.append(_value(kind, part))
        at += size
    return values


def _value(kind: int, part: bytes) -> object:
    if kind >= 12:
        return part.decode() if kind % 2 else part
    if kind in (8, 9):
        return kind - 8
    if kind in _WIDTHS:
        return int.from_bytes(part, "big", signed=True)
    if kind:
        raise ValueError("no table has a number with a fraction")
    return None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        byte = raw[at + place]
        value = value << 7 | byte & 127
        if byte < 128:
            return value, at + place + 1
    return value << 8 | raw[at + 8], at + 9
