"""Where a registry is, and where what is derived from it is kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["DERIVED", "adapters_beside", "cache_folder", "derived_folder", "is_url", "sqlite_file"]

DERIVED = ".catalog"
_SQLITE = "sqlite:///"


def is_url(place: str | Path) -> bool:
    """Whether a place is a database's address and not a folder."""
    return "://" in str(place)


def sqlite_file(url: str) -> Path | None:
    """The file of `sqlite:///relative.db` or `sqlite:////absolute.db`, or None for another address."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def adapters_beside(file: Path) -> Path:
    """The folder of adapters that belongs to a file: `tasks.adapters` beside `tasks.db` or `tasks.jsonl`."""
    return file.with_name(f"{file.stem}.adapters")


def derived_folder(root: Path) -> Path:
    """The folder for what is derived: beside the cards, or in the user's cache where they cannot be written to.

    Args:
        root: Folder of the tree.

    Returns:
        A folder that exists.
    """
    beside = root / DERIVED
    try:
        beside.mkdir(exist_ok=True)
        writable = os.access(beside, os.W_OK) and os.access(root, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        return cache_folder(str(root.resolve()))
    ignore = beside / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return beside


def cache_folder(place: str) -> Path:
    """A folder in the user's cache for one registry; it is made.

    Args:
        place: The registry's full path, or its address.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "adapterhub" / hashlib.sha256(place.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
