"""Base models that lie in a registry's folder, such as `_base`, and travel with its tasks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from adapterhub.durable import durable_folder, sync_file, sync_folder

__all__ = ["copy_bases"]


def copy_bases(bases: Iterable[str], source: Path, target: Path) -> None:
    """Copy the folders of base models, each in one step; those that are there already are left alone.

    Args:
        bases: What cards name; others than folders of `source` are passed over.
        source: Where they lie.
        target: Where they are copied to.
    """
    for base in bases:
        if not _is_inside(base) or not (source / base).is_dir() or (target / base).exists():
            continue
        durable_folder(target)
        aside = target / f".{base}.{os.getpid()}"
        try:
            shutil.copytree(source / base, aside)
            for file in aside.rglob("*"):
                if file.is_file():
                    sync_file(file)
            aside.replace(target / base)
            sync_folder(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _is_inside(base: str) -> bool:
    """Whether a card's base model may be a folder of the registry; such a name is never a task's."""
    return base.startswith("_") and "/" not in base and os.sep not in base
