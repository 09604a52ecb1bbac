"""A task folder comes from the Hub: one commit, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from adapterhub.errors import HubError, InputError, did_you_mean
from adapterhub.hub._errors import hub_errors
from adapterhub.hub._files import REQUIRED, allowed
from adapterhub.hub._urls import HubLocation, check_path, check_repo_id, check_revision

__all__ = ["pull"]

_PATTERNS = ("*.safetensors", "*.json", "*.yaml", "README.md")


def pull(repo_id: str, *, path_in_repo: str = "", revision: str = "main", into: Path) -> str:
    """Downloads one task folder at one commit; nothing in it is ever executed or unpickled.

    The revision is resolved to a commit first and every file is taken from that commit. Without a network, or with
    HF_HUB_OFFLINE set, the local cache answers.

    Args:
        repo_id: `org/repo`.
        path_in_repo: Folder inside the repository; empty for its root. Its subfolders are not taken.
        revision: A branch, a tag or a commit.
        into: Where the folder is placed; it must not exist, or be empty. It appears whole or not at all.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        InputError: If an argument is malformed or `into` is taken.
        HubError: If the repository, the revision or the folder does not exist, access is refused, the folder holds no
            adapter in safetensors, the download breaks, or there is neither a network nor a cached copy.
    """
    location = HubLocation(check_repo_id(repo_id), check_revision(revision), check_path(path_in_repo))
    into = Path(into)
    if into.exists() and not (into.is_dir() and not any(into.iterdir())):
        raise InputError(f"A folder is pulled to a new place. Found `{into}` taken. Name another, or remove it first.")
    with hub_errors("pull", location):
        commit = HfApi(library_name="adapterhub").resolve_revision(repo_id, revision=revision).resolved
        prefix = f"{location.path}/" if location.path else ""
        snapshot = snapshot_download(
            repo_id,
            revision=commit,
            allow_patterns=[prefix + pattern for pattern in _PATTERNS],
            # The client's `*` also matches `/`: without this a group would bring the adapters of all its children.
            ignore_patterns=[prefix + "*/*"],
            library_name="adapterhub",
        )
    location = HubLocation(repo_id, commit, location.path)
    source = Path(snapshot, location.path)
    if not all((source / name).is_file() for name in REQUIRED):
        raise HubError(_nothing_to_pull(location))
    try:
        _place(source, into)
    except OSError as error:
        raise HubError(f"Cannot place {location.url} at `{into}`: {error}. Check the disk and the path.") from error
    return commit


def _place(source: Path, into: Path) -> None:
    """Copies the allowed files beside `into`, flushes them to the disk, and renames."""
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as aside:
        staged = Path(aside, into.name)
        staged.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file() and allowed(file.name):
                _copy(file, staged / file.name)
        if into.exists():
            into.rmdir()
        staged.rename(into)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def _nothing_to_pull(location: HubLocation) -> str:
    """Says what the repository holds instead of an adapter at that place."""
    rule = f"Cannot pull {location.url}: a folder to pull holds {' and '.join(REQUIRED)}."
    try:
        tree = [file.path for file in get_cached_repo_tree(location.repo_id, revision=location.revision)]
    except CachedRepoTreeNotFoundError:
        return f"{rule} The local cache does not have them. Pull once with a network."
    folders = sorted(path.rpartition("/")[0] for path in tree if path.endswith(REQUIRED[1]))
    here = [path for path in tree if path.rpartition("/")[0] == location.path]
    pickles = [path for path in here if path.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    if pickles:
        return f"{rule} Found `{pickles[0]}`, a pickle, which is never read. Ask its author for safetensors."
    near = did_you_mean(location.path, folders)
    known = ", ".join(f"`{folder or '/'}`" for folder in folders[:5]) or "nowhere"
    return f"{rule} Found {len(here)} other files there, and adapters in: {known}.{near} Give one as path_in_repo."
