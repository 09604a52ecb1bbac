"""The bytes of an adapter's folder: read once, hashed, compared with what was sealed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.durable import sync_folder
from adapterhub.errors import IntegrityError

__all__ = [
    "CONFIG",
    "FORMAT",
    "SEAL",
    "STACKED",
    "WEIGHTS",
    "FolderBytes",
    "content_hash",
    "parse_json",
    "read_folder",
    "read_seal",
    "sealed_stack",
    "verified_hash",
    "write_json",
]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SEAL = "adapterhub.json"
FORMAT = 1  # of the seal
STACKED = 2  # of the seal of an adapter that is nothing without those below it; readers of format 1 refuse it
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")


@dataclass(frozen=True)
class FolderBytes:
    """The files of one adapter, as they lie on disk.

    Args:
        config: `adapter_config.json`.
        weights: `adapter_model.safetensors`; writable, because tensors are views on it.
        seal: `adapterhub.json`, or None where there is none.
        hashes: sha256 by file name.
    """

    config: bytearray
    weights: bytearray
    seal: bytearray | None
    hashes: Mapping[str, str]

    @property
    def content_hash(self) -> str:
        """One sha256 over the names and hashes of all the files."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.hashes.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def read_folder(folder: Path) -> FolderBytes:
    """Read an adapter's files, each once.

    Args:
        folder: The adapter's folder. Other files in it, such as a README, are left alone.

    Raises:
        IntegrityError: If the folder or one of its two PEFT files is missing, or the weights are a pickle.
    """
    if not folder.is_dir():
        raise IntegrityError(f"An adapter is a folder. Found none at {folder}. Check the path.")
    weights = _read(folder / WEIGHTS)
    if weights is None:
        raise IntegrityError(_no_weights(folder))
    config = _read(folder / CONFIG)
    if config is None:
        raise IntegrityError(f"{folder}: {CONFIG} is missing. An adapter is {CONFIG} and {WEIGHTS}; copy both.")
    seal = _read(folder / SEAL)
    files = {CONFIG: config, WEIGHTS: weights} | ({} if seal is None else {SEAL: seal})
    return FolderBytes(config, weights, seal, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def content_hash(folder: Path) -> str:
    """One sha256 for an adapter: over the names and sha256 of its configuration, weights and seal.

    Args:
        folder: The adapter's folder, sealed or not.

    Returns:
        64 hexadecimal digits.

    Raises:
        IntegrityError: As `read_adapter` does for files that are missing.
    """
    return read_folder(Path(folder)).content_hash


def verified_hash(folder: Path) -> str:
    """The same, once the files are held against the seal that lies beside them, if one does.

    Args:
        folder: The adapter's folder, sealed or not.

    Returns:
        64 hexadecimal digits.

    Raises:
        IntegrityError: As `read_adapter` does for files that are missing or not the ones that were sealed.
    """
    files = read_folder(Path(folder))
    if files.seal is not None:
        read_seal(Path(folder), files)
    return files.content_hash


def read_seal(folder: Path, files: FolderBytes) -> dict[str, object]:
    """The seal of a folder that has one, once its files are the ones that the seal names.

    Args:
        folder: The adapter's folder.
        files: Its files.

    Raises:
        IntegrityError: If they are not, or the seal cannot be read.
    """
    assert files.seal is not None
    sealed = parse_json(files.seal, str(folder / SEAL))
    if sealed.get("format") not in (FORMAT, STACKED):
        raise IntegrityError(
            f"{folder / SEAL}: `format` should be {FORMAT} or {STACKED}. Found {sealed.get('format')!r}. Read it with "
            "a newer release of this package, or seal the adapter again."
        )
    hashes = sealed.get("files")
    wanted = hashes if isinstance(hashes, Mapping) else {}
    faults = [
        f"{folder / name} should have sha256 {wanted.get(name)}. Found {files.hashes[name]}."
        for name in (CONFIG, WEIGHTS)
        if wanted.get(name) != files.hashes[name]
    ]
    if faults:
        raise IntegrityError(
            "\n".join([*faults, "The files are not the ones that were sealed. Fetch the adapter again."])
        )
    return sealed


def sealed_stack(folder: Path) -> dict[str, str]:
    """The adapters that an adapter was trained on top of, from the lowest up: content hash by task name.

    Only the seal is read. What it says is proven with the folder's content hash, which covers it.

    Args:
        folder: The adapter's folder; one without a seal stands on the bare base.

    Raises:
        IntegrityError: If the seal cannot be read.
    """
    data = _read(Path(folder) / SEAL)
    found = [] if data is None else parse_json(data, str(folder / SEAL)).get("stack", [])
    entries: list[Any] = found if isinstance(found, list) else [found]
    try:
        return {str(entry["task"]): str(entry["sha256"]) for entry in entries}
    except (KeyError, TypeError):
        raise IntegrityError(
            f"{folder / SEAL}: `stack` should be a list of tasks with their sha256. Found {found!r}. "
            "Fetch the adapter again."
        ) from None


def parse_json(data: bytes | bytearray, where: str) -> dict[str, object]:
    """Read a JSON object.

    Args:
        data: UTF-8 text.
        where: The file, for messages.

    Raises:
        IntegrityError: If it is not JSON, not an object, or names a key twice.
    """
    try:
        value = json.loads(bytes(data), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} should be a JSON object. Found: {error}. Fetch the file again.") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{where} should be a JSON object. Found {type(value).__name__}. Fetch the file again.")
    return value


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON file whole or not at all, and make it last through a loss of power.

    Args:
        path: Where to.
        value: What.
    """
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _read(path: Path) -> bytearray | None:
    try:
        with path.open("rb", buffering=0) as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            view, filled = memoryview(data), 0
            while filled < len(data) and (count := file.readinto(view[filled:])):
                filled += count
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}. Check its permissions and the disk.") from error
    return data[:filled] if filled < len(data) else data


def _no_weights(folder: Path) -> str:
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles:
        return (
            f"{folder}: weights are read from {WEIGHTS} only. Found {', '.join(pickles)}, a pickle, which can run code "
            "when it is opened. Ask its author for safetensors, or save the adapter again with a current PEFT."
        )
    return f"{folder}: {WEIGHTS} is missing. An adapter is {CONFIG} and {WEIGHTS}; copy both."


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return value
