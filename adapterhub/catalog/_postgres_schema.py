"""The tables of a PostgreSQL catalogue: numbered migrations, applied at the first use."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import Connection, sql

from adapterhub.errors import IntegrityError

__all__ = ["FORMAT", "MIGRATIONS", "prepare", "refuse_newer"]

# Names sort by their bytes in every locale, so that a subtree is a range of them and the index can be used.
_TASKS = """
CREATE TABLE catalog (
    one boolean PRIMARY KEY DEFAULT true CHECK (one), format integer NOT NULL, seq bigint NOT NULL,
    last_id bigint NOT NULL, bulk bigint NOT NULL DEFAULT 0, analysed bigint NOT NULL DEFAULT 0,
    token uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO catalog (format, seq, last_id) VALUES (0, 0, 0);
CREATE TABLE task (
    id bigint PRIMARY KEY, name text COLLATE "C" NOT NULL UNIQUE, version text, sha256 text, card text NOT NULL,
    content_hash text NOT NULL, source text NOT NULL, base_model text NOT NULL, tags text[] NOT NULL,
    seq bigint NOT NULL, status text NOT NULL CHECK (status IN ('active', 'retired'))
);
CREATE INDEX task_seq ON task (seq);
CREATE INDEX task_active ON task (name) WHERE status = 'active';
CREATE INDEX task_base_model ON task (base_model, id);
CREATE INDEX task_tags ON task USING gin (tags);
CREATE TABLE version (
    task_id bigint NOT NULL, version text COLLATE "C" NOT NULL, sha256 text, seq bigint NOT NULL,
    PRIMARY KEY (task_id, version)
);
CREATE TABLE tombstone (id bigint PRIMARY KEY, name text COLLATE "C" NOT NULL, seq bigint NOT NULL);
CREATE INDEX tombstone_seq ON tombstone (seq);
"""
# `vector` stays narrow, as whoever makes rows reads all of it. Vectors do not compress, and up to 1,350 dimensions a
# row fits a page: EXTERNAL without the usual limit of 2 kB keeps it there, uncompressed. `unheard` holds the tasks
# without vectors: mostly none, and looking for them among a million others would take a second.
_VECTORS = """
ALTER TABLE catalog ADD COLUMN encoder text, ADD COLUMN dimension integer, ADD COLUMN bound bigint NOT NULL DEFAULT 0;
CREATE TABLE vector (
    task_id bigint PRIMARY KEY, seq bigint NOT NULL, count integer NOT NULL, described integer NOT NULL,
    data bytea NOT NULL, crc bigint NOT NULL
) WITH (toast_tuple_target = 8160);
ALTER TABLE vector ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX vector_seq ON vector (seq);
CREATE TABLE example (task_id bigint PRIMARY KEY, data bytea NOT NULL, crc bigint NOT NULL);
ALTER TABLE example ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE unheard (task_id bigint PRIMARY KEY, name text COLLATE "C" NOT NULL);
CREATE INDEX unheard_name ON unheard (name);
INSERT INTO unheard SELECT id, name FROM task;
"""
MIGRATIONS: tuple[LiteralString, ...] = (_TASKS, _VECTORS)
FORMAT = len(MIGRATIONS)
_OLDEST = 150_000


def prepare(connection: Connection[Any], shown: str, schema: str | None, *, migrate: bool = True) -> None:
    """Bring the tables to the newest format; where they have it, this is one question.

    Args:
        connection: A connection outside a transaction.
        shown: The catalogue's URL without a password.
        schema: The schema to make if it is not there; None for the current one.
        migrate: Whether older tables are changed; a replica's cannot be.

    Raises:
        IntegrityError: If the tables are newer than this version knows, or may not be changed.
    """
    _check_server(connection, shown)
    found = _format(connection)
    refuse_newer(found, shown)
    if found == FORMAT:
        return
    if not migrate:
        raise IntegrityError(f"The replica {shown} has format {found}, not {FORMAT} yet. Wait until it has caught up.")
    with connection.transaction():
        # Two processes that open an empty database at once: the second waits here, then finds the work done.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('adapterhub', 0))")
        if schema and connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone() == (None,):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        if connection.execute("SELECT current_schema()").fetchone() == (None,):
            raise IntegrityError(f"The search path of {shown} names no schema that is there. Add `?schema=name`.")
        found = _format(connection)
        refuse_newer(found, shown)
        for migration in MIGRATIONS[found:]:
            connection.execute(migration)
        connection.execute("UPDATE catalog SET format = %s", (FORMAT,))


def refuse_newer(found: int, shown: str) -> None:
    """Refuse tables of a later version of this package.

    Args:
        found: The format of the tables.
        shown: The catalogue's URL without a password.

    Raises:
        IntegrityError: If it is newer than `FORMAT`.
    """
    if found > FORMAT:
        text = f"The catalogue {shown} should have format {FORMAT} or older. Found {found}. Upgrade adapterhub."
        raise IntegrityError(text)


def _check_server(connection: Connection[Any], shown: str) -> None:
    version = connection.info.server_version
    if version < _OLDEST:
        raise IntegrityError(f"{shown} should be PostgreSQL 15 or newer. Found {version // 10000}. Upgrade the server.")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        text = f"The database {shown} should be encoded in UTF8. Found {encoding}. Create it with ENCODING 'UTF8'."
        raise IntegrityError(text)


def _format(connection: Connection[Any]) -> int:
    # Only the current schema counts: another one on the search path may hold another catalogue.
    row = connection.execute("SELECT to_regclass(quote_ident(current_schema()) || '.catalog')").fetchone()
    if row is None or row[0] is None:
        return 0
    found = connection.execute("SELECT format FROM catalog").fetchone()
    return 0 if found is None else int(found[0])
