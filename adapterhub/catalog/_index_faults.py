"""Every damaged index below a folder, for whoever checks a registry: indexes are derived and may be deleted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapterhub.catalog._generation import MANIFEST, Generation, Manifest
from adapterhub.errors import IntegrityError

__all__ = ["index_faults"]

_ROWS = 65536


def index_faults(folder: Path) -> dict[Path, str]:
    """Read every row of every index below a folder.

    Args:
        folder: Where indexes are kept; it need not be there.

    Returns:
        What is wrong with each damaged one, by its folder.
    """
    found = {}
    for path in sorted(folder.rglob(MANIFEST)) if folder.is_dir() else ():
        try:
            generation = Generation(path.parent, Manifest.read(path.parent))
            for start in range(0, len(generation), _ROWS):
                generation.rows(np.arange(start, min(start + _ROWS, len(generation))))
        except IntegrityError as error:
            found[path.parent] = str(error)
    return found
