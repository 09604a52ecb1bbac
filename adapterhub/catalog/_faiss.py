"""An index that keeps its rows in memory and finds the likeliest of them through graphs of the library faiss."""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._layered import LayeredIndex, Places
from adapterhub.catalog._records import Ids
from adapterhub.catalog._scores import NO_KEYS, Queries, Rows, check_update
from adapterhub.durable import sync_folder
from adapterhub.errors import IntegrityError, MissingExtraError

__all__ = ["FaissIndex"]

_MAGIC = b"adapterhub faiss 1\n"
_NEIGHBOURS, _BUILDING, _SEARCHING = 16, 80, 256  # of a row, looked at when it is added, looked at by a search
_FEW = 2000  # rows of a group that need no graph


class FaissIndex(LayeredIndex["_Graphs"]):
    """A `VectorIndex` in memory, for many queries a second; extra `faiss`.

    Rows of one group are as far apart as their scores say, but for one number more that each row gets; so each group
    has a graph of nearest neighbours (HNSW, Malkov and Yashunin 2016) over numbers of 8 bits. What the graphs find is
    scored exactly. Rows added later are all scored until the index is built again.

    A search costs a millisecond or two a group, hardly more with more rows. Building costs 100 times what
    `BitIndex.build` costs, and for texts unlike all tasks it finds less of what an exact scan finds.

    Args:
        keys: (n,) int64, different, at least 0.
        rows: n rows.

    Raises:
        MissingExtraError: If faiss is not installed.
        InputError: If keys or rows are wrong.
    """

    def __init__(self, keys: Ids, rows: Rows) -> None:
        keys, rows, _ = check_update(keys, rows, NO_KEYS, rows.linear.shape[1])
        order = np.argsort(keys)
        super().__init__(_Graphs(keys[order], rows.take(order)), rows.linear.shape[1])

    def save(self, path: Path) -> None:
        """Write the index as it is now, with its graphs, to a file; what came since the building is not in it.

        Args:
            path: The file; it is replaced at once when the new one is whole.
        """
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with partial.open("xb") as file:
            body = b"".join(_framed(part) for part in self._state.stored.parts())
            file.write(_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)

    @classmethod
    def open(cls, path: Path) -> FaissIndex:
        """Read an index; faiss sees no byte before the checksum of all of them is verified.

        Args:
            path: The file.

        Raises:
            MissingExtraError: If faiss is not installed.
            IntegrityError: If the file is missing or damaged.
        """
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise _fault(path, str(error)) from error
        start = len(_MAGIC) + 4
        if not raw.startswith(_MAGIC) or len(raw) < start:
            raise _fault(path, "its beginning is another")
        body = memoryview(raw)[start:]
        if zlib.crc32(body).to_bytes(4, "little") != raw[len(_MAGIC) : start]:
            raise _fault(path, "its checksum is another")
        index = cls.__new__(cls)
        graphs = _Graphs.of(_unframed(body))
        LayeredIndex.__init__(index, graphs, graphs.width)
        return index


