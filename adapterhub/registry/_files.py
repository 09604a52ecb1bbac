"""Adapter folders as files: copied, numbered, made durable, held against their seal."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from adapterhub.durable import sync_folder
from adapterhub.errors import IntegrityError

__all__ = ["adapter_faults", "copy_adapter", "hash_of", "is_local", "prune", "remove", "stack_in", "versions_in"]

_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json")
_SEAL = "adapterhub.json"
_VERSION = re.compile(r"v([0-9]+)")


def is_local(version: str | None) -> bool:
    """Whether an adapter is a folder of the registry, such as `v1`, and not a place on the Hub."""
    return version is not None and _VERSION.fullmatch(version) is not None


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
        raise IntegrityError(" ".join(faults).replace(str(target), str(source)))
    return hash_of(target)


def hash_of(folder: Path) -> str:
    """The content hash of an adapter's folder."""
    # The adapter room loads torch, and listing cards should not wait for that.
    from adapterhub.adapter import content_hash

    return content_hash(folder)


def stack_in(folder: Path) -> dict[str, str]:
    """The adapters that an adapter's seal says it stands on: content hash by task name.

    Args:
        folder: The adapter's folder.
    """
    from adapterhub.adapter import sealed_stack

    return sealed_stack(folder)


def adapter_faults(folder: Path, sha256: str | None) -> list[str]:
    """What is wrong with the bytes of an adapter's folder.

    Args:
        folder: The folder.
        sha256: The content hash that the card states, or None to hold the files against the seal only.
    """
    from adapterhub.adapter import verified_hash

    try:
        found = verified_hash(folder)
    except IntegrityError as error:
        return [" ".join(str(error).splitlines())]
    if sha256 in (None, found):
        return []
    return [f"{folder}: the card says sha256 {sha256}. Found {found}. Restore it or correct the card."]


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; one that is not there is no fault.

    Args:
        path: Its place.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
