"""The room's C files, where the machine has a compiler. What they do numpy does too, with equal results."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from adapterhub.compiled import opened

__all__ = ["kernel"]


@functools.cache
def kernel() -> ctypes.CDLL:
    """The functions of all of them.

    Raises:
        NoKernelError: If there is no compiler, or it fails.
    """
    return opened(*(Path(__file__).with_name(name) for name in ("codes.c", "rows.c")))
