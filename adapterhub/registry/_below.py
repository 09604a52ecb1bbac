"""What an adapter stands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Below"]


@dataclass(frozen=True)
class Below:
    """An adapter that another one stands on.

    Args:
        name: Its task.
        sha256: Its content hash.
        folder: Where it lies.
    """

    name: str
    sha256: str
    folder: Path
