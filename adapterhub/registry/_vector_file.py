"""Vectors of many tasks in one safetensors file, row i for line i."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from adapterhub.catalog import Catalog, Ids, TaskVectors
from adapterhub.durable import sync_folder
from adapterhub.errors import DataError, InputError

__all__ = ["Heard", "VectorFile", "content_key", "write_vectors"]

_FORMAT = "1"
_SHAPES = {"descriptions": "(n, d) F16", "described": "(n,) U8", "examples": "(sum, d) F16", "counts": "(n,) I64"}
_PAGE = 2048

Heard = tuple[NDArray[np.float32], NDArray[np.float32]] | None  # a description (d,), examples (n, d)


class VectorFile:
    """A file of vectors, read piece by piece. Use it as a context.

    Args:
        path: The file.

    Raises:
        DataError: If it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = file = cast("Any", safe_open(path, framework="numpy"))
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            told = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} should be a safetensors file. Found: {error}. Export it again.") from error
        found = {name: f"{tuple(part.get_shape())} {part.get_dtype()}" for name, part in parts.items()}
        self._check(parts, found, told)
        self.encoder = str(told["encoder"])
        self.counts = np.asarray(file.get_tensor("counts"), dtype=np.int64)
        self._described = np.asarray(file.get_tensor("described")) != 0
        self._starts = np.concatenate([[0], np.cumsum(np.maximum(self.counts, 0))])
        if (self.counts < 0).any() or self._starts[-1] != parts["examples"].get_shape()[0]:
            rows = parts["examples"].get_shape()[0]
            raise DataError(f"{path}: `counts` should sum up to the {rows} rows of `examples`. Found another sum.")

    def __enter__(self) -> VectorFile:
        self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.__exit__(kind, error, at)

    def __len__(self) -> int:
        return len(self.counts)

    def read(self, start: int, stop: int) -> list[Heard]:
        """The description (d,) and the examples (n, d) of some lines, None for a line without vectors.

        Args:
            start: The first line, from 0.
            stop: Behind the last.
        """
        stop = min(stop, len(self))
        first, last = int(self._starts[start]), int(self._starts[stop])
        descriptions = self._file.get_slice("descriptions")[start:stop].astype(np.float32)
        examples = np.empty((0, descriptions.shape[1]), dtype=np.float32)
        if last > first:  # an empty slice at the end is refused
            examples = self._file.get_slice("examples")[first:last].astype(np.float32)
        found: list[Heard] = []
        for line in range(start, stop):
            begin, end = int(self._starts[line]) - first, int(self._starts[line + 1]) - first
            heard = self._described[line] or end > begin
            found.append((descriptions[line - start], examples[begin:end]) if heard else None)
        return found

    def faults(self, line: int, found: Heard, examples: int) -> list[str]:
        """What is wrong with the vectors of one line.

        Args:
            line: Its place, from 0.
            found: What `read` gave for it.
            examples: Number of the task's examples.
        """
        if found is None:
            return []
        faults = []
        if not self._described[line] or len(found[1]) != examples:
            there = f"{'a' if self._described[line] else 'no'} description and {len(found[1])} examples"
            faults.append(f"its vectors should be of a description and {examples} examples. Found {there}.")
        lengths = np.linalg.norm(np.concatenate([found[0][None], found[1]]), axis=1)
        if not np.isfinite(lengths).all():
            faults.append("its vectors should be finite. Found NaN or infinity. Encode the task again.")
        elif not np.allclose(lengths, 1, atol=1e-2):
            worst = float(lengths[np.argmax(np.abs(lengths - 1))])
            faults.append(f"its vectors should have length 1. Found {worst:.3g}. Divide each one by its norm.")
        return faults

    def _check(self, parts: dict[str, Any], found: dict[str, str], told: dict[str, str]) -> None:
        kinds = {name: part.get_dtype() for name, part in parts.items()}
        shapes = {name: part.get_shape() for name, part in parts.items()}
        good = kinds == {name: text.split()[-1] for name, text in _SHAPES.items()}
        good = good and told.get("format") == _FORMAT and bool(told.get("encoder"))
        if good:
            n, d = (*shapes["descriptions"], 0)[:2]
            wanted = {"descriptions": [n, d], "described": [n], "counts": [n], "examples": [*shapes["examples"][:1], d]}
            good = shapes == wanted
        if not good:
            rule = ", ".join(f"{name} {shape}" for name, shape in _SHAPES.items())
            raise DataError(
                f"{self.path} should hold {rule} and name its `encoder` and `format` {_FORMAT}. "
                f"Found {found or 'nothing'} with {told or 'no metadata'}. Write it with: adapterhub export --vectors"
            )


