"""What is told of a SQLite file that cannot be used: the fault, and the remedy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from adapterhub.catalog._packed import DamagedRowError
from adapterhub.catalog._schema import WrongFormatError
from adapterhub.errors import IntegrityError

__all__ = ["fault_of", "is_broken"]

_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_broken(error: BaseException | None) -> bool:
    """Whether an error of SQLite says that the file itself is damaged.

    Args:
        error: The error.
    """
    if isinstance(error, DamagedRowError):
        return True
    return isinstance(error, sqlite3.Error) and (_code(error) in _BROKEN or "decode to UTF-8" in str(error))


def fault_of(error: Exception, path: Path, timeout: float, remedy: Callable[[], str]) -> IntegrityError:
    """The error to raise.

    Args:
        error: What happened.
        path: The file.
        timeout: Longest wait for a lock in seconds.
        remedy: What to do about a damaged file.
    """
    return IntegrityError(f"The catalogue {path} {_text(error, timeout, remedy)}")


def _text(error: Exception, timeout: float, remedy: Callable[[], str]) -> str:
    if isinstance(error, DamagedRowError):
        return f"is damaged: {error.where} is not as it was written. {remedy()}"
    if is_broken(error):
        return f"is damaged: {error}. {remedy()}"
    if isinstance(error, WrongFormatError):
        remedies = "Give another path, or export it with the version that wrote it and import it again."
        return f"cannot be read: {error}. {remedies}"
    if isinstance(error, sqlite3.Error):
        return _refusal(error, timeout, remedy)
    if isinstance(error, TimeoutError):
        return f"is locked: another process has been writing for {timeout:g} s. Wait for it to end, or end it."
    return f"cannot be used: {getattr(error, 'strerror', None) or error}. Check the folder."


def _refusal(error: sqlite3.Error, timeout: float, remedy: Callable[[], str]) -> str:
    code = _code(error)
    if code == sqlite3.SQLITE_ERROR:  # no statement of ours is wrong in itself
        return f"does not have the tables of its format: {error}. {remedy()}"
    if code in _BUSY:
        return f"is locked: another process has been using it for {timeout:g} s. Wait for it to end, or end it."
    if code == sqlite3.SQLITE_FULL:
        return "cannot grow: the disk is full. Nothing was written. Free space, and try again."
    if code == sqlite3.SQLITE_READONLY:
        return f"cannot be written to: {error}. Check the rights of the file and its folder."
    return f"cannot be used: {error}. Check the folder and the disk."


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the rest says more about the same fault
