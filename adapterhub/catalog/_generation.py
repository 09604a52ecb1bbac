"""One generation of an index on disk: immutable files, all of them verified before anything is made of them."""

from __future__ import annotations

import json
import os
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._counting import Places
from adapterhub.catalog._linear import checksums, gather, stride
from adapterhub.catalog._records import Ids
from adapterhub.catalog._scanned import Scanned
from adapterhub.catalog._scores import Queries, Rows
from adapterhub.catalog._shortlist import shortlist
from adapterhub.catalog._signature import BITS, WORDS, Signature, Words
from adapterhub.errors import IntegrityError

__all__ = ["FILES", "MANIFEST", "Generation", "Manifest"]

FORMAT = 2
MANIFEST = "manifest.json"
MOST_EXACT = 32768
REMEDY = "The index is derived: it is built again from the catalogue."

_TYPES = {
    "keys": "<i8",
    "order": "<i4",
    "codes": "<u8",
    "slopes": "<f4",
    "groups": "<i4",
    "offsets": "<f4",
    "checksums": "<u8",
    "signature": "<f4",
}
LINEAR = "linear"  # not read at the opening: each row has a checksum of its own
FILES = (*_TYPES, LINEAR)


@dataclass(frozen=True)
class Manifest:
    """What the one file that is replaced says about the generation that is current.

    Args:
        name: The generation's folder.
        fingerprint: Of whatever the rows were made by.
        seq: Number of the commit that the rows are at least as new as.
        rows: Number n of rows.
        width: Numbers r of a row.
        groups: The rows' groups, ascending, and what a typical query adds to each.
        files: Size and crc32 of each file.
    """

    name: str
    fingerprint: str
    seq: int
    rows: int
    width: int
    groups: dict[int, float]
    files: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and verify it.

        Args:
            folder: Of the index.

        Raises:
            IntegrityError: If it is missing, damaged, or of another format.
        """
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_bytes())
            content = found["content"]
            if found["crc32"] != zlib.crc32(_canonical(content)):
                raise ValueError("its checksum is another")
            if content["format"] != FORMAT or content["bits"] != BITS:
                raise ValueError(f"its format is {content['format']}, {content['bits']} bits")
            files = {name: (int(size), int(crc)) for name, (size, crc) in content["files"].items()}
            groups = {int(group): float(share) for group, share in content["groups"].items()}
            seq, rows, width = (int(content[key]) for key in ("seq", "rows", "width"))
            return cls(str(content["name"]), str(content["fingerprint"]), seq, rows, width, groups, files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"The manifest of an index is whole. Found {path}: {error}. {REMEDY}") from error

    def written(self) -> bytes:
        """The bytes that `read` reads."""
        content: dict[str, Any] = {"format": FORMAT, "bits": BITS, **vars(self)}
        content = json.loads(json.dumps(content))
        return json.dumps({"content": content, "crc32": zlib.crc32(_canonical(content))}, indent=1).encode()


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


class Generation:
    """A generation that is open. Only its linear parts stay on disk; a row is verified when it is read.

    Args:
        folder: Of the index.
        manifest: Its manifest.

    Raises:
        IntegrityError: If a file is missing or not the one that was written.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._folder = folder / manifest.name
        parts = {name: self._read(name, kind) for name, kind in _TYPES.items()}
        width = manifest.width
        self.keys: Ids = parts["keys"]
        self._groups: NDArray[np.int32] = parts["groups"]
        self._offsets: NDArray[np.float32] = parts["offsets"]
        shares = np.zeros(self.largest_group + 1)
        shares[list(manifest.groups)] = list(manifest.groups.values())
        order: NDArray[np.int32] = parts["order"]
        numbers = parts["signature"].reshape(-1, width)
        self._scanned = Scanned(
            Signature(numbers[0], *(np.ascontiguousarray(part.T) for part in np.split(numbers[1:], 2))),
            order,
            parts["codes"].reshape(-1, 2 * WORDS),
            parts["slopes"].reshape(2, -1),
            self._offsets[order] + shares.astype(np.float32)[self._groups[order]],
            self._groups[order],
            shares,
        )
        self._checksums: Words = parts["checksums"]
        self._file = self._open(LINEAR)
        weakref.finalize(self, os.close, self._file)
        self._bytes = 2 * stride(width)
        if os.fstat(self._file).st_size != manifest.rows * self._bytes:
            raise self._fault(LINEAR, "its size is another")

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def largest_group(self) -> int:
        """The largest group of a row; -1 without rows."""
        return max(self.manifest.groups, default=-1)

    @property
    def most_exact(self) -> int:
        """So many rows of a subset are all read and scored."""
        return MOST_EXACT

    def find(self, keys: Ids) -> tuple[NDArray[np.bool_], Places]:
        """Whether there is a row under each key, and the places of those that are there.

        Args:
            keys: (n,) int64.
        """
        if not len(self):
            return np.zeros(len(keys), dtype=np.bool_), np.empty(0, dtype=np.intp)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        there: NDArray[np.bool_] = self.keys[at] == keys
        return there, at[there]

    def groups(self, places: Places) -> NDArray[np.int32]:
        """The groups of rows.

        Args:
            places: (m,).
        """
        return self._groups[places]

    def rows(self, places: Places) -> Rows:
        """Rows read from disk and verified.

        Args:
            places: (m,) ascending.

        Raises:
            IntegrityError: If a row is not the one that was written.
        """
        try:
            linear = gather(self._file, places, self._bytes).view("<f2")
        except (OSError, EOFError) as error:
            raise self._fault(LINEAR, str(error)) from error
        if not np.array_equal(checksums(linear), self._checksums[places]):
            raise self._fault(LINEAR, "a row's checksum is another")
        found = linear[:, : self.manifest.width]
        return Rows(found, self._groups[places], self._offsets[places])

    def shortlist(self, queries: Queries, size: int, hidden: Places) -> list[Places]:
        """For each query the places of the rows with the largest estimated scores; see `shortlist`.

        Args:
            queries: b queries.
            size: How many places for each.
            hidden: Places that are not looked at, ascending.
        """
        return shortlist(self._scanned, queries, size, hidden)

    def _read(self, name: str, kind: str) -> Any:
        size, crc = self.manifest.files[name]
        raw = np.empty(size, dtype=np.uint8)
        with os.fdopen(self._open(name), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                raise self._fault(name, "its size is another")
            view = raw.data
            done = 0
            while done < size:
                done += (got := file.readinto(view[done:]) or 0)
                if not got:
                    raise self._fault(name, "it ends too early")
        if zlib.crc32(raw.data) != crc:
            raise self._fault(name, "its checksum is another")
        native: Any = raw.view(kind)
        return native.astype(native.dtype.newbyteorder("="), copy=False)

    def _open(self, name: str) -> int:
        try:
            return os.open(self._folder / name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise self._fault(name, str(error)) from error

    def _fault(self, name: str, what: str) -> IntegrityError:
        return IntegrityError(
            f"The files of an index are those that were written. Found {self._folder / name}: {what}. {REMEDY}"
        )
