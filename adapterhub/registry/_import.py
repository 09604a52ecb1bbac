"""Many tasks at once: surveyed first, then committed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog import TaskVectors
from adapterhub.errors import DataError, InputError
from adapterhub.registry._bases import copy_bases
from adapterhub.registry._changes import writing
from adapterhub.registry._files import is_local
from adapterhub.registry._lines import Line, digest_of, parse, raw_key
from adapterhub.registry._place import adapters_beside
from adapterhub.registry._registry import Registry
from adapterhub.registry._store import Arrival, Store
from adapterhub.registry._survey import Source, Survey, raw_lines, stated
from adapterhub.registry._vector_file import Heard, VectorFile
from adapterhub.task import Task

__all__ = ["Imported", "import_tasks"]

_LINES = 5_000  # committed at once ...
_VECTORS = 40_000  # ... and at most so many vectors with them
_PIECE = 1_024

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Args:
        added: Tasks that are new.
        replaced: Tasks that were there with another content.
        same: Tasks that were there already, the same.
    """

    added: int
    replaced: int
    same: int


def import_tasks(
    registry: Registry,
    path: str | Path,
    *,
    vectors: str | Path | None = None,
    adapters: str | Path | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    guard: Callable[[Sequence[Task]], None] | None = None,
) -> Imported:
    """Import tasks from a file of JSON lines, in memory that does not grow with the file.

    The file is read twice. First every line is checked and all faults are listed; where there is one nothing is
    imported. Then the tasks are committed in batches. Killed in between, the same call again finishes: a task that is
    there with the same content is passed over.

    Args:
        registry: Where the tasks go.
        path: One JSON object a line: `name`, the card's fields, and optionally `versions`, a list of
            {"version", "sha256"}, oldest first, and `status`, active or retired.
        vectors: A safetensors file with the vectors of the same lines, as `export_tasks` writes it.
        adapters: Folder with the adapters `<task>/v<N>` that the cards name; by default `<stem>.adapters` beside the
            file.
        replace: Whether a task that is there with another content is replaced.
        progress: Told what is done (`check` or `import`), the bytes read since the last time, and those in all.
        guard: Called with the tasks of each batch before its commit; what it raises stops the import there.

    Returns:
        How many tasks were added, replaced, and there already.

    Raises:
        DataError: If anything is wrong with a line or a file; the message lists every fault.
        InputError: If the registry is bound to another encoder than that of the vectors, or cannot be written to.
        IntegrityError: If the disk is full; what was committed stays.
    """
    path = Path(path)
    folder = adapters_beside(path) if adapters is None else Path(adapters)
    with nullcontext() if vectors is None else VectorFile(Path(vectors)) as opened:
        source = Source(path, folder, opened, replace)
        if opened is not None and registry.refresh():
            registry.store.hear(opened.encoder)
        size = path.stat().st_size if path.is_file() else 0
        survey = Survey(registry.store, source, _part(progress, "check", size))
        return _Import(registry.store, source, survey, guard).run(_part(progress, "import", size))


def _part(progress: Progress | None, what: str, size: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(what, done, size)


class _Import:
    """The second pass."""

    def __init__(
        self, store: Store, source: Source, survey: Survey, guard: Callable[[Sequence[Task]], None] | None
    ) -> None:
        self._store, self._source, self._survey, self._guard = store, source, survey, guard
        self._seq = store.refresh()
        self._others: set[str] = set()  # what other processes have changed since the survey
        self._counts = {"new": 0, "other": 0, "same": 0}
        self._piece: tuple[int, list[Heard]] = (0, [])
        # Tasks that are there without vectors get those that come along.
        encoder = None if source.vectors is None else source.vectors.encoder
        self._unheard = bool(encoder and self._seq and store.catalog.missing(encoder, limit=1))

    def run(self, progress: Callable[[int], None] | None) -> Imported:
        lines = self._lines(progress)
        while batch := self._batch(lines):
            if self._guard is not None:
                self._guard([arrival.task for arrival in batch])
            with writing(self._store.writing(), self._store.place):
                self._check_others(batch)
                encoder = "" if self._source.vectors is None else self._source.vectors.encoder
                copy_bases({line.task.base_model for line in batch}, self._source.adapters, self._store.root)
                self._store.place_all(batch, encoder=encoder)
                self._seq = self._store.catalog.seq
        return Imported(self._counts["new"], self._counts["other"], self._counts["same"])

    def _lines(self, progress: Callable[[int], None] | None) -> Iterator[Arrival]:
        """The lines that are to be committed."""
        for place, (number, raw) in enumerate(raw_lines(self._source.path, progress)):
            if place >= len(self._survey) or raw_key(raw) != self._survey.digests[place]:
                raise DataError(f"{self._source.path}:{number}: the file was changed while it was read. Import again.")
            parsed, _ = parse(raw, checked=True)
            assert parsed is not None
            line = stated(parsed, self._source.adapters)
            state = self._survey.state(line, digest_of(line.record))
            self._counts[state] += 1
            if state != "same" or self._unheard or self._lacks_history(line):
                yield self._arrival(place, line)

    def _batch(self, lines: Iterator[Arrival]) -> list[Arrival]:
        batch: list[Arrival] = []
        vectors = 0
        for arrival in lines:
            batch.append(arrival)
            vectors += 0 if arrival.vectors is None else 1 + arrival.vectors.count
            if len(batch) == _LINES or vectors >= _VECTORS:
                break
        return batch

    def _arrival(self, place: int, line: Line) -> Arrival:
        name, adapters = line.task.name, {}
        for version in {version.version for version in line.history} | {line.task.adapter or ""}:
            folder = self._source.adapters / name / version
            if is_local(version) and folder.is_dir() and not (self._store.home(name) / version).is_dir():
                adapters[version] = folder
        found = self._heard(place)
        vectors = None if found is None else TaskVectors.of(name, *found, line.task.content_hash)
        return Arrival(line.task, adapters, line.history, line.status, vectors)

    def _heard(self, place: int) -> Heard:
        """The vectors of one line; the lines come in order."""
        if self._source.vectors is None:
            return None
        start, piece = self._piece
        if place >= start + len(piece):
            self._piece = start, piece = place, self._source.vectors.read(place, place + _PIECE)
        return piece[place - start]

    def _lacks_history(self, line: Line) -> bool:
        if not line.history:
            return False
        there = {version.version for version in self._store.history(line.task.name)}
        return not there.issuperset(version.version for version in line.history)

    def _check_others(self, batch: Sequence[Arrival]) -> None:
        """Refuse what another process has written since the survey, unless it may be replaced."""
        if self._source.replace:
            return
        if self._store.catch_up() != self._seq:
            self._others.update(record.name for record in self._store.catalog.changes(self._seq).records)
        taken = [arrival.task.name for arrival in batch if arrival.task.name in self._others]
        taken = [name for name in taken if self._store.status(name) is not None]
        if taken:
            raise InputError(
                f"Another process has changed {', '.join(taken[:5])} in {self._store.place} during the import. "
                "Import again: it goes on where it was."
            )
