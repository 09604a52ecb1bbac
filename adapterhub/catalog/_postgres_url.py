"""Where a PostgreSQL catalogue is: the server, the schema, and how both are shown without a password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from adapterhub.errors import InputError

__all__ = ["Address"]

_SCHEMES = ("postgresql://", "postgres://")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_HOST = re.compile(r"^(\w+://(?:[^@/]*@)?)[^/]*")
_OWN = ("schema", "replicas")
_SECRETS = ("password", "secret")
# A dead machine at either end is noticed within a minute; without these the counter's row could stay locked for hours.
_DEFAULTS = {
    "application_name": "adapterhub",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
_FORM = "Write it like `postgresql://user:password@host:5432/database?schema=name`, with `%40` for an `@` in a password"


@dataclass(frozen=True)
class Address:
    """One server and the schema in it.

    Args:
        conninfo: What libpq connects with; it may hold a password.
        schema: The schema that the tables are in; None for the first one of the server's search path.
        shown: The URL for messages, without a password.
        timeout: Seconds to wait for a connection: the URL's `connect_timeout`, 10 by default.
        replicas: URLs of the hosts that the URL names as `replicas`; they may hold a password.
    """

    conninfo: str = field(repr=False)
    schema: str | None
    shown: str
    timeout: float
    replicas: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str, schema: str | None = None) -> Address:
        """Read a URL.

        Args:
            url: `postgresql://…` as libpq reads it, and among its parameters `schema=name`, and `replicas=host:port,…`
                for the same database on other hosts.
            schema: The schema if the URL names none.

        Raises:
            InputError: If libpq does not understand it, or the schema's name is none.
        """
        if not url.startswith(_SCHEMES):
            scheme = url.partition("://")[0] if "://" in url else "no scheme"
            raise InputError(f"A PostgreSQL catalogue's URL begins with postgresql://. Found {scheme}. {_FORM}.")
        head, _, query = url.partition("?")
        pairs = [pair for pair in query.split("&") if pair]
        own = {key: unquote(value) for key, _, value in (pair.partition("=") for pair in pairs) if key in _OWN}
        tail = "&".join(pair for pair in pairs if pair.partition("=")[0] not in _OWN)
        schema = own.get("schema", schema)
        if schema is not None and not _SCHEMA.fullmatch(schema):
            raise InputError(f"A schema's name is lower-case letters, digits and `_`. Found {schema!r}. {_FORM}.")
        parameters = _parameters(f"{head}?{tail}")
        timeout = float(parameters["connect_timeout"]) or float(_DEFAULTS["connect_timeout"])
        hosts = [host for host in own.get("replicas", "").split(",") if host]
        start = _HOST.match(head)
        replicas = tuple(f"{start[1]}{host}{head[start.end() :]}?{tail}" for host in hosts) if start else ()
        return cls(make_conninfo("", **parameters), schema, _shown(head, pairs), timeout, replicas)


def _parameters(url: str) -> dict[str, str]:
    try:
        found = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # libpq's own words would show a part of the password.
        raise InputError(f"A PostgreSQL catalogue's URL cannot be read by libpq. {_FORM}.") from None
    parameters = _DEFAULTS | {key: str(value) for key, value in found.items() if value is not None}
    numbers = [*parameters.get("port", "").split(","), parameters["connect_timeout"]]
    if not all(number.isdecimal() for number in numbers if number):
        raise InputError(f"Port and `connect_timeout` of a PostgreSQL catalogue's URL are whole numbers. {_FORM}.")
    return parameters


def _shown(head: str, pairs: list[str]) -> str:
    # Up to the last `@`, as a password may hold one that should have been written `%40`.
    masked = re.sub(r"^(\w+://[^:/@]*):.*@", r"\1:***@", head)
    parts = []
    for pair in pairs:
        key = pair.partition("=")[0]
        secret = any(word in unquote(key).lower() for word in _SECRETS)
        parts.append(f"{key}=***" if secret else pair)
    return masked + ("?" + "&".join(parts) if parts else "")
