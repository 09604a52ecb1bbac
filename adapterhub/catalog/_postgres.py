"""The card index in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from adapterhub.catalog import _postgres_read as read
from adapterhub.catalog import _postgres_vectors as heard
from adapterhub.catalog._checks import check, check_vectors
from adapterhub.catalog._packed import pack
from adapterhub.catalog._postgres_pool import Server
from adapterhub.catalog._postgres_servers import Servers
from adapterhub.catalog._postgres_url import Address
from adapterhub.catalog._postgres_verify import verify
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
from adapterhub.errors import AdapterHubError, InputError

__all__ = ["PostgresCatalog"]


class PostgresCatalog:
    """A `Catalog` in one schema of a PostgreSQL database, 15 or newer; no extension is needed.

    The tables are made, and older ones brought up to date, at the first use. An object may be used by several threads,
    and after a fork. A connection that was lost is made anew by the next call.

    Args:
        url: `postgresql://user:password@host:port/database`, with libpq's parameters; `?schema=name` keeps several
            catalogues in one database apart, `connect_timeout` is the longest wait for a connection in seconds, and
            `replicas=host:port,…` names other hosts of the same database.
        replicas: URLs of more servers that follow the first one. A question that an older state may answer goes to a
            replica that has all that this process has seen or written, else to the first server.
        pool_size: Most connections to each server at once; an iterator of `blocks` holds one until its end.

    Raises:
        InputError: If a URL cannot be read.
    """

    def __init__(self, url: str, *, replicas: Sequence[str] = (), pool_size: int = 4) -> None:
        address = Address.of(url)
        urls = (*address.replicas, *replicas)
        others = [Server(Address.of(each, address.schema), pool_size, primary=False) for each in urls]
        self._servers = Servers(Server(address, pool_size), others)
        self._url = address.shown

    def __repr__(self) -> str:
        return f"PostgresCatalog({self._url!r})"

    @property
    def url(self) -> str:
        """Where the tables are, for messages; without a password."""
        return self._url

    @property
    def seq(self) -> int:
        """Number of the newest commit; 0 for an empty catalogue."""
        return self._servers.newest(read.state)[0]

    @property
    def encoder(self) -> str | None:
        """Fingerprint of the encoder that the catalogue is bound to, or None while it is bound to none."""
        return self._servers.newest(read.state)[1]

    def close(self) -> None:
        """Close all connections; the next call opens them again."""
        self._servers.close()

    def bind(self, encoder: str) -> int:
        """Bind the catalogue to an encoder, and drop the vectors of others.

        Args:
            encoder: The encoder's fingerprint.

        Returns:
            The commit's number.
        """
        with self._servers.writing() as commit:
            commit.bind(encoder)
        return commit.seq

    def put(self, records: Sequence[TaskRecord], *, encoder: str = "", vectors: Sequence[TaskVectors] = ()) -> int:
        """Write rows, replacing rows of the same names, and vectors of an encoder for some of them, in one commit.

        Args:
            records: The rows; their `seq` and `id` are set here.
            encoder: The encoder's fingerprint, if there are vectors.
            vectors: Vectors of some of the rows.

        Returns:
            The commit's number.

        Raises:
            InputError: If anything is wrong; the message lists every fault, and nothing is stored.
        """
        if vectors and not encoder:
            raise InputError("Vectors are stored under their encoder's fingerprint. Found none. Name it: `encoder=`.")
        check(records, vectors)
        packed = {item.name: each for item, each in zip(vectors, pack(vectors), strict=True)}
        with self._servers.writing(len(records)) as commit:
            if encoder:
                commit.use(encoder, vectors)
            commit.put(records, packed)
        return commit.seq

    def get(self, name: str) -> TaskRecord | None:
        """One row, active or retired, or None.

        Args:
            name: The task's name.
        """
        return self._servers.ask(lambda connection: read.get(connection, name))

    def count(self, under: str = "") -> int:
        """Number of the active tasks at and below a branch.

        Args:
            under: The branch; empty for the whole tree.
        """
        return self._servers.ask(lambda connection: read.count(connection, under))

    def names(self, under: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Sorted names of the active tasks at and below a branch.

        Args:
            under: The branch; empty for the whole tree.
            after: Only names behind this one.
            limit: At most so many; None for all.
        """
        return self._servers.ask(lambda connection: read.names(connection, under, after, limit))

    def records(
        self, under: str = "", *, after: str = "", limit: int | None = None, retired: bool = False
    ) -> list[TaskRecord]:
        """The same as rows.

        Args:
            under: The branch; empty for the whole tree.
            after: Only names behind this one.
            limit: At most so many; None for all.
            retired: The retired tasks instead of the active ones.
        """
        return self._servers.ask(lambda connection: read.records(connection, under, after, limit, retired=retired))

    def children(self, under: str = "") -> list[tuple[str, int]]:
        """The next level below a branch, sorted: each full name with its number of active tasks at and below it.

        Args:
            under: The branch; empty for the root.
        """
        return self._servers.ask(lambda connection: read.children(connection, under))

    def ids(self, scope: Scope) -> Ids:
        """Numbers of the tasks of a scope, ascending.

        Args:
            scope: Which tasks.
        """
        return self._servers.ask(lambda connection: read.ids(connection, scope))

    def names_of(self, ids: Ids) -> list[str]:
        """The name of each number, in the order given.

        Args:
            ids: (n,) int64.

        Raises:
            InputError: If there is no task of a number.
        """
        return self._servers.ask(lambda connection: read.names_of(connection, ids))

    def retire(self, names: Collection[str]) -> int:
        """Retire tasks in one commit; returns its number.

        Args:
            names: Names of tasks that are there.

        Raises:
            TaskNotFoundError: If one of them is not there; then none is retired.
        """
        with self._servers.writing() as commit:
            commit.mark(names, "retired")
        return commit.seq

    def restore(self, names: Collection[str]) -> int:
        """Make retired tasks active again in one commit; returns its number.

        Args:
            names: Names of tasks that are there.

        Raises:
            TaskNotFoundError: If one of them is not there; then none is restored.
        """
        with self._servers.writing() as commit:
            commit.mark(names, "active")
        return commit.seq

    def delete(self, names: Collection[str]) -> int:
        """Delete rows in one commit, leaving tombstones; returns its number.

        Args:
            names: Names of tasks that are there.

        Raises:
            TaskNotFoundError: If one of them is not there; then none is deleted.
        """
        with self._servers.writing() as commit:
            commit.delete(names)
        return commit.seq

    def versions(self, name: str) -> list[TaskVersion]:
        """Every adapter the task has had, oldest first.

        Args:
            name: The task's name.
        """
        return self._servers.ask(lambda connection: read.versions(connection, name))

    def changes(self, since: int) -> Changes:
        """Rows and tombstones of all commits after a given one.

        Args:
            since: Number of a commit; 0 for everything.
        """
        return self._servers.newest(lambda connection: read.changes(connection, since))

    def put_vectors(self, encoder: str, vectors: Sequence[TaskVectors]) -> int:
        """Store vectors of one encoder, of tasks whose content is still the one that was encoded, in one commit.

        Args:
            encoder: The encoder's fingerprint.
            vectors: The vectors, each with the content that was encoded.

        Returns:
            The commit's number.

        Raises:
            InputError: If anything is wrong; the message lists every fault, and nothing is stored.
        """
        check_vectors(vectors)
        packed = pack(vectors)
        with self._servers.writing(len(vectors)) as commit:
            commit.use(encoder, vectors)
            commit.hear(vectors, packed)
        return commit.seq

    def missing(self, encoder: str, limit: int | None = None) -> list[TaskRecord]:
        """Active tasks whose content has no vectors of an encoder, in the names' order.

        Args:
            encoder: The encoder's fingerprint.
            limit: At most so many; None for all.
        """
        return self._servers.ask(lambda connection: heard.missing(connection, self._url, encoder, limit))

    def vectors(self, encoder: str, ids: Ids | None = None) -> list[TaskVectors]:
        """Vectors with their examples of active tasks, by name.

        Args:
            encoder: The encoder's fingerprint.
            ids: (n,) int64, only those of these numbers; None for all.
        """
        return self._servers.ask(lambda connection: heard.vectors(connection, self._url, encoder, ids))

    def blocks(self, encoder: str, ids: Ids | None = None, size: int = 65536) -> Iterator[VectorBlock]:
        """Vectors of routable tasks, ascending by number, in blocks from one snapshot.

        Args:
            encoder: The encoder's fingerprint.
            ids: (n,) int64, only those of these numbers; None for all.
            size: Most tasks in a block.
        """
        if size < 1:
            raise InputError(f"A block has at least 1 row. Found size={size}. Raise it.")
        return heard.blocks(self._servers.streaming, self._url, encoder, ids, size)

    def vector_changes(self, encoder: str, since: int) -> VectorChanges:
        """Which rows of an index over an encoder's vectors are out of date.

        Args:
            encoder: The encoder's fingerprint.
            since: Number of a commit; 0 for everything.
        """
        return self._servers.newest(lambda connection: heard.vector_changes(connection, self._url, encoder, since))

    def verify(self) -> list[str]:
        """Every fault found in the tables themselves; nothing is raised."""
        try:
            return self._servers.newest(verify)
        except AdapterHubError as error:
            return [str(error)]
