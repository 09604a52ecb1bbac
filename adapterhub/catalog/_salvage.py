"""What can still be read of a damaged SQLite file, copied into a new one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

from adapterhub.catalog._connections import BESIDE, Connections
from adapterhub.catalog._packed import DamagedRowError
from adapterhub.catalog._pages import rows_of
from adapterhub.catalog._read import crc_of, record_of
from adapterhub.catalog._rules import LAST, NEWEST, TAGS
from adapterhub.catalog._schema import FORMAT, TABLES, create, set_journal
from adapterhub.durable import sync_folder
from adapterhub.errors import IntegrityError

__all__ = ["salvage"]

_MARGIN = 1_000_000
_COLUMNS, _HEARD = 13, 5  # of the table of tasks
_FURTHEST = 1 << 48
_MAGIC = b"SQLite format 3\0"


def salvage(connections: Connections) -> list[str]:
    """Put a new file in the place of a damaged one, with every row that can be read.

    The damaged file is kept beside it.

    Args:
        connections: To the file.

    Returns:
        What could not be kept.

    Raises:
        IntegrityError: If nothing in the file shows that it ever was a catalogue. It stays as it is.
    """
    path = connections.path
    names = (_beside(path, f".damaged{number or ''}") for number in count())
    kept, new = next(name for name in names if not name.exists()), _beside(path, ".repaired")
    with connections.alone():
        _remove(new)
        try:
            report = _copied(path, new)
        except BaseException:
            _remove(new)
            raise
        for suffix in BESIDE:
            with suppress(FileNotFoundError):
                _beside(path, suffix).replace(_beside(kept, suffix))
        path.replace(kept)
        new.replace(path)
        sync_folder(path.parent)
    return [f"The file was damaged. A new one was made of what could be read; the damaged one is {kept}.", *report]


def _copied(path: Path, new: Path) -> list[str]:
    report: list[str] = []
    work = _beside(path, ".work")
    _remove(work)
    try:
        for suffix in ("", "-wal", "-journal"):  # a copy is read, so that nothing is written to the damaged file
            with suppress(FileNotFoundError):
                shutil.copyfile(_beside(path, suffix), _beside(work, suffix))
        with closing(sqlite3.connect(new, isolation_level=None)) as target:
            set_journal(target, "DELETE")
            create(target)
            if not _readable(work):
                _replace_first_page(work, new)
                report.append("Its first page was damaged and was written anew.")
            with closing(sqlite3.connect(work, isolation_level=None)) as source:
                source.text_factory = lambda raw: raw.decode("utf-8", "replace")
                gaps = _copy(source, target)
                if any("`task`" in gap for gap in gaps):
                    gaps += _found_on_pages(work, target)
                report += [*gaps, *_lost(source, target)]
            _check_found(path, target)
            target.execute(f"INSERT INTO tag {TAGS}")
    finally:
        _remove(work)
    return report


def _check_found(path: Path, target: sqlite3.Connection) -> None:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            return
    if target.execute("SELECT 1 FROM task LIMIT 1").fetchone() is None:
        raise IntegrityError(
            f"A catalogue is an SQLite file. {path} does not begin like one, and no task was found in it. "
            "It was left as it is; put a backup in its place, or name another file"
        )


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> list[str]:
    report = []
    for table, key in TABLES.items():
        target.execute("BEGIN")
        if table == "meta":
            target.execute("DELETE FROM meta")
        gaps = 0
        for row in _rows(source, table, key):
            if row is None:
                gaps += 1
                continue
            with suppress(sqlite3.IntegrityError):  # a name or number that is there already, or a value of no sense
                target.execute(f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(row))})", row)
        target.execute("INSERT OR IGNORE INTO meta (one, seq, last, bound) VALUES (1, 0, 0, 0)")
        target.execute("COMMIT")
        if gaps:
            report.append(f"Table `{table}` could not be read in {gaps} places.")
    _copy_names(source, target)
    if target.execute("SELECT seq FROM meta").fetchone()[0] == 0:
        report.append(_begin_anew(target))
    return report


def _copy_names(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # of the base models, which their index knows as well
        for row in source.execute("SELECT id, name, crc FROM base_model INDEXED BY base_name ORDER BY name"):
            if row[2] == crc_of(row[1]):
                target.execute("INSERT OR REPLACE INTO base_model VALUES (?, ?, ?)", row)


def _begin_anew(target: sqlite3.Connection) -> str:
    # Indexes elsewhere may have seen numbers that are lost here, and must not take later ones for those.
    last = target.execute(f"SELECT coalesce(({LAST}), 0)").fetchone()[0] + _MARGIN
    seq = target.execute(f"SELECT coalesce(({NEWEST}), 0)").fetchone()[0] + _MARGIN
    target.execute("UPDATE meta SET seq = ?, last = ?, bound = ?", (seq, last, seq))
    target.execute("UPDATE meta SET (encoder, dimension) = (SELECT encoder, dimension FROM binding)")
    return f"The counters were lost. They begin anew behind {seq} and {last}."


def _rows(source: sqlite3.Connection, table: str, key: str) -> Iterator[Any]:
    """Every row that can be read in the order of its key; None for each place that cannot."""
    low = 0
    while True:
        try:
            for row in source.execute(f"SELECT * FROM {table} WHERE {key} >= ? ORDER BY {key}", (low,)):
                low = row[0] + 1 if isinstance(row[0], int) else low + 1
                yield row
        except sqlite3.Error:
            row = _single(source, table, f"{key} >= ? ORDER BY {key}", low)  # the error came with the row before it
        else:
            return
        if isinstance(row, tuple):
            low = row[0] + 1 if isinstance(row[0], int) else low + 1
            yield row
            continue
        yield None
        high = _next_readable(source, table, key, low)
        yield from reversed(list(_down_to(source, table, key, low, high)))
        if high > _FURTHEST:
            return
        low = high


def _single(source: sqlite3.Connection, table: str, where: str, *values: int) -> Any:
    """The first row, None if there is none, False if it cannot be read."""
    try:
        return source.execute(f"SELECT * FROM {table} WHERE {where} LIMIT 1", values).fetchone()
    except sqlite3.Error:
        return False


def _next_readable(source: sqlite3.Connection, table: str, key: str, low: int) -> int:
    step = 1
    while low + step <= _FURTHEST:
        if _single(source, table, f"{key} >= ? ORDER BY {key}", low + step) is not False:
            return low + step
        step *= 2
    return _FURTHEST + 1


def _down_to(source: sqlite3.Connection, table: str, key: str, low: int, high: int) -> Iterator[Any]:
    where = f"{key} >= ? AND {key} < ? ORDER BY {key} DESC"
    while row := _single(source, table, where, low, high):
        high = row[0]
        yield row


def _lost(source: sqlite3.Connection, target: sqlite3.Connection) -> list[str]:
    found = []
    with suppress(sqlite3.Error):  # the index of the names may still know rows whose page is gone
        for key, name in source.execute("SELECT id, name FROM task INDEXED BY task_name ORDER BY name"):
            if target.execute("SELECT 1 FROM task WHERE id = ?", (key,)).fetchone() is None:
                found.append(f"Task {name!r} (number {key}) is lost. Register it again.")
    return found


def _found_on_pages(work: Path, target: sqlite3.Connection) -> list[str]:
    """Put in tasks whose pages nothing points to any more; their checksums tell them from what is no task."""
    deleted = {key for (key,) in target.execute("SELECT id FROM tombstone")}
    bases = dict(target.execute("SELECT id, name FROM base_model"))
    page, found = int(target.execute("PRAGMA page_size").fetchone()[0]), set()
    target.execute("BEGIN")
    for row in rows_of(work, page, _COLUMNS):
        key, name, state, base, seq, _, version, sha256, content, tags, source, card, crc = row
        values = (name, version, sha256, card, content, source, base, bases.get(base), tags, seq, state, key, crc)
        if key in deleted or not _is_task(values):
            continue
        there = target.execute("SELECT id, seq FROM task WHERE id = ? OR name = ?", (key, name)).fetchall()
        if all(other == key and known < seq for other, known in there):  # of a row written again the newest
            row[_HEARD] = 0  # its vectors may be of another content
            target.execute(f"INSERT OR REPLACE INTO task VALUES ({','.join('?' * _COLUMNS)})", row)
            target.execute("DELETE FROM vector WHERE id = ?", (key,))
            found.add(key)
    target.execute("COMMIT")
    if not found:
        return []
    return [f"{len(found)} tasks were found on pages that nothing pointed to; their vectors are encoded again."]


def _is_task(values: Sequence[Any]) -> bool:
    try:
        record_of(values)
    except (DamagedRowError, TypeError, ValueError):
        return False
    return True


def _readable(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                return False
            return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]) > len(TABLES)
    except sqlite3.DatabaseError:
        return False


def _replace_first_page(path: Path, template: Path) -> None:
    # The tables of every catalogue are made at once, in one order, so they begin at the same pages in all files.
    with template.open("rb") as file:
        page = int.from_bytes(file.read(18)[16:18], "big")
        file.seek(0)
        first = bytearray(file.read(page))
    pages = path.stat().st_size // page
    first[28:32] = pages.to_bytes(4, "big")
    first[32:40] = bytes(8)  # no free pages: lists of them may be in the page that is gone
    with path.open("r+b") as file:
        file.write(first)


def _remove(path: Path) -> None:
    for suffix in ("", *BESIDE):
        _beside(path, suffix).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
