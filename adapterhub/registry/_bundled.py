"""The registry that comes with the package."""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import InputError

__all__ = ["bundled_registry"]


def bundled_registry() -> Path:
    """Folder of the registry that comes with the package: inside the wheel, or beside the package in a checkout.

    Raises:
        InputError: If neither folder exists.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "_registry", package.parent / "registry"):
        if (folder / "_group.yaml").is_file():
            return folder
    raise InputError(f"The bundled registry should lie in {package / '_registry'}. Found none. Reinstall adapterhub.")
