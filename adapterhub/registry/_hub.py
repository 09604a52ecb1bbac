"""Adapters that a card names by their pinned place on the Hub, kept in the derived folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.hub import parse_url, pull
from adapterhub.registry._files import adapter_faults

__all__ = ["pulled_folder", "resolve"]


def pulled_folder(url: str, derived: Path) -> Path:
    """Where an adapter on the Hub lies once it has been pulled.

    Args:
        url: `hf://org/repo@<commit>/path`.
        derived: The registry's derived folder.
    """
    location = parse_url(url, pinned=True)
    # One flat folder for each, so that no adapter lies inside another.
    return derived / "hub" / location.revision / f"{location.repo_id}/{location.path}".strip("/").replace("/", "--")


def resolve(url: str, derived: Path, sha256: str | None) -> Path:
    """The local folder of an adapter on the Hub, pulled at the first use.

    Args:
        url: `hf://org/repo@<commit>/path`.
        derived: The registry's derived folder.
        sha256: The content hash that the card states, or None if it states none.

    Raises:
        HubError: If it cannot be pulled.
        IntegrityError: If what was pulled is not what the card states; it is not kept.
    """
    folder = pulled_folder(url, derived)
    if folder.is_dir():
        return folder
    location = parse_url(url, pinned=True)
    try:
        pull(location.repo_id, path_in_repo=location.path, revision=location.revision, into=folder)
    except AdapterHubError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    faults = adapter_faults(folder, sha256)
    if faults:
        shutil.rmtree(folder, ignore_errors=True)
        raise IntegrityError(f"Adapter {url} is not what its card states. {' '.join(faults)}")
    return folder
