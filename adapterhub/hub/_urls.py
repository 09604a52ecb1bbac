"""Where an adapter lies on the Hub: `hf://org/repo@revision/path`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from adapterhub.errors import InputError

__all__ = ["HubLocation", "check_path", "check_repo_id", "check_revision", "parse_url"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_URL = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>[^@]*))?")


@dataclass(frozen=True)
class HubLocation:
    """A folder of a repository of the Hugging Face Hub at one revision.

    Args:
        repo_id: `org/repo`.
        revision: A commit of 40 hexadecimal digits, or a branch or tag.
        path: Folder inside the repository; empty for its root.
    """

    repo_id: str
    revision: str = "main"
    path: str = ""

    @property
    def url(self) -> str:
        """`hf://org/repo@revision/path`; `parse_url` reads it back."""
        return f"hf://{self.repo_id}@{self.revision}" + (f"/{self.path}" if self.path else "")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit, which can never mean other bytes later."""
        return _COMMIT.fullmatch(self.revision) is not None


def parse_url(url: str, *, pinned: bool = False) -> HubLocation:
    """Reads `hf://org/repo@revision/path`; without `@revision` the branch `main` is meant.

    Args:
        url: The URL.
        pinned: Whether the revision must be a full commit.

    Raises:
        InputError: If the URL has another form, or is not pinned although it must be.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise InputError(f"An address on the Hub is hf://org/repo@<commit>/path. Found `{url}`. Write it in that form.")
    location = HubLocation(
        check_repo_id(match["repo"]), check_revision(match["revision"] or "main"), check_path(match["path"] or "")
    )
    if pinned and not location.pinned:
        raise InputError(
            f"An address on the Hub must be pinned to a commit of 40 hexadecimal digits here. Found `{url}`. "
            f"Write hf://{location.repo_id}@<commit>{'/' + location.path if location.path else ''}; "
            "pulling prints the commit."
        )
    return location


def check_repo_id(repo_id: str) -> str:
    """Returns a repository's id `org/repo` or raises InputError."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"A repository is named `org/repo`. Found `{repo_id}`. {error}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"A repository is named `org/repo`. Found `{repo_id}`. Put the user or organisation in front.")
    return repo_id


def check_path(path: str) -> str:
    """Returns a folder inside a repository, without a slash at its end, or raises InputError."""
    path = path.rstrip("/")
    if path and not all(_PART.fullmatch(part) for part in path.split("/")):
        raise InputError(
            "A folder inside a repository is made of names of letters, digits, `.`, `_` and `-`, joined by `/`, none "
            f"of them hidden or `..`. Found `{path}`. Name it as the task, for example `language/grammar`."
        )
    return path


def check_revision(revision: str) -> str:
    """Returns a commit, branch or tag or raises InputError."""
    if not revision or not all(_PART.fullmatch(part) for part in revision.split("/")):
        raise InputError(f"A revision is a commit, a branch or a tag. Found `{revision}`. Use for example `main`.")
    return revision
