"""Making a generation of an index, and clearing away old ones."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._ahead import ahead
from adapterhub.catalog._generation import FILES, MANIFEST, Generation, Manifest
from adapterhub.catalog._linear import checksums, stride
from adapterhub.catalog._records import Ids
from adapterhub.catalog._scanned import scanning_order
from adapterhub.catalog._scores import Doubles, Rows
from adapterhub.catalog._signature import Floats, Signature, Words
from adapterhub.durable import durable_folder, sync_folder
from adapterhub.errors import InputError
from adapterhub.lock import locked

__all__ = ["GRACE", "Typical", "build", "building", "collect_garbage"]

GRACE = 60.0  # seconds between a reader's look at the manifest and its opening of the files, at the most
_LOCK = "builder.lock"
_WAITING = 4  # arrays of a file that wait for the disk


def _nothing(groups: NDArray[np.int32]) -> Doubles:
    return np.zeros(len(groups))


@dataclass(frozen=True)
class Typical:
    """What queries are like.

    Args:
        spread: (r,) standard deviations of their linear parts.
        shares: Gives what they add, on average, to the rows of each of some groups.
    """

    spread: Doubles
    shares: Callable[[NDArray[np.int32]], Doubles] = _nothing


@contextmanager
def building(folder: Path, timeout: float) -> Iterator[None]:
    """Be the only builder in a folder, over all processes and threads; a builder that dies leaves it free.

    Args:
        folder: Of the index; it is made if it is not there.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: If another one builds all the time.
    """
    durable_folder(folder)
    with locked(folder / _LOCK, timeout):
        yield


def build(
    folder: Path, blocks: Iterable[tuple[Ids, Rows]], sample: Rows, typical: Typical, *, seq: int, fingerprint: str
) -> Generation:
    """Write a generation and make it the current one. To be called while `building`.

    Args:
        folder: Of the index.
        blocks: Keys and rows, ascending by key over all blocks.
        sample: Some of the rows, or rows like them.
        typical: What queries are like; it decides what is found fast, never a score.
        seq: Number of a commit that all rows are at least as new as.
        fingerprint: Of whatever the rows are made by.

    Returns:
        The generation, opened and verified.

    Raises:
        InputError: If the keys do not ascend.
        OSError: If it cannot be written; nothing is left of it then, and the current one stays.
    """
    name = f"g{seq}-{os.getpid()}-{secrets.token_hex(4)}"
    target = folder / name
    target.mkdir()
    try:
        with ExitStack() as stack:
            writer = _Writer(target, Signature.of(sample, typical.spread), stack)
            for keys, rows in ahead(blocks):
                writer.add(keys, rows)
            groups, files = writer.finish(typical)
        sync_folder(target)
        manifest = Manifest(name, fingerprint, seq, writer.rows, len(typical.spread), groups, files)
        generation = Generation(folder, manifest)  # what is verified here is what readers will find
        _publish(folder, manifest)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    collect_garbage(folder, keep=name)
    return generation


def collect_garbage(folder: Path, keep: str, grace: float = GRACE) -> None:
    """Remove what replaced generations and killed builders left. To be called while `building`.

    Who has a generation open keeps it: the system frees its files when the last one closes them.

    Args:
        folder: Of the index.
        keep: The current generation.
        grace: Seconds that a folder is left alone after its last change; a clock that was set back counts as well.
    """
    for path in folder.iterdir():
        if path.name == keep or not path.name.startswith(("g", f"{MANIFEST}.")):
            continue
        with suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) >= grace:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Sink:
    """A file that knows its size and checksum. It is written by a thread of its own, which waits for the disk."""

    def __init__(self, path: Path, stack: ExitStack, disk: Executor) -> None:
        self._file = stack.enter_context(path.open("xb"))
        self._disk = disk
        self._writing: deque[Future[None]] = deque()
        self.size = self.crc = 0

    def write(self, array: NDArray[np.generic]) -> None:
        """Write an array that nobody changes afterwards.

        Raises:
            OSError: If this one or one before it cannot be written.
        """
        self._writing.append(self._disk.submit(self._write, array))
        while len(self._writing) > _WAITING:
            self._writing.popleft().result()

    def _write(self, array: NDArray[np.generic]) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._file.write(raw.data)
        self.size += raw.nbytes
        self.crc = zlib.crc32(raw.data, self.crc)

    def finish(self) -> tuple[int, int]:
        while self._writing:
            self._writing.popleft().result()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.size, self.crc


class _Writer:
    """The files of a generation, row after row."""

    def __init__(self, folder: Path, signature: Signature, stack: ExitStack) -> None:
        disk = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._sinks = {name: _Sink(folder / name, stack, disk) for name in FILES}
        stack.callback(disk.shutdown, cancel_futures=True)  # before the files are closed
        self._signature = signature
        self._codes: list[Words] = []  # they are written in another order
        self._slopes: list[Floats] = []
        self._groups: list[NDArray[np.int32]] = []
        self._offsets: list[Floats] = []
        self._last = -1
        self.rows = 0

    def add(self, keys: Ids, rows: Rows) -> None:
        if not len(keys):
            return
        if keys[0] <= self._last or (np.diff(keys) <= 0).any():
            raise InputError(
                f"An index is built from ascending keys. Found {keys.min()} behind {max(self._last, keys.max())}. "
                "Sort them."
            )
        self._last = int(keys[-1])
        self.rows += len(keys)
        codes, slopes = self._signature.rows(rows.linear)
        self._codes.append(codes)
        self._slopes.append(slopes)
        self._groups.append(rows.group)
        self._offsets.append(rows.offset)
        missing = stride(rows.linear.shape[1]) - rows.linear.shape[1]
        linear = np.pad(rows.linear, ((0, 0), (0, missing))) if missing else rows.linear
        linear = linear.astype("<f2", copy=False)
        self._write("keys", keys, "<i8")
        self._write("groups", rows.group, "<i4")
        self._write("offsets", rows.offset, "<f4")
        self._write("checksums", checksums(linear), "<u8")
        self._write("linear", linear, "<f2")

    def finish(self, typical: Typical) -> tuple[dict[int, float], dict[str, tuple[int, int]]]:
        """The groups, with what a typical query adds to each, and the files, with sizes and checksums."""
        signature, codes, slopes = self._signature, *self._signature.rows(np.empty((0, len(typical.spread))))
        codes, slopes = np.concatenate([codes, *self._codes]), np.concatenate([slopes, *self._slopes])
        groups = np.concatenate([np.empty(0, dtype=np.int32), *self._groups])
        known = np.flatnonzero(np.bincount(groups)).astype(np.int32)
        shares = typical.shares(known)
        of_groups = np.zeros(known.max(initial=0) + 1, dtype=np.float32)
        of_groups[known] = shares
        bases = np.concatenate([np.empty(0, dtype=np.float32), *self._offsets]) + of_groups.take(groups)
        order = scanning_order(groups, bases, slopes[:, 0])
        self._write("order", order, "<i4")
        self._write("codes", codes.take(order, axis=0), "<u8")
        self._write("slopes", slopes.take(order, axis=0).T, "<f4")
        numbers = np.concatenate([signature.centre[None], signature.for_rows.T, signature.for_queries.T])
        self._write("signature", numbers, "<f4")
        return dict(zip(known.tolist(), shares.tolist(), strict=True)), {
            name: sink.finish() for name, sink in self._sinks.items()
        }

    def _write(self, name: str, array: NDArray[Any], kind: str) -> None:
        self._sinks[name].write(array.astype(kind, copy=False))


def _publish(folder: Path, manifest: Manifest) -> None:
    with suppress(OSError):  # so that its grace period begins now
        os.utime(folder / Manifest.read(folder).name)
    partial = folder / f"{MANIFEST}.{manifest.name}"
    with partial.open("xb") as file:
        file.write(manifest.written())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)
    sync_folder(folder)
