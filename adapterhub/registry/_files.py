"""Adapter folders as files: copied, numbered, made durable, held against their seal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from adapterhub.errors import IntegrityError

__all__ = ["adapter_faults", "copy_adapter", "durable_folder", "hash_of", "prune", "sync_folder", "versions_in"]

_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json")
_SEAL = "adapterhub.json"
_VERSION = re.compile(r"v([0-9]+)")


def versions_in(folder: Path) -> list[str]:
    """The versions beside a card, oldest first.

    Args:
        folder: A task's folder.
    """
    found = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted((name for name in found if _VERSION.fullmatch(name)), key=lambda name: int(name[1:]))


def copy_adapter(source: Path, target: Path) -> str:
    """Copy an adapter's files to a new folder, all of them on the disk when this returns.

    Args:
        source: A sealed adapter folder; other files in it are left behind.
        target: The new folder.

    Returns:
        The content hash of the copy.

    Raises:
        IntegrityError: If a file is missing, or is not the one that was sealed.
    """
    if not (source / _SEAL).is_file():
        raise IntegrityError(
            f"An adapter is registered with the seal that ties it to its base. Found no {_SEAL} in {source}. "
            "Seal the folder with `adapterhub.adapter.seal(folder, base)`."
        )
    target.mkdir()
    for name in _FILES:
        if (source / name).is_file():
            _copy(source / name, target / name)
    sync_folder(target)
    faults = adapter_faults(target, None)
    if faults:
        raise IntegrityError(f"{source}: " + " ".join(fault.removeprefix(f"{target}: ") for fault in faults))
    return hash_of(target)


def hash_of(folder: Path) -> str:
    """The content hash of an adapter's folder."""
    # The adapter room loads torch, and listing cards should not wait for that.
    from adapterhub.adapter import content_hash

    return content_hash(folder)


def adapter_faults(folder: Path, sha256: str | None) -> list[str]:
    """What is wrong with the bytes of an adapter's folder.

    Args:
        folder: The folder.
        sha256: The content hash that the card states, or None to hold the files against the seal only.
    """
    try:
        found = hash_of(folder)
    except IntegrityError as error:
        return [str(error)]
    faults = _seal_faults(folder) if (folder / _SEAL).is_file() else []
    if not faults and sha256 is not None and found != sha256:
        faults.append(
            f"{folder}: the card says sha256 {sha256[:12]}…. Found {found[:12]}…. Restore it or correct the card."
        )
    return faults


def _seal_faults(folder: Path) -> list[str]:
    try:
        sealed = dict(json.loads((folder / _SEAL).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [f"{folder}: {_SEAL} is damaged. Found no hashes of files in it. Restore the folder from a copy."]
    return [
        f"{folder}: {name} is not the file that was sealed (truncated or changed). Restore the folder from a copy."
        for name in _FILES
        if name != _SEAL and hashlib.sha256((folder / name).read_bytes()).hexdigest() != sealed.get(name)
    ]


def durable_folder(folder: Path) -> None:
    """Make a folder and those above it, all of them on the disk when this returns.

    Args:
        folder: The folder.
    """
    if folder.is_dir():
        return
    durable_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def prune(folder: Path, root: Path) -> None:
    """Remove a folder and those above it as long as they are empty.

    Args:
        folder: Where to begin.
        root: Where to stop; it stays.
    """
    while folder != root:
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk.

    Args:
        folder: The folder.
    """
    if os.name == "nt":  # Windows cannot open a folder; its renames are durable by themselves
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
