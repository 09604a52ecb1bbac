"""What it takes on a file system until a change has reached the disk."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["durable_folder", "sync_file", "sync_folder"]


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: what was renamed into it is there after a loss of power.

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


def sync_file(path: Path) -> None:
    """Bring a file that someone else has written to the disk.

    Args:
        path: The file.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


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
