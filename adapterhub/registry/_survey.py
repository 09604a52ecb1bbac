"""The first pass of an import: every fault of every line, and nothing written."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adapterhub.errors import DataError, InputError, IntegrityError
from adapterhub.registry._changes import label_fault, stack_of
from adapterhub.registry._files import adapter_faults, hash_of, is_local
from adapterhub.registry._known import Known, State
from adapterhub.registry._lines import Line, digest_of, key_of, parse, raw_key
from adapterhub.registry._rows import task_of
from adapterhub.registry._store import Store
from adapterhub.registry._vector_file import VectorFile
from adapterhub.registry._verify import stack_faults
from adapterhub.task import Task

__all__ = ["Source", "Survey", "raw_lines", "stated"]

_SHOWN = 1_000
_PIECE = 1024
_ABOUT = 500  # bytes of a line, for a guess how many there are


@dataclass(frozen=True)
class Source:
    """What is imported.

    Args:
        path: The lines.
        adapters: Folder of the adapters' files, `<task>/v<N>`.
        vectors: What an encoder hears of each line, if that comes along.
        replace: Whether a task that is there with another content is replaced.
    """

    path: Path
    adapters: Path
    vectors: VectorFile | None
    replace: bool


@dataclass
class Faults:
    """The faults by line; after the first thousand they are only counted.

    Args:
        path: The file.
        shown: `path:line: …`.
        count: All of them.
    """

    path: Path
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, fault: str) -> None:
        """One more, at a line counted from 1."""
        self.count += 1
        if self.count <= _SHOWN:
            self.shown.append(f"{self.path}:{line}: {fault}")

    def tell(self) -> None:
        """Raise them all.

        Raises:
            DataError: If there are any.
        """
        if self.count:
            more = [f"and {self.count - _SHOWN:,} more"] if self.count > _SHOWN else []
            end = f"Nothing was imported: {self.count:,} faults. Correct the lines and import again."
            raise DataError("\n".join([*self.shown, *more, end]))


def raw_lines(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number from 1.

    Args:
        path: The file.
        progress: Told the bytes read since the last time.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            read = 0
            for number, raw in enumerate(file, 1):
                read += len(raw)
                if progress is not None and number % _PIECE == 0:
                    progress(read)
                    read = 0
                if raw.strip():
                    yield number, raw
            if progress is not None:
                progress(read)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error


class Survey:
    """Reads all lines once. What it keeps is two numbers a line, and the stacks of those that have one.

    Args:
        store: Where the tasks will go.
        source: What is imported.
        progress: Told the bytes read since the last time.

    Raises:
        DataError: If anything is wrong; the message lists every fault with its line.
    """

    def __init__(self, store: Store, source: Source, progress: Callable[[int], None] | None = None) -> None:
        self._store, self._source = store, source
        self._faults = Faults(source.path)
        size = source.path.stat().st_size if source.path.is_file() else 0
        self.known = Known(store.catalog, size // _ABOUT + 1) if store.refresh() else None
        self._keys, self.digests = array("Q"), array("Q")
        self._stacks: dict[str, tuple[int, Task]] = {}
        self._piece: list[tuple[int, int | None]] = []
        for number, raw in raw_lines(source.path, progress):
            self._look(number, raw)
        self._look_at_vectors()
        if source.vectors is not None and len(source.vectors) != len(self):
            self._faults.add(
                1,
                f"there should be a row of vectors for each of {len(self):,} lines. "
                f"Found {len(source.vectors):,} in {source.vectors.path}. Export both together.",
            )
        self._look_for_repeated()
        self._look_at_stacks()
        self._faults.tell()

    def __len__(self) -> int:
        return len(self.digests)

    def state(self, line: Line, digest: int) -> State:
        """Whether a line is new to the registry, as it was when the survey began.

        Args:
            line: The line.
            digest: `digest_of` its row.
        """
        return "new" if self.known is None else self.known.state(line.task.name, digest)

    def _look(self, number: int, raw: bytes) -> None:
        line, faults = parse(raw)
        key = 0
        if line is not None:
            line = stated(line, self._source.adapters)
            key = key_of(line.task.name)
            faults = [f"{line.task.name}: {fault}" for fault in self._line_faults(line)]
            if line.task.stack:
                self._stacks[line.task.name] = number, line.task
        for fault in faults:
            self._faults.add(number, fault)
        self._keys.append(key)
        self.digests.append(raw_key(raw))
        self._piece.append((number, None if line is None else len(line.task.examples)))
        if len(self._piece) == _PIECE:
            self._look_at_vectors()

    def _line_faults(self, line: Line) -> Iterator[str]:
        state = self.state(line, digest_of(line.record))
        if state == "same":
            return
        if state == "other":
            yield from self._difference(line)
        task = line.task
        if task.adapter is not None and not is_local(task.adapter) and task.sha256 is None:
            yield "a card with an adapter on the Hub states its `sha256`. Found none. Add it."
        versions = {version.version: version.sha256 for version in line.history}
        versions |= {} if task.adapter is None else {task.adapter: task.sha256}
        for version, sha256 in versions.items():
            if is_local(version):
                yield from self._version_faults(task.name, version, sha256)

    def _difference(self, line: Line) -> Iterator[str]:
        record = self._store.catalog.get(line.task.name)
        if not self._source.replace:
            state = "" if record is None or record.status == line.status else f" as {record.status}"
            yield f"is in {self._store.place} already{state}, and not the same. Give --replace, or rename it."
        elif record is not None:
            yield from label_fault(task_of(record), line.task)

    def _version_faults(self, name: str, version: str, sha256: str | None) -> Iterator[str]:
        folder, here = self._source.adapters / name / version, None
        with suppress(InputError):  # a database without a folder of adapters
            here = self._store.home(name) / version
        if here is None:
            yield f"its adapter is {version}, but {self._store.place} has no folder of adapters. Give `adapters=`."
        elif not folder.is_dir() and not here.is_dir():
            yield f"its card points at the adapter {version}. Found no folder {folder}. Give it with --adapters."
        else:
            yield from adapter_faults(folder if folder.is_dir() else here, sha256)
            if folder.is_dir() and here.is_dir() and hash_of(folder) != hash_of(here):
                yield f"a version never changes. Found another {version} in {here.parent}. Give it another number."

    def _look_at_vectors(self) -> None:
        """Hold the vectors of the lines read last against their cards."""
        vectors, piece = self._source.vectors, self._piece
        self._piece = []
        start = len(self) - len(piece)
        if vectors is None or start >= len(vectors):
            return
        for place, found in enumerate(vectors.read(start, len(self))):
            number, examples = piece[place]
            if examples is not None:
                for fault in vectors.faults(start + place, found, examples):
                    self._faults.add(number, fault)

    def _look_for_repeated(self) -> None:
        keys = np.frombuffer(self._keys, dtype=np.uint64) if self._keys else np.empty(0, dtype=np.uint64)
        found, counts = np.unique(keys[keys != 0], return_counts=True)
        repeated = set(found[counts > 1].tolist())
        if not repeated:
            return
        first: dict[int, int] = {}
        for place, (number, _) in enumerate(raw_lines(self._source.path)):
            key = int(keys[place])
            if key in repeated and first.setdefault(key, number) != number:
                self._faults.add(number, f"a task stands once. Found it in line {first[key]} too. Remove one of them.")

    def _look_at_stacks(self) -> None:
        keys = np.sort(np.frombuffer(self._keys, dtype=np.uint64)) if self._stacks else np.empty(0, dtype=np.uint64)

        def stack_here(name: str) -> tuple[str, ...] | None:
            if name in self._stacks:
                return self._stacks[name][1].stack
            key = np.uint64(key_of(name))
            place = int(np.searchsorted(keys, key))
            if place < len(keys) and keys[place] == key:
                return ()
            return None if self.known is None else stack_of(self._store, name)

        for number, task in self._stacks.values():
            for fault in stack_faults(task, stack_here, lambda: list(self._stacks)):
                self._faults.add(number, fault)


def stated(line: Line, adapters: Path) -> Line:
    """The line with the content hash of an adapter that came along, where its card does not state it.

    Args:
        line: The line.
        adapters: Folder of the adapters' files.
    """
    task = line.task
    if task.sha256 is not None or not is_local(task.adapter):
        return line
    folder = adapters / task.name / str(task.adapter)
    try:
        return replace(line, task=replace(task, sha256=hash_of(folder)))
    except IntegrityError:  # told as a fault of the line
        return line