def content_key(content_hash: str) -> int:
    """A number of 64 bits for a content hash, which is hexadecimal."""
    return int(content_hash[:16], 16)


def write_vectors(path: Path, catalog: Catalog, encoder: str, ids: Ids, contents: NDArray[np.uint64]) -> int:
    """Write the vectors of some tasks, whole or not at all.

    Args:
        path: The file.
        catalog: Where the vectors are.
        encoder: Whose they are.
        ids: (n,) numbers of the tasks, line by line.
        contents: (n,) `content_key` of each line: a task that was changed since has no vectors here.

    Returns:
        The number of lines that have vectors.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb+") as file:
            heard = _fill(file, catalog, encoder, ids, contents)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return heard


def _fill(file: Any, catalog: Catalog, encoder: str, ids: Ids, contents: NDArray[np.uint64]) -> int:
    n, d = len(ids), _dimension(catalog, encoder, ids)
    counts, described = np.zeros(n, dtype="<i8"), np.zeros(n, dtype=np.uint8)
    header = 4096
    first = 8 + header + counts.nbytes  # of the descriptions; the examples follow, whose number is not known yet
    file.seek(first + 2 * n * d)
    for start, page in _pages(catalog, encoder, ids, contents):
        block = np.zeros((len(page), d), dtype="<f2")
        for place, found in enumerate(page):
            if found is not None and found.description is not None:
                block[place], described[start + place] = found.description, 1
                counts[start + place] = found.count
                file.write(found.examples.astype("<f2").tobytes())
        end = file.tell()
        file.seek(first + 2 * start * d)
        file.write(block.tobytes())
        file.seek(end)
    file.write(described.tobytes())
    sizes = [("counts", "I64", [n], 8 * n), ("descriptions", "F16", [n, d], 2 * n * d)]
    total = int(counts.sum())
    sizes += [("examples", "F16", [total, d], 2 * total * d), ("described", "U8", [n], n)]
    told: dict[str, object] = {"__metadata__": {"encoder": encoder, "format": _FORMAT}}
    offset = 0
    for name, kind, shape, size in sizes:
        told[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(told).encode()
    if len(text) > header:
        raise InputError(f"An encoder's fingerprint has at most {header // 2} characters. Found {len(encoder):,}.")
    file.seek(0)
    file.write(header.to_bytes(8, "little") + text.ljust(header) + counts.tobytes())
    return int(described.sum())


def _pages(
    catalog: Catalog, encoder: str, ids: Ids, contents: NDArray[np.uint64]
) -> Iterator[tuple[int, list[TaskVectors | None]]]:
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        there = {found.id: found for found in catalog.vectors(encoder, page)}
        wanted = zip(page.tolist(), contents[start : start + _PAGE].tolist(), strict=True)
        yield (
            start,
            [there[id] if id in there and content_key(there[id].content_hash) == key else None for id, key in wanted],
        )


def _dimension(catalog: Catalog, encoder: str, ids: Ids) -> int:
    for block in catalog.blocks(encoder, size=1):
        return int(block.totals.shape[1])
    for start in range(0, len(ids), _PAGE):  # no routable task has vectors, but another may have
        for found in catalog.vectors(encoder, ids[start : start + _PAGE]):
            return len(found.total)
    return 0
