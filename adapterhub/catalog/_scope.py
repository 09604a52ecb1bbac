"""Which tasks: branches of the tree, tags and base models, answered from indexes alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from adapterhub.catalog._read import chunks
from adapterhub.catalog._records import Ids, Scope
from adapterhub.errors import InputError

__all__ = ["children", "count", "hidden", "names", "names_of", "ranges", "scope_ids"]

_FEW = 20_000
_CHUNK = 500


@dataclass(frozen=True)
class _Having:
    """One property of a scope.

    Args:
        where: The property in SQL.
        listed: The table, and the index that knows all tasks that have it.
        table: The table in which one task is looked up.
        values: Parameters of `where`, with those of the state; having any of them will do.
        state: Whether the index knows the state.
    """

    where: str
    listed: str
    table: str
    values: Sequence[tuple[object, ...]]
    state: bool = True

    def size(self, connection: sqlite3.Connection) -> int:
        """How many there are, counted up to a limit."""
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {self.listed} WHERE {self._where} LIMIT {_FEW + 1})"
        return sum(int(connection.execute(sql, each).fetchone()[0]) for each in self.values)

    def all(self, connection: sqlite3.Connection) -> Ids:
        """All that have it, ascending."""
        return _union(connection, f"SELECT id FROM {self.listed} WHERE {self._where}", self.values)

    def among(self, connection: sqlite3.Connection, ids: Ids) -> Ids:
        """Those of some that have it, ascending."""
        found = []
        for part in chunks(ids.tolist(), _CHUNK):
            sql = f"SELECT id FROM {self.table} WHERE {self._where} AND id IN ({','.join('?' * len(part))})"
            found.append(_union(connection, sql, [(*each, *part) for each in self.values]))
        return np.sort(np.concatenate(found)) if found else ids

    @property
    def _where(self) -> str:
        return f"{self.where} AND state = ?" if self.state else self.where


def ranges(under: str, after: str = "") -> list[tuple[str, str]]:
    """A branch and what is below it as half-open ranges of names, in order.

    Args:
        under: The branch; empty for the whole tree.
        after: Only names behind this one.
    """
    # `0` follows `/`, and a space comes before all letters of a name. LIKE could not use the index.
    whole = [(under, under + " "), (under + "/", under + "0")] if under else [("", "~")]
    start = after + " " if after else ""
    return [(max(low, start), high) for low, high in whole if max(low, start) < high]


def count(connection: sqlite3.Connection, under: str) -> int:
    """Number of the active tasks at and below a branch.

    Args:
        connection: To the file, in a transaction.
        under: The branch; empty for the whole tree.
    """
    every = "SELECT count(*) FROM task INDEXED BY task_name WHERE name >= ? AND name < ?"
    retired = (
        "SELECT count(*) FROM task INDEXED BY task_hidden WHERE state > 0 AND state = 2 AND name >= ? AND name < ?"
    )
    return sum(
        int(connection.execute(every, bounds).fetchone()[0]) - int(connection.execute(retired, bounds).fetchone()[0])
        for bounds in ranges(under)
    )


def names(connection: sqlite3.Connection, under: str, after: str, limit: int | None) -> list[str]:
    """Sorted names of the active tasks at and below a branch.

    Args:
        connection: To the file, in a transaction.
        under: The branch; empty for the whole tree.
        after: Only names behind this one.
        limit: At most so many; None for all.
    """
    retired = "SELECT id FROM task INDEXED BY task_hidden WHERE state > 0 AND state = 2 AND name >= ?1 AND name < ?2"
    sql = f"""SELECT name FROM task INDEXED BY task_name WHERE name >= ?1 AND name < ?2 AND id NOT IN ({retired})
        ORDER BY name LIMIT ?3"""
    found: list[str] = []
    for bounds in ranges(under, after):
        left = -1 if limit is None else limit - len(found)
        found += [str(name) for (name,) in connection.execute(sql, (*bounds, left))]
    return found


def children(connection: sqlite3.Connection, under: str) -> list[tuple[str, int]]:
    """The next level below a branch, each name with its number of active tasks at and below it.

    Args:
        connection: To the file, in a transaction.
        under: The branch; empty for the whole tree.
    """
    start = f"{under}/" if under else ""
    low, high = ranges(under)[-1]
    found: set[str] = set()
    sql = "SELECT name FROM task INDEXED BY task_name WHERE name >= ? AND name < ? ORDER BY name LIMIT 1"
    while row := connection.execute(sql, (low, high)).fetchone():
        child = start + str(row[0])[len(start) :].partition("/")[0]
        found.add(child)
        low = child + " " if row[0] == child else child + "0"  # over all that is below it, in one step
    counted = [(child, count(connection, child)) for child in sorted(found)]
    return [(child, number) for child, number in counted if number]


def scope_ids(connection: sqlite3.Connection, scope: Scope) -> Ids:
    """Numbers of the tasks of a scope, ascending.

    Args:
        connection: To the file, in a transaction.
        scope: Which tasks.
    """
    states = (0,) if scope.routable else (0, 1)
    having = [_Having("tag = ?", "tag", "tag", [(word, state) for state in states]) for word in sorted(set(scope.tags))]
    if scope.base_model is not None:
        key = connection.execute("SELECT id FROM base_model WHERE name = ?", (scope.base_model,)).fetchone()
        if key is None and scope.base_model:
            return np.empty(0, dtype=np.int64)
        values = [(key and key[0], state) for state in states]
        having.append(_Having("base IS ?", "task INDEXED BY task_base", "task", values))
    if not having:
        return _branch(connection, scope)
    if scope.under:
        having.append(
            _Having("name >= ? AND name < ?", "task INDEXED BY task_name", "task", ranges(scope.under), False)
        )
    if len(having) == 1:
        return having[0].all(connection)
    having.sort(key=lambda one: one.size(connection))
    found = having[0].all(connection)
    for one in having[1:]:  # few are looked up one by one, many are listed and compared
        few = len(found) <= _FEW
        found = one.among(connection, found) if few else np.intersect1d(found, one.all(connection), assume_unique=True)
    return found


def hidden(connection: sqlite3.Connection) -> Ids:
    """Numbers of all tasks that cannot be routed to, ascending.

    Args:
        connection: To the file.
    """
    return _union(connection, "SELECT id FROM task INDEXED BY task_hidden WHERE state > 0", [()])


def names_of(connection: sqlite3.Connection, ids: Ids) -> list[str]:
    """The name of each number, in the order given.

    Args:
        connection: To the file.
        ids: Numbers of tasks, active or retired.

    Raises:
        InputError: If there is no task of a number.
    """
    wanted = [int(key) for key in ids]
    names: dict[int, str] = {}
    for part in chunks(dict.fromkeys(wanted), _CHUNK):
        marks = ",".join("?" * len(part))
        sql = f"SELECT id, name FROM task INDEXED BY task_label WHERE id IN ({marks})"
        names.update(connection.execute(sql, part))
    lacking = sorted(set(wanted) - names.keys())
    if lacking:
        raise InputError(f"Numbers of tasks should be the catalogue's. Found {lacking[:5]}. Ask `ids` for them.")
    return [names[key] for key in wanted]


def _branch(connection: sqlite3.Connection, scope: Scope) -> Ids:
    every = "SELECT id FROM task INDEXED BY task_name WHERE name >= ? AND name < ?"
    out = "SELECT id FROM task INDEXED BY task_hidden WHERE state > 0 AND state >= ? AND name >= ? AND name < ?"
    bounds = ranges(scope.under)
    without = _union(connection, out, [(1 if scope.routable else 2, *pair) for pair in bounds])
    return np.setdiff1d(_union(connection, every, bounds), without, assume_unique=True)


def _union(connection: sqlite3.Connection, sql: str, values: Iterable[Sequence[object]]) -> Ids:
    rows = chain.from_iterable(connection.execute(sql, each) for each in values)
    return np.sort(np.fromiter(chain.from_iterable(rows), dtype=np.int64))
