"""Vectors of a task as bytes: a narrow row without the single examples, and the examples."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._checks import halves
from adapterhub.catalog._halves import to_single
from adapterhub.catalog._records import TaskVectors, VectorBlock
from adapterhub.errors import IntegrityError

__all__ = [
    "DamagedRowError",
    "Packed",
    "block",
    "checksum",
    "empty",
    "fill",
    "is_sound",
    "narrow_size",
    "pack",
    "unpack",
]

# A narrow row is the sum of the examples, then the description. Of one example the sum is the example itself, a row
# of halves; of more it is float32, and the examples lie in a table of their own.
Narrow = tuple[int, int, int, bytes]


class DamagedRowError(IntegrityError):
    """A row does not hold what was written.

    Args:
        where: Which row.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is not as it was written. Run `adapterhub fsck`.")
        self.where = where


@dataclass(frozen=True, slots=True)
class Packed:
    """What is stored of one task's vectors.

    Args:
        count: Number of examples.
        described: 1 if there is a description, else 0.
        data: The narrow row.
        crc: Checksum of the three.
        examples: The examples; None below two.
    """

    count: int
    described: int
    data: bytes
    crc: int
    examples: bytes | None


def pack(vectors: Sequence[TaskVectors]) -> list[Packed]:
    """Vectors as they are stored.

    Args:
        vectors: Checked vectors.
    """
    return [
        _pack(rows, item.count, int(item.description is not None))
        for rows, item in zip(halves(vectors), vectors, strict=True)
    ]


def checksum(count: int, described: int, data: bytes) -> int:
    """CRC-32 of a narrow row.

    Args:
        count: Number of examples.
        described: 1 if there is a description.
        data: Its bytes.
    """
    return zlib.crc32(data, 2 * count + described)


def is_sound(
    count: int, described: int, data: bytes, crc: int, examples: bytes | None, examples_crc: int | None
) -> bool:
    """Whether the vectors of a task are as they were written, by their checksums.

    Args:
        count: Number of examples.
        described: 1 if there is a description.
        data: Bytes of the narrow row.
        crc: Their checksum.
        examples: Bytes of the examples; None below two.
        examples_crc: Their CRC-32.
    """
    whole = examples is None if count < 2 else examples is not None and zlib.crc32(examples) == examples_crc
    return whole and crc == checksum(count, described, data)


def narrow_size(count: int, described: int, dimension: int) -> int:
    """Bytes of a narrow row.

    Args:
        count: Number of examples.
        described: 1 if there is a description.
        dimension: Width d.
    """
    return 2 * dimension * (min(count, 2) + described)


def unpack(name: str, key: int, content: str, dimension: int, narrow: Narrow, examples: bytes | None) -> TaskVectors:
    """Vectors of one task as they were given.

    Args:
        name: The task's name.
        key: Its number.
        content: Content that was encoded.
        dimension: Width d.
        narrow: Number, examples, description and bytes of its narrow row.
        examples: Its examples; None below two.
    """
    _, count, described, _ = narrow
    found = block([narrow], dimension)
    rows = found.totals[:count] if examples is None else _floats(np.frombuffer(examples, dtype="<f2"))
    description = found.descriptions[0].copy() if described else None
    return TaskVectors(name, count, found.totals[0], description, rows.reshape(count, dimension).copy(), content, key)


def block(rows: Sequence[Narrow], dimension: int) -> VectorBlock:
    """Narrow rows as arrays.

    Args:
        rows: Number, examples, description and bytes of each.
        dimension: Width d.

    Raises:
        DamagedRowError: If a row does not have the bytes that its numbers call for.
    """
    found = empty(len(rows), dimension)
    fill(found, 0, rows)
    return found


def empty(size: int, dimension: int) -> VectorBlock:
    """A block to be filled; its memory is taken as rows come.

    Args:
        size: Number of rows.
        dimension: Width d.
    """
    return VectorBlock(
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.int64),
        np.empty((size, dimension), dtype=np.float32),
        np.empty((size, dimension), dtype=np.float32),
        np.empty(size, dtype=np.bool_),
    )


def fill(block: VectorBlock, start: int, rows: Sequence[Narrow]) -> None:
    """Put narrow rows into a block.

    Args:
        block: The block.
        start: Where the first one goes.
        rows: Number, examples, description and bytes of each.

    Raises:
        DamagedRowError: If a row does not have the bytes that its numbers call for.
    """
    if not rows:
        return
    keys, counts, described, parts = zip(*rows, strict=True)
    here = slice(start, start + len(rows))
    block.ids[here], block.counts[here], block.described[here] = keys, counts, described
    totals, descriptions = block.totals[here], block.descriptions[here]
    kinds = 2 * np.minimum(block.counts[here], 2) + block.described[here]
    for kind in np.unique(kinds).tolist():
        where = np.flatnonzero(kinds == kind)
        at = slice(None) if len(where) == len(rows) else where
        raw = _raw([parts[place] for place in where.tolist()], narrow_size(kind // 2, kind % 2, totals.shape[1]))
        split = 2 * totals.shape[1] * (kind // 2)
        sums = raw[:, :split]
        totals[at] = 0 if not split else sums.view("<f4") if kind >= 4 else _floats(sums.view("<f2"))
        descriptions[at] = _floats(raw[:, split:].view("<f2")) if kind % 2 else 0


def _raw(parts: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    if set(map(len, parts)) != {size}:
        raise DamagedRowError("A row of the vectors")
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(len(parts), size)


def _pack(rows: NDArray[np.float16], count: int, described: int) -> Packed:
    if count < 2:
        data, examples = rows.astype("<f2", copy=False).tobytes(), None
    else:
        # Numbers of half precision add up without rounding in double precision, so their order is of no matter.
        total = rows[:count].sum(axis=0, dtype=np.float64).astype("<f4")
        data = total.tobytes() + rows[count:].astype("<f2", copy=False).tobytes()
        examples = rows[:count].astype("<f2", copy=False).tobytes()
    return Packed(count, described, data, checksum(count, described, data), examples)


def _floats(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    return to_single(rows.astype(np.float16, copy=False))  # of this machine's order of bytes
