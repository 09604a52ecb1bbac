"""What the disk refuses, told in one error of ours, with nothing half-written left behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from adapterhub.errors import AdapterHubError, IntegrityError

__all__ = ["remove", "writing"]


@contextmanager
def writing(place: Path, remedy: str) -> Iterator[None]:
    """Write a file or a folder; where that fails, what is there of it is taken away again.

    Args:
        place: The new file or folder.
        remedy: What is kept and how to go on, for the message.

    Raises:
        IntegrityError: If the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except AdapterHubError:
        raise
    except (OSError, SafetensorError) as error:  # safetensors makes an error of its own of a full disk
        remove(place)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise IntegrityError(f"{place} cannot be written to: {reason}. {remedy}") from error


def remove(place: Path) -> None:
    """Take a file or a folder away, if it is there and can be."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink()
