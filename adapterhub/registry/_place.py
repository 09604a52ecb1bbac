"""Where what is derived from a folder of cards is kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["DERIVED", "derived_folder"]

DERIVED = ".catalog"


def derived_folder(root: Path) -> Path:
    """The folder for the catalogue: beside the cards, or in the user's cache where the cards cannot be written to.

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
    if writable:
        ignore = beside / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    elsewhere = cache / "adapterhub" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    elsewhere.mkdir(parents=True, exist_ok=True)
    return elsewhere
