"""The packed cache: folded adapters in a flat layout of our own, each one file that is read and checked at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from adapterhub.engine._delta import Folded
from adapterhub.engine._flat import SCHEMA, Flat, aligned, restored
from adapterhub.errors import InputError

__all__ = ["PackedCache"]

# Raise it when the layout changes, or what `fold` computes.
_FORMAT = 1
_CHECKED = 40  # a file's key and its checksum come first; the checksum covers the rest
_BEGIN = _CHECKED + 8  # the header's length comes next
_SUFFIX, _PART = ".packed", ".packed.part"
_ABANDONED = 60.0  # seconds; a file takes milliseconds to write

_log = logging.getLogger(__name__)


class PackedCache:
    """A folder of folded adapters: derived from PEFT folders, private to this package, and deletable at any time.

    A file's name is the adapter's content hash and a key over the base's fingerprint, the dtype, the format and the
    fields of the parts, and the file repeats both. A checksum is checked at each read, against damage; against people
    who can write here none would help, sha256 neither, since they could write it too. A file is written aside and
    renamed, so that processes can share a folder and a killed one leaves only a temporary file, which a later write
    removes.

    A folder that cannot be written to, or is full, means no cache: this is logged once, and adapters are read from
    their PEFT folders.

    Args:
        folder: Where the files lie; made by the first write.
        fingerprint: What the folded tensors depend on beside the adapter: the base's fingerprint.
        dtype: The base's dtype, which folding depends on too. Tensors are stored in their own.
        max_bytes: Budget of the folder; beyond it the least recently used files, of whichever base, are deleted.
    """

    def __init__(self, folder: Path, fingerprint: str, dtype: torch.dtype, *, max_bytes: int = 8 << 30) -> None:
        if max_bytes < 0:
            raise InputError(
                f"The packed cache's `max_bytes` is 0 or more. Found {max_bytes}. Give 0 to write nothing."
            )
        self.folder = Path(folder)
        identity = json.dumps([_FORMAT, SCHEMA, fingerprint, str(dtype), sys.byteorder])
        self._key = hashlib.sha256(identity.encode()).digest()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._total: int | None = None  # bytes in the folder, as far as known
        self._unseen = 0  # bytes written since the folder was last listed
        self._logged = False

    def read(self, sha256: str) -> Folded | None:
        """Read an adapter, and mark its file as just used.

        Args:
            sha256: The adapter's content hash.

        Returns:
            The adapter, its tensors views on one buffer; or None where there is no file of it, or only a damaged one,
            which is deleted then.
        """
        if not _is_hash(sha256):
            return None
        path = self._path(sha256)
        try:
            data = _read(path)
        except OSError:
            return None
        folded = self._checked(data, sha256)
        with suppress(OSError):  # a folder of somebody else's; or another process was faster
            if folded is None:
                path.unlink()
            else:
                os.utime(path, ns=(time.time_ns(),) * 2)
        return folded

    def write(self, folded: Folded) -> bool:
        """Write an adapter, whole or not at all.

        Args:
            folded: The adapter; its `sha256` is 64 hexadecimal digits.

        Returns:
            Whether its file is there now: not where it alone is beyond the budget, or the folder cannot be written to.

        Raises:
            InputError: If it has no content hash, or a tensor of a dtype that adapters do not have.
        """
        if not _is_hash(folded.sha256):
            raise InputError(
                f"An adapter is cached by its content hash, 64 hexadecimal digits. Found {folded.sha256!r}. Read it "
                "with `read_adapter`."
            )
        path = self._path(folded.sha256)
        try:
            return path.exists() or self._write(path, self._packed(folded))
        except OSError as error:
            if not self._logged:
                self._logged = True
                _log.warning(
                    "The packed cache %s cannot be written to: %s. Adapters are read from their folders instead.",
                    self.folder,
                    error.strerror or error,
                )
            return False

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}-{self._key.hex()[:16]}{_SUFFIX}"

    def _packed(self, folded: Folded) -> torch.Tensor:
        """The file: key, checksum of what follows, the header's length, the header, and the tensors, each aligned."""
        flat = Flat(folded)
        header = json.dumps(flat.header, separators=(",", ":")).encode()
        data = flat.written(aligned(_BEGIN + len(header)))
        content = _bytes(data)
        content[_CHECKED:_BEGIN] = len(header).to_bytes(8, "little")
        content[_BEGIN : _BEGIN + len(header)] = header
        content[:_CHECKED] = self._key + _checksum(content[_CHECKED:])
        return data

    def _checked(self, data: torch.Tensor, sha256: str) -> Folded | None:
        """What a file holds, or None where it is not exactly what was written for this adapter, base and format."""
        content = _bytes(data)
        if len(content) < _BEGIN or content[:_CHECKED] != self._key + _checksum(content[_CHECKED:]):
            return None
        stop = _BEGIN + int.from_bytes(content[_CHECKED:_BEGIN], "little")
        folded = restored(json.loads(bytes(content[_BEGIN:stop])), data, aligned(stop))
        return folded if folded.sha256 == sha256 else None

    def _write(self, path: Path, data: torch.Tensor) -> bool:
        if data.nbytes > self._max_bytes:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._make_room(data.nbytes)
        handle, aside = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=_PART)
        try:
            # No fsync: what a loss of power leaves behind fails its checksum and is made again.
            with os.fdopen(handle, "wb") as file:
                file.write(_bytes(data))
            Path(aside).chmod(0o644)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        return True

    def _make_room(self, nbytes: int) -> None:
        """Keep the folder within its budget, listing it only now and then: other processes write to it too."""
        if self._total is None or self._total + nbytes > self._max_bytes or self._unseen > self._max_bytes // 16:
            self._total = self._trimmed(nbytes)
            self._unseen = 0
        self._total += nbytes
        self._unseen += nbytes

    def _trimmed(self, room: int) -> int:
        """Delete what killed writers left, and the files longest unused where `room` is short. Returns the bytes."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # deleted meanwhile
                    if entry.name.endswith(_PART) and time.time() - entry.stat().st_mtime > _ABANDONED:
                        Path(entry).unlink()
                    elif entry.name.endswith(_SUFFIX):
                        found.append((entry.stat().st_mtime_ns, entry.path, entry.stat().st_size))
        total = sum(size for _, _, size in found)
        if total + room <= self._max_bytes:
            return total
        for _, path, size in sorted(found):
            if total + room <= self._max_bytes - self._max_bytes // 16:  # some more, so that this is rare
                break
            with suppress(OSError):
                Path(path).unlink()
            total -= size
        return total


def _read(path: Path) -> torch.Tensor:
    """A file's bytes, uint8."""
    with path.open("rb", buffering=0) as file:
        data = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
        view = _bytes(data)
        while view and (count := file.readinto(view)):
            view = view[count:]
    return data[: data.numel() - len(view)]


def _checksum(content: memoryview) -> bytes:
    """CRC-32, and the length, which it does not see where zeros are cut off or added."""
    return zlib.crc32(content).to_bytes(4, "little") + (len(content) & 0xFFFFFFFF).to_bytes(4, "little")


def _bytes(data: torch.Tensor) -> memoryview:
    array: Any = data.numpy()
    return memoryview(array)


def _is_hash(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None
