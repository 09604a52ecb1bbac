"""One writer of a file at a time, over all processes and threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked", "sync_folder"]

# Short, so that one who writes without a pause does not keep the others out: they have to look between two commits.
_FIRST, _LONGEST = 0.0002, 0.001


def sync_folder(folder: Path) -> None:
    """Make sure that a file that was made or moved is found after a loss of power.

    Args:
        folder: The folder of the file.
    """
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process ends, however it ends.

    Each call opens the file anew, so two threads exclude each other like two processes. Not re-entrant.

    Args:
        path: The file; it is made if it is not there, and never removed.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: If another one holds it all the time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        deadline, pause = time.monotonic() + timeout, _FIRST
        while not _taken(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} has been locked for {timeout:g} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _taken(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _taken(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
