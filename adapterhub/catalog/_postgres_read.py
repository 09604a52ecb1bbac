"""Questions to a PostgreSQL catalogue about its tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, LiteralString

import numpy as np

from adapterhub.catalog._postgres_pool import Connection
from adapterhub.catalog._records import Changes, Ids, Scope, TaskRecord, TaskVersion
from adapterhub.errors import InputError, IntegrityError, TaskNotFoundError, did_you_mean

__all__ = [
    "COLUMNS",
    "PACKED",
    "ROUTABLE",
    "changes",
    "children",
    "count",
    "get",
    "ids",
    "known",
    "names",
    "names_of",
    "one",
    "pipelined",
    "record",
    "records",
    "snapshot",
    "state",
    "unpacked",
    "versions",
]

COLUMNS: LiteralString = "name, version, sha256, card, content_hash, source, base_model, tags, seq, status, id"
# A subtree is a range of names: `0` follows `/`. The first bounds are the index's, the last keeps `a-b` out of `a`.
_UNDER: LiteralString = (
    "name >= %(under)s AND name < %(under)s || '0' AND (name = %(under)s OR name >= %(under)s || '/')"
)
ROUTABLE: LiteralString = "status = 'active' AND version IS NOT NULL"
# Many numbers as one value: a million of them arrive in a tenth of the time that a million rows take.
PACKED: LiteralString = "coalesce(string_agg(int8send(id), ''::bytea ORDER BY id), ''::bytea)"


def pipelined(connection: Connection, few: bool = True) -> AbstractContextManager[object]:
    """Statements are sent without waiting for the answers of those before, while nobody reads them.

    Args:
        connection: A connection.
        few: Whether to do so; COPY and cursors of the server cannot.
    """
    return connection.pipeline() if few else nullcontext()


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """One state of the tables for several questions.

    Args:
        connection: A connection outside a transaction.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def state(connection: Connection) -> tuple[int, str | None]:
    """The newest commit's number, and the encoder that the catalogue is bound to.

    Args:
        connection: A connection.
    """
    number, encoder = one(connection, "SELECT seq, encoder FROM catalog")
    return int(number), encoder


def get(connection: Connection, name: str) -> TaskRecord | None:
    """One row, active or retired, or None.

    Args:
        connection: A connection.
        name: The task's name.
    """
    rows = connection.execute(f"SELECT {COLUMNS} FROM task WHERE name = %s", (name,)).fetchall()
    return record(rows[0]) if rows else None


def count(connection: Connection, under: str) -> int:
    """Number of the active tasks at and below a branch.

    Args:
        connection: A connection.
        under: The branch; empty for the whole tree.
    """
    return int(one(connection, f"SELECT count(*) FROM task WHERE {_active(under)}", {"under": under})[0])


def names(connection: Connection, under: str, after: str, limit: int | None) -> list[str]:
    """Sorted names of the active tasks at and below a branch.

    Args:
        connection: A connection.
        under: The branch; empty for the whole tree.
        after: Only names behind this one.
        limit: At most so many; None for all.
    """
    return [str(name) for (name,) in _listed(connection, "name", under, after, limit)]


def records(
    connection: Connection, under: str, after: str, limit: int | None, *, retired: bool = False
) -> list[TaskRecord]:
    """The same as rows.

    Args:
        connection: A connection.
        under: The branch; empty for the whole tree.
        after: Only names behind this one.
        limit: At most so many; None for all.
        retired: The retired tasks instead of the active ones.
    """
    return [record(row) for row in _listed(connection, COLUMNS, under, after, limit, retired=retired)]


def children(connection: Connection, under: str) -> list[tuple[str, int]]:
    """The next level below a branch, each with its number of active tasks at and below it.

    Args:
        connection: A connection.
        under: The branch; empty for the root.
    """
    start = f"{under}/" if under else ""
    below: LiteralString = "AND name >= %(start)s AND name < %(under)s || '0'" if under else ""
    sql: LiteralString = f"""SELECT split_part(substr(name, %(skip)s), '/', 1) AS part, count(*) FROM task
        WHERE status = 'active' {below} GROUP BY part ORDER BY part"""
    rows = connection.execute(sql, {"start": start, "under": under, "skip": len(start) + 1})
    return [(start + str(part), int(number)) for part, number in rows]


def ids(connection: Connection, scope: Scope) -> Ids:
    """Numbers of the tasks of a scope, ascending.

    Args:
        connection: A connection.
        scope: Which tasks.
    """
    where = _active(scope.under)
    if scope.tags:
        where += " AND tags @> %(tags)s::text[]"
    if scope.base_model is not None:
        where += " AND base_model = %(base)s"
    if scope.routable:
        where += " AND version IS NOT NULL"
    values = {"under": scope.under, "tags": list(scope.tags), "base": scope.base_model}
    return unpacked(one(connection, f"SELECT {PACKED} FROM task WHERE {where}", values)[0])


