"""Errors of psycopg and libpq as errors of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from adapterhub.errors import AdapterHubError, InputError, IntegrityError

__all__ = ["cannot_connect", "told"]

_GONE = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.IdleInTransactionSessionTimeout)
_DAMAGED = (errors.DataCorrupted, errors.IndexCorrupted)
_FOREIGN = (errors.UndefinedTable, errors.UndefinedColumn, errors.DuplicateTable, errors.InvalidSchemaName)


@contextmanager
def told(shown: str) -> Iterator[None]:
    """Raise psycopg's errors as errors of this package.

    Args:
        shown: The catalogue's URL without a password.

    Raises:
        InputError: If a value cannot be stored.
        IntegrityError: If the server cannot or may not do what was asked.
    """
    try:
        yield
    except (psycopg.DataError, UnicodeEncodeError) as error:
        text = f"The catalogue {shown} cannot store a value: {_line(error)}. Use plain Unicode text without NUL."
        raise InputError(text) from error
    except psycopg.Error as error:
        raise _fault(shown, error) from error


def cannot_connect(shown: str, error: psycopg.Error) -> IntegrityError:
    """The error of a server that does not let us in.

    Args:
        shown: The catalogue's URL without a password.
        error: What libpq said; it names no password.
    """
    return IntegrityError(
        f"The catalogue {shown} cannot be reached: {_line(error)}. "
        "Check that the server runs, and the host, database, user and password of the URL."
    )


def _fault(shown: str, error: psycopg.Error) -> AdapterHubError:
    line = _line(error)
    if isinstance(error, errors.InsufficientPrivilege | errors.ReadOnlySqlTransaction):
        text = f"The catalogue {shown} refuses it: {line}. Use a user who may do it, and the primary server to write."
    elif isinstance(error, errors.LockNotAvailable):
        text = f"The catalogue {shown} is being written by another process for a minute. Wait for it, then try again."
    elif isinstance(error, errors.DiskFull):
        text = f"The disk of the catalogue {shown} is full: {line}. Nothing was stored. Make room, then try again."
    elif isinstance(error, _DAMAGED):
        text = f"The catalogue {shown} is damaged: {line}. Restore it from a backup."
    elif isinstance(error, _FOREIGN):
        text = (
            f"The catalogue {shown} does not have its own tables, as it should: {line}. Open it again if they were "
            "dropped, or give it a schema of its own with `?schema=name`."
        )
    elif isinstance(error, _GONE) or (error.sqlstate is None and isinstance(error, psycopg.OperationalError)):
        text = (
            f"The server of the catalogue {shown} went away: {line}. A commit that was under way is there as a whole "
            "or not at all. Call again."
        )
    else:
        text = f"The catalogue {shown} cannot be used: {line}. Check the server's log."
    return IntegrityError(text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
