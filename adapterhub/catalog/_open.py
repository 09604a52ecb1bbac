"""A catalogue by its URL."""

from __future__ import annotations

from adapterhub.catalog._records import Catalog
from adapterhub.catalog._sqlite import SqliteCatalog
from adapterhub.errors import InputError, MissingExtraError

__all__ = ["open_catalog"]

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")


def open_catalog(url: str) -> Catalog:
    """The catalogue behind a URL.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://…`.

    Raises:
        InputError: If it is none of these.
        MissingExtraError: If PostgreSQL's client is not installed.
    """
    if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
        return SqliteCatalog(url[len(_SQLITE) :])
    if url.startswith(_POSTGRES):
        try:
            from adapterhub.catalog._postgres import PostgresCatalog
        except ModuleNotFoundError as error:
            raise MissingExtraError("PostgresCatalog", "postgres") from error
        return PostgresCatalog(url)
    shown = url.partition("://")[0] + "://…" if "@" in url else url  # without a password
    raise InputError(
        "A catalogue is `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/database`. "
        f"Found {shown!r}. Write it like one of these."
    )