def names_of(connection: Connection, wanted: Ids) -> list[str]:
    """The name of each number, in the order given.

    Args:
        connection: A connection.
        wanted: (n,) int64.

    Raises:
        InputError: If there is no task of a number.
    """
    numbers = [int(number) for number in wanted]
    rows = connection.execute("SELECT id, name FROM task WHERE id = ANY(%s::bigint[])", (numbers,))
    found = {int(number): str(name) for number, name in rows}
    lacking = sorted(set(numbers) - found.keys())
    if lacking:
        raise InputError(f"Numbers of tasks should be the catalogue's. Found {lacking[:5]}. Ask `ids` for them.")
    return [found[number] for number in numbers]


def versions(connection: Connection, name: str) -> list[TaskVersion]:
    """Every adapter the task has had, oldest first.

    Args:
        connection: A connection.
        name: The task's name.
    """
    sql: LiteralString = """SELECT version.version, version.sha256, version.seq FROM version JOIN task ON id = task_id
        WHERE name = %s ORDER BY version.seq, version.version"""
    return [TaskVersion(*row) for row in connection.execute(sql, (name,))]


def changes(connection: Connection, since: int) -> Changes:
    """Rows and tombstones of all commits after a given one.

    Args:
        connection: A connection outside a transaction.
        since: Number of a commit; 0 for everything.
    """
    gone: LiteralString = """SELECT name FROM tombstone WHERE seq > %s AND NOT EXISTS
        (SELECT 1 FROM task WHERE task.name = tombstone.name) GROUP BY name ORDER BY max(seq), name"""
    with pipelined(connection), snapshot(connection):
        newest = connection.execute("SELECT seq FROM catalog")
        rows = connection.execute(f"SELECT {COLUMNS} FROM task WHERE seq > %s ORDER BY seq, name", (since,))
        names = connection.execute(gone, (since,))
        deleted = tuple(str(name) for (name,) in names)
        return Changes(int(newest.fetchall()[0][0]), tuple(record(row) for row in rows), deleted)


def known(connection: Connection, wanted: Collection[str]) -> dict[str, int]:
    """The number of each name.

    Args:
        connection: A connection.
        wanted: Names of tasks, active or retired.

    Raises:
        TaskNotFoundError: If one is not there; the message lists up to five of them.
    """
    rows = connection.execute(
        "SELECT name, id FROM unnest(%s::text[]) AS wanted (name) JOIN task USING (name)", (list(set(wanted)),)
    )
    found = {str(name): int(number) for name, number in rows}
    lacking = [name for name in wanted if name not in found]
    if lacking:
        shown = ", ".join(repr(name) for name in lacking[:5])
        raise TaskNotFoundError(
            f"No task {shown} in the catalogue.{did_you_mean(lacking[0], _near(connection, lacking[0]))}"
        )
    return found


def record(row: tuple[Any, ...]) -> TaskRecord:
    """A row of the table as a record.

    Args:
        row: The columns in the record's order.
    """
    name, version, sha256, card, content_hash, source, base_model, tags, seq, status, number = row
    return TaskRecord(name, version, sha256, card, content_hash, source, base_model, tuple(tags), seq, status, number)


def unpacked(value: bytes) -> Ids:
    """Numbers that were read as `PACKED`.

    Args:
        value: Eight bytes a number, the highest first.
    """
    return np.frombuffer(value, dtype=">i8").astype(np.int64)


def _near(connection: Connection, name: str) -> list[str]:
    # A name is mistyped within its branch, or in its first part; all names could be a million.
    sql: LiteralString = "SELECT name FROM task WHERE name >= %s AND name < %s || '~' ORDER BY name LIMIT 1000"
    starts = (name.rpartition("/")[0], name[:1])
    return [str(near) for start in starts for (near,) in connection.execute(sql, (start, start))]


def _active(under: str, *, retired: bool = False) -> str:
    which = "status = 'retired'" if retired else "status = 'active'"
    return f"{which} AND {_UNDER}" if under else which


def _listed(
    connection: Connection,
    columns: LiteralString,
    under: str,
    after: str,
    limit: int | None,
    *,
    retired: bool = False,
) -> list[tuple[Any, ...]]:
    behind = "AND name > %(after)s" if after else ""
    where = f"{_active(under, retired=retired)} {behind}"
    sql = f"SELECT {columns} FROM task WHERE {where} ORDER BY name LIMIT %(limit)s::bigint"
    return connection.execute(sql, {"under": under, "after": after, "limit": limit}).fetchall()


def one(connection: Connection, sql: str, values: Mapping[str, object] | None = None) -> tuple[Any, ...]:
    """The answer to a question that has one row.

    Args:
        connection: A connection.
        sql: The question.
        values: Its parameters.
    """
    row = connection.execute(sql, values, binary=True).fetchone()
    if row is None:
        raise IntegrityError(
            "The table `catalog` should have one row. Found none. Restore the catalogue from a backup."
        )
    return row
