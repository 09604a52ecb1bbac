"""One writer at a time, over all processes and threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]

# Short, so that one who writes without a pause does not keep the others out: they have to look between two commits.
_FIRST, _LONGEST = 0.0002, 0.001


@contextmanager
def locked(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process ends, however it ends.

    Each call opens the file anew, so two threads exclude each other like two processes. Not re-entrant.

    Args:
        path: The file; it is made if it is not there, and never removed.
        timeout: Longest wait in seconds; None to wait as long as it takes.

    Raises:
        TimeoutError: If another one holds it all the time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    descriptor = _acquire(path, deadline)
    if descriptor is None:
        raise TimeoutError(f"{path} has been locked for {timeout:g} s")
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, deadline: float | None) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        kept = False
        try:
            if not _waited(descriptor, deadline):
                return None
            # The folder may have been deleted while we waited: then another process locks another file.
            kept = _same(descriptor, path)
            if kept:
                return descriptor
        finally:
            if not kept:
                os.close(descriptor)
        path.parent.mkdir(parents=True, exist_ok=True)


def _waited(descriptor: int, deadline: float | None) -> bool:
    pause = _FIRST
    while not _taken(descriptor, wait=deadline is None):
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)
    return True


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _taken(descriptor: int, *, wait: bool) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:  # LK_LOCK gives up after ten seconds; it is asked again
            return False
        return True

else:
    import fcntl

    def _taken(descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
