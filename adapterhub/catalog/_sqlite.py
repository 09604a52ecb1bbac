"""The card index in one SQLite file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection

from adapterhub.catalog import _heard as heard
from adapterhub.catalog import _read as read
from adapterhub.catalog import _scope as scopes
from adapterhub.catalog import _write as write
from adapterhub.catalog._checks import check, check_vectors
from adapterhub.catalog._connections import Connections
from adapterhub.catalog._fsck import copy, faults_of, mend
from adapterhub.catalog._packed import pack
from adapterhub.catalog._records import (
    Changes,
    Ids,
    Scope,
    TaskRecord,
    TaskVectors,
    TaskVersion,
    VectorBlock,
    VectorChanges,
)
from adapterhub.catalog._salvage import salvage
from adapterhub.catalog._schema import file_faults
from adapterhub.errors import AdapterHubError, InputError

__all__ = ["SqliteCatalog"]


class SqliteCatalog:
    """A `Catalog` in one SQLite file, safe for several processes and threads.

    Connections are kept open between calls. The file may be deleted or replaced at any time that no one writes, and an
    object may be used after a fork. A commit has reached the disk when its call returns.

    Args:
        path: The file; it is made at the first use, its folder is not.
        derived: Whether the file may be thrown away: one of another format, or a damaged one, is then deleted and
            made again, empty, for its owner to fill.
    """

    def __init__(self, path: str | Path, derived: bool = False) -> None:
        self.path, self.derived = Path(path), derived
        self._connections = Connections(self.path, derived)

    def __repr__(self) -> str:
        return f"SqliteCatalog({str(self.path)!r})"

    @property
    def url(self) -> str:
        """Where the tables are, for messages."""
        return f"sqlite:///{self.path}"

    @property
    def seq(self) -> int:
        """Number of the newest commit; 0 for an empty catalogue."""
        with self._connections.reading() as connection:
            return int(connection.execute("SELECT seq FROM meta").fetchone()[0])

    @property
    def encoder(self) -> str | None:
        """Fingerprint of the encoder that the catalogue is bound to, or None while it is bound to none."""
        with self._connections.reading() as connection:
            return heard.bound_to(connection, self.url).encoder

    def close(self) -> None:
        """Close the files; the next call opens them again."""
        self._connections.close()

    def discard(self) -> None:
        """Delete a derived file; the next call makes it again, empty.

        Raises:
            InputError: If it is not derived.
        """
        if not self.derived:
            raise InputError(f"A catalogue is deleted where it is derived. Found {self.url}. Delete the file by hand.")
        with self._connections.alone():
            self._connections.discard()

    def bind(self, encoder: str) -> int:
        """Bind the catalogue to an encoder, and drop the vectors of others; returns the commit's number."""
        with self._connections.writing() as connection:
            seq = write.next_seq(connection)
            heard.rebind(connection, seq, encoder)
        return seq

    def put(self, records: Sequence[TaskRecord], *, encoder: str = "", vectors: Sequence[TaskVectors] = ()) -> int:
        """Write rows in one commit, replacing rows of the same names, and vectors for some of them.

        Args:
            records: Rows of different names; their `seq` and `id` are set here.
            encoder: Fingerprint of the encoder of the vectors.
            vectors: Vectors of some of the rows, of the content that the row has now.

        Returns:
            The commit's number.

        Raises:
            InputError: If a row or vector breaks its rule, or the catalogue is bound to another encoder. The message
                lists every fault, and nothing is written.
        """
        if vectors and not encoder:
            raise InputError("Vectors are stored with the fingerprint of their encoder. Found none. Give `encoder`.")
        check(records, vectors)
        packed = {item.name: one for item, one in zip(vectors, pack(vectors), strict=True)}
        with self._connections.writing() as connection:
            seq = write.next_seq(connection)
            if encoder:
                heard.bind(connection, self.url, seq, encoder, vectors)
            write.write(connection, seq, records, packed)
        return seq

    def get(self, name: str) -> TaskRecord | None:
        """One row, active or retired, or None."""
        with self._connections.reading() as connection:
            found = read.fetch(connection, "task.name", [name])
        return found[0] if found else None

    def count(self, under: str = "") -> int:
        """Number of the active tasks at and below a branch."""
        with self._snapshot() as connection:
            return scopes.count(connection, under)

    def names(self, under: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Sorted names of the active tasks at and below a branch, those behind `after` only, at most `limit`."""
        with self._snapshot() as connection:
            return scopes.names(connection, under, after, limit)

    def records(
        self, under: str = "", *, after: str = "", limit: int | None = None, retired: bool = False
    ) -> list[TaskRecord]:
        """The same as rows; of the retired tasks instead of the active ones if so asked."""
        with self._snapshot() as connection:
            return read.listed(connection, scopes.ranges(under, after), limit, retired=retired)

    def children(self, under: str = "") -> list[tuple[str, int]]:
        """The next level below a branch, sorted: each full name with its number of active tasks at and below it."""
        with self._snapshot() as connection:
            return scopes.children(connection, under)

    def ids(self, scope: Scope) -> Ids:
        """Numbers of the tasks of a scope, ascending."""
        with self._snapshot() as connection:
            return scopes.scope_ids(connection, scope)

    def names_of(self, ids: Ids) -> list[str]:
        """The name of each number, in the order given.

        Args:
            ids: Numbers of tasks, active or retired.

        Raises:
            InputError: If there is no task of a number.
        """
        with self._snapshot() as connection:
            return scopes.names_of(connection, ids)

    def retire(self, names: Collection[str]) -> int:
        """Retire tasks in one commit; returns its number. An unknown name is a TaskNotFoundError."""
        with self._connections.writing() as connection:
            seq = write.next_seq(connection)
            write.set_status(connection, seq, names, "retired")
        return seq

    def restore(self, names: Collection[str]) -> int:
        """Make retired tasks active again in one commit; returns its number. An unknown name is an error."""
        with self._connections.writing() as connection:
            seq = write.next_seq(connection)
            write.set_status(connection, seq, names, "active")
        return seq

    def delete(self, names: Collection[str]) -> int:
        """Delete rows in one commit, leaving tombstones; returns its number. An unknown name is an error."""
        with self._connections.writing() as connection:
            seq = write.next_seq(connection)
            write.remove(connection, seq, names)
        return seq

    def versions(self, name: str) -> list[TaskVersion]:
        """Every adapter the task has had, oldest first."""
        with self._connections.reading() as connection:
            return read.versions(connection, name)

    def changes(self, since: int) -> Changes:
        """Rows and tombstones of all commits after `since`."""
        with self._snapshot() as connection:
            return read.changes(connection, since)

    def put_vectors(self, encoder: str, vectors: Sequence[TaskVectors]) -> int:
        """Store vectors of those tasks whose content is still the one that was encoded, in one commit.

        Args:
            encoder: The encoder's fingerprint.
            vectors: The vectors, by the task's name and the content's hash.

        Returns:
            The commit's number.

        Raises:
            InputError: If vectors break their rule, or the catalogue is bound to another encoder; then nothing is
                stored.
        """
        check_vectors(vectors)
        hashes = [item.content_hash for item in vectors]
        packed = {item.name: pair for item, pair in zip(vectors, zip(hashes, pack(vectors), strict=True), strict=True)}
        with self._connections.writing() as connection:
            seq = write.next_seq(connection)
            heard.bind(connection, self.url, seq, encoder, vectors)
            write.hear(connection, seq, packed)
        return seq

    def missing(self, encoder: str, limit: int | None = None) -> list[TaskRecord]:
        """Active tasks whose content has no vectors of that encoder, in the names' order, at most `limit`."""
        with self._snapshot() as connection:
            heard.bound_to(connection, self.url, encoder)
            return heard.missing(connection, limit)

    def vectors(self, encoder: str, ids: Ids | None = None) -> list[TaskVectors]:
        """Vectors with their examples of all active tasks that have them, or of those among `ids`, by name."""
        with self._snapshot() as connection:
            bound = heard.bound_to(connection, self.url, encoder)
            return heard.vectors(connection, bound.dimension or 0, ids)

    def blocks(self, encoder: str, ids: Ids | None = None, size: int = 8192) -> Iterator[VectorBlock]:
        """Vectors of all routable tasks that have them, ascending by number.

        Each block is read by itself, so that no writer waits for a slow reader. Whoever keeps rows reads `seq` first,
        and then the changes since: a block holds each row as it was then or later.

        Args:
            encoder: The encoder's fingerprint.
            ids: Only those of these numbers.
            size: Most tasks in a block.
        """
        if size < 1:
            raise InputError(f"A block has at least 1 row. Found size={size}. Raise it.")
        return heard.blocks(self._connections, self.url, encoder, ids, size)

    def vector_changes(self, encoder: str, since: int) -> VectorChanges:
        """Which rows of an index over an encoder's vectors are out of date."""
        with self._snapshot() as connection:
            return heard.vector_changes(connection, heard.bound_to(connection, self.url, encoder), since)

    def verify(self) -> list[str]:
        """Every fault found in the file and its tables; nothing is raised, and nothing is changed."""
        found: list[str] = []
        self.close()  # what an open connection remembers of the file is not what lies on the disk
        try:
            with self._snapshot() as connection:
                found += [f"The file is damaged: {fault}. Run `adapterhub fsck`." for fault in file_faults(connection)]
                found += faults_of(connection)
        except AdapterHubError as error:
            found.append(str(error))
        return found

    def repair(self) -> list[str]:
        """Repair what can be repaired.

        Of a damaged file a new one is made with every row that can still be read; the damaged one stays beside it.
        Rows that contradict each other are settled: what belongs to nothing goes, counters are raised, vectors that
        are not as they were written go and are encoded again, and rows of tasks that are not as they were written are
        kept in a file beside the catalogue.

        Returns:
            What was done, and what was lost.

        Raises:
            IntegrityError: If the file is not a catalogue, or cannot be written to.
        """
        report: list[str] = []
        self.close()
        if self._connections.damaged():
            report += salvage(self._connections)
        with self._connections.writing() as connection:
            return report + mend(connection, self.path.with_name(self.path.name + ".lost.jsonl"))

    def backup(self, path: str | Path) -> None:
        """Copy the catalogue as it is at this moment, while others read and write.

        Args:
            path: The new file.

        Raises:
            InputError: If it is there already.
        """
        with self._connections.reading() as connection:
            copy(connection, Path(path))

    @contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        with self._connections.reading() as connection:
            connection.execute("BEGIN")  # one state of the tables for several questions
            yield connection
