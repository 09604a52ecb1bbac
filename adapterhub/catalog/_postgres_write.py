"""Commits of a PostgreSQL catalogue, one at a time and numbered in their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import LiteralString, NamedTuple
from zlib import crc32

from adapterhub.catalog._checks import check_vectors
from adapterhub.catalog._packed import Packed
from adapterhub.catalog._postgres_pool import Connection
from adapterhub.catalog._postgres_read import known, one
from adapterhub.catalog._postgres_schema import refuse_newer
from adapterhub.catalog._postgres_vectors import check_encoder
from adapterhub.catalog._records import TaskRecord, TaskVectors

__all__ = ["MANY", "Commit"]

MANY = 64  # from so many rows on COPY is faster than one INSERT a row
_BEGIN: LiteralString = "UPDATE catalog SET seq = seq + 1 RETURNING seq, last_id, encoder, dimension, format"
# The first commit that named an adapter stays the one that is told.
_VERSIONS: LiteralString = """INSERT INTO version
    SELECT *, %s FROM unnest(%s::bigint[], %s::text[], %s::text[])
    ON CONFLICT (task_id, version) DO UPDATE SET sha256 = excluded.sha256"""


class _Table(NamedTuple):
    name: LiteralString
    columns: dict[LiteralString, LiteralString]


_TASK = _Table(
    "task",
    {
        "id": "int8",
        "seq": "int8",
        "name": "text",
        "version": "text",
        "sha256": "text",
        "card": "text",
        "content_hash": "text",
        "source": "text",
        "base_model": "text",
        "tags": "text[]",
        "status": "text",
    },
)
_VECTOR = _Table(
    "vector",
    {"task_id": "int8", "seq": "int8", "count": "int4", "described": "int4", "data": "bytea", "crc": "int8"},
)
_UNHEARD = _Table("unheard", {"task_id": "int8", "name": "text"})
_EXAMPLE = _Table("example", {"task_id": "int8", "data": "bytea", "crc": "int8"})


class Commit:
    """A commit under way. Its number is taken at its start, which keeps other writers waiting until its end.

    So numbers grow in the order in which commits become visible: a reader that has seen one never finds a smaller one
    later. A sequence would not do, as a smaller number of it may be committed after a larger one.

    Args:
        connection: A connection inside a transaction.
        shown: The catalogue's URL without a password.

    Raises:
        IntegrityError: If a newer version of this package has changed the tables meanwhile.
    """

    def __init__(self, connection: Connection, shown: str) -> None:
        number, self._last, self._encoder, self._dimension, found = one(connection, _BEGIN)
        self.seq = int(number)
        refuse_newer(int(found), shown)
        self._connection, self._shown = connection, shown

    def bind(self, encoder: str) -> None:
        """Bind the catalogue to an encoder and drop the vectors of another.

        Args:
            encoder: The encoder's fingerprint.
        """
        if encoder == self._encoder:
            return
        self._connection.execute("UPDATE catalog SET encoder = %s, dimension = NULL, bound = seq", (encoder,))
        if self._encoder is not None:
            # TRUNCATE would be faster, and readers in a snapshot of their own would suddenly see nothing.
            self._connection.execute("DELETE FROM vector")
            self._connection.execute("DELETE FROM example")
            self._connection.execute("INSERT INTO unheard SELECT id, name FROM task ON CONFLICT DO NOTHING")
        self._encoder, self._dimension = encoder, None

    def use(self, encoder: str, vectors: Sequence[TaskVectors]) -> None:
        """Make sure that vectors of an encoder may be stored; binds the catalogue if it is bound to none.

        Args:
            encoder: The encoder's fingerprint.
            vectors: Checked vectors, which may be none.

        Raises:
            InputError: If the catalogue is bound to another encoder, or the vectors' width is not that of the others.
        """
        check_encoder(self._shown, self._encoder, encoder)
        if self._encoder is None:
            self.bind(encoder)
        if self._dimension is None and vectors:
            width = vectors[0].total.shape[0]
            self._connection.execute("UPDATE catalog SET dimension = %s", (width,))
        elif vectors and vectors[0].total.shape[0] != self._dimension:
            check_vectors(vectors, self._dimension)

    def put(self, records: Sequence[TaskRecord], packed: Mapping[str, Packed]) -> None:
        """Write rows, replacing rows of the same names, and vectors for some of them.

        Vectors of a row whose content is another one now go.

        Args:
            records: Checked rows.
            packed: Vectors by the task's name.
        """
        old = self._contents([record.name for record in records])
        fresh = count(self._last + 1)
        rows = [(old[each.name][0] if each.name in old else next(fresh), each) for each in records]
        stale = {each.name for _, each in rows if each.name in old and each.content_hash != old[each.name][1]}
        lost, kept = stale | (packed.keys() & old.keys()), packed.keys() | (old.keys() - stale)
        self._forget([number for number, each in rows if each.name in lost])
        self._delete("task", "id", [number for number, _ in old.values()])
        self._load(_TASK, [_row(number, self.seq, record) for number, record in rows])
        self._remember([(number, each.version, each.sha256) for number, each in rows if each.version is not None])
        self._load(_UNHEARD, [(number, each.name) for number, each in rows if each.name not in kept])
        self._store([(number, packed[each.name]) for number, each in rows if each.name in packed])
        self._connection.execute("UPDATE catalog SET last_id = %s", (next(fresh) - 1,))

    def hear(self, vectors: Sequence[TaskVectors], packed: Sequence[Packed]) -> None:
        """Store vectors of the tasks whose content is still the one that was encoded.

        Args:
            vectors: n checked vectors.
            packed: The same as they are stored.
        """
        now = self._contents([item.name for item in vectors])
        current = [
            (now[item.name][0], each)
            for item, each in zip(vectors, packed, strict=True)
            if item.name in now and item.content_hash == now[item.name][1]
        ]
        self._forget([number for number, _ in current])
        self._store(current)

    def mark(self, names: Collection[str], status: str) -> None:
        """Give tasks a status.

        Args:
            names: Names of tasks that are there.
            status: `active` or `retired`.

        Raises:
            TaskNotFoundError: If one is not there.
        """
        numbers = list(known(self._connection, names).values())
        sql: LiteralString = "UPDATE task SET status = %s, seq = %s WHERE id = ANY(%s::bigint[])"
        self._connection.execute(sql, (status, self.seq, numbers))

    def delete(self, names: Collection[str]) -> None:
        """Delete rows and all that belongs to them, leaving tombstones.

        Args:
            names: Names of tasks that are there.

        Raises:
            TaskNotFoundError: If one is not there.
        """
        found = known(self._connection, names)
        numbers = list(found.values())
        self._forget(numbers)
        self._delete("version", "task_id", numbers)
        self._delete("task", "id", numbers)
        sql: LiteralString = "INSERT INTO tombstone SELECT *, %s FROM unnest(%s::bigint[], %s::text[])"
        self._connection.execute(sql, (self.seq, numbers, list(found)))

    def grown(self, size: int) -> bool:
        """Whether the tables have doubled since the server last counted them, counting this commit in.

        Args:
            size: Number of rows written.
        """
        sql: LiteralString = """UPDATE catalog SET bulk = bulk + %(size)s,
            analysed = CASE WHEN bulk + %(size)s > 2 * analysed + 1000 THEN bulk + %(size)s ELSE analysed END
            RETURNING analysed = bulk"""
        return bool(one(self._connection, sql, {"size": size})[0])

    def _contents(self, names: list[str]) -> dict[str, tuple[int, str]]:
        sql: LiteralString = """SELECT name, id, content_hash FROM unnest(%s::text[]) AS wanted (name)
            JOIN task USING (name)"""
        return {name: (number, content) for name, number, content in self._connection.execute(sql, (names,))}

    def _remember(self, adapters: Sequence[tuple[int, str | None, str | None]]) -> None:
        if adapters:
            self._connection.execute(_VERSIONS, (self.seq, *map(list, zip(*adapters, strict=True))))

    def _store(self, vectors: Sequence[tuple[int, Packed]]) -> None:
        self._load(_VECTOR, [(key, self.seq, each.count, each.described, each.data, each.crc) for key, each in vectors])
        examples = [(key, each.examples) for key, each in vectors if each.examples is not None]
        self._load(_EXAMPLE, [(key, data, crc32(data)) for key, data in examples])

    def _forget(self, numbers: list[int]) -> None:
        for table in ("vector", "example", "unheard"):
            self._delete(table, "task_id", numbers)

    def _delete(self, table: str, column: str, numbers: list[int]) -> None:
        if numbers:
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ANY(%s::bigint[])", (numbers,))

    def _load(self, table: _Table, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return
        columns = ", ".join(table.columns)
        with self._connection.cursor() as cursor:
            if len(rows) < MANY:
                marks = ", ".join("%b" if kind == "bytea" else "%s" for kind in table.columns.values())
                cursor.executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", rows)
                return
            with cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(list(table.columns.values()))
                for row in rows:
                    copy.write_row(row)


def _row(number: int, seq: int, record: TaskRecord) -> tuple[object, ...]:
    texts = (record.name, record.version, record.sha256, record.card, record.content_hash, record.source)
    return (number, seq, *texts, record.base_model, list(record.tags), record.status)