class _Graphs:
    """Rows in memory, ascending by key, and a graph for each group of many."""

    def __init__(self, keys: Ids, rows: Rows, graphs: dict[int, Any] | None = None) -> None:
        self._faiss = _faiss()
        self.keys = keys
        self.width = rows.linear.shape[1]
        self._rows = rows
        self._lift = np.zeros(len(keys), dtype=np.float32)
        self._tops: dict[int, float] = {}
        self._members = {group: np.flatnonzero(rows.group == group) for group in np.unique(rows.group).tolist()}
        for group, members in self._members.items():
            part = rows.take(members)
            linear = part.linear.astype(np.float32)
            rest = 0.5 * np.einsum("ij,ij->i", linear, linear) + part.offset  # score = rest - distance^2 / 2 + …
            self._tops[group] = float(rest.max())
            self._lift[members] = np.sqrt(2 * np.maximum(rest.max() - rest, 0))
        if graphs is None:
            graphs = {group: self._graph(at) for group, at in self._members.items() if len(at) >= _FEW}
        self._graphs = graphs

    @classmethod
    def of(cls, parts: list[memoryview]) -> _Graphs:
        """From the parts that `parts` gave."""
        keys, shape, linear, group, offset, *graphs = parts
        width = int(np.frombuffer(shape, dtype="<i8")[0])
        rows = Rows(
            np.frombuffer(linear, dtype="<f2").reshape(-1, width),
            np.frombuffer(group, dtype="<i4"),
            np.frombuffer(offset, dtype="<f4"),
        )
        faiss = _faiss()
        numbers = [int(np.frombuffer(part, dtype="<i8")[0]) for part in graphs[::2]]
        read = [faiss.deserialize_index(np.frombuffer(part, dtype=np.uint8)) for part in graphs[1::2]]
        return cls(np.frombuffer(keys, dtype="<i8"), rows, dict(zip(numbers, read, strict=True)))

    def parts(self) -> Iterator[bytes]:
        """Everything that the graphs are made of, as bytes."""
        yield self.keys.astype("<i8").tobytes()
        yield np.array([self.width], dtype="<i8").tobytes()
        yield self._rows.linear.astype("<f2").tobytes()
        yield self._rows.group.astype("<i4").tobytes()
        yield self._rows.offset.astype("<f4").tobytes()
        for group, graph in self._graphs.items():
            yield np.array([group], dtype="<i8").tobytes()
            yield self._faiss.serialize_index(graph).tobytes()

    @property
    def most_exact(self) -> int:
        return len(self.keys)  # a graph does not know subsets

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def largest_group(self) -> int:
        return max(self._members, default=-1)

    def find(self, keys: Ids) -> tuple[NDArray[np.bool_], Places]:
        if not len(self):
            return np.zeros(len(keys), dtype=np.bool_), np.empty(0, dtype=np.intp)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        there: NDArray[np.bool_] = self.keys[at] == keys
        return there, at[there]

    def groups(self, places: Places) -> NDArray[np.int32]:
        return self._rows.group[places]

    def rows(self, places: Places) -> Rows:
        return self._rows.take(places)

    def shortlist(self, queries: Queries, size: int, hidden: Places) -> list[Places]:
        linear = np.concatenate([queries.linear, np.zeros((len(queries), 1))], axis=1).astype(np.float32)
        found: list[list[tuple[Places, NDArray[np.float32]]]] = [[] for _ in range(len(queries))]
        for group, members in self._members.items():
            living = ~np.isin(members, hidden, assume_unique=True)
            for row, (places, scores) in enumerate(self._nearest(group, members, living, linear, size)):
                found[row].append((places, scores + queries.groups[row, group]))
        return [_best(parts, size) for parts in found]

    def _nearest(
        self, group: int, members: Places, living: NDArray[np.bool_], linear: NDArray[np.float32], size: int
    ) -> list[tuple[Places, NDArray[np.float32]]]:
        """For each query places of one group and estimated scores, up to a number for the query."""
        graph = self._graphs.get(group)
        if graph is None:
            return [(members[living], np.full(int(living.sum()), np.inf, dtype=np.float32))] * len(linear)
        faiss = self._faiss
        options = {} if living.all() else {"sel": faiss.IDSelectorBatch(np.flatnonzero(living))}
        wanted = min(size, int(living.sum()))
        settings = faiss.SearchParametersHNSW(efSearch=max(_SEARCHING, wanted), **options)
        distances, at = graph.search(linear, max(wanted, 1), params=settings)
        half_squares = 0.5 * np.einsum("ij,ij->i", linear, linear)
        return [
            (members[row[row >= 0]], self._tops[group] + half - 0.5 * distance[row >= 0])
            for row, distance, half in zip(at, distances, half_squares, strict=True)
        ]

    def _graph(self, members: Places) -> Any:
        linear = self._rows.linear[members].astype(np.float32)
        lifted = np.concatenate([linear, self._lift[members, None]], axis=1)
        kind = self._faiss.ScalarQuantizer.QT_8bit
        graph = self._faiss.IndexHNSWSQ(lifted.shape[1], kind, _NEIGHBOURS)
        graph.hnsw.efConstruction = _BUILDING
        graph.train(lifted)
        graph.add(lifted)
        return graph


def _best(parts: list[tuple[Places, NDArray[np.float32]]], size: int) -> Places:
    if not parts:
        return np.empty(0, dtype=np.intp)
    places = np.concatenate([some for some, _ in parts])
    scores = np.concatenate([some for _, some in parts])
    size += int(np.isinf(scores).sum())  # rows without a graph are all scored
    if len(places) > size:
        places = places[np.argpartition(-scores, size)[:size]]
    return np.sort(places)


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


def _unframed(body: memoryview) -> list[memoryview]:
    parts, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 8], "little")
        parts.append(body[at + 8 : at + 8 + size])
        at += 8 + size
    return parts


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError("FaissIndex", "faiss")
    return importlib.import_module("faiss")


def _fault(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"The file of an index is the one that was written. Found {path}: {what}. Build the index again from its rows."
    )
