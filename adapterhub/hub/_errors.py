"""What the Hub's client raises, told as the rule, the value found and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)

from adapterhub.errors import HubError, InputError
from adapterhub.hub._urls import HubLocation

__all__ = ["hub_errors"]

_BY_TYPE: tuple[tuple[type[BaseException], str], ...] = (
    (
        GatedRepoError,
        "`{repo}` is gated and this account has no access to it. Ask for access on the repository's page, "
        "then set HF_TOKEN or run `hf auth login`.",
    ),
    (
        RepositoryNotFoundError,
        "there is no repository `{repo}`, or it is private and this account does not see it. Check the name; for a "
        "private one set HF_TOKEN or run `hf auth login`.",
    ),
    (RevisionNotFoundError, "`{repo}` has no revision `{revision}`. Use a branch, a tag or a commit that it has."),
    (DisabledRepoError, "`{repo}` has been disabled on the Hub. Use another repository."),
    (EntryNotFoundError, "a file is missing from the repository. Check the path and the revision."),
    (
        OfflineModeIsEnabled,
        "HF_HUB_OFFLINE is set and this commit is not, or not wholly, in the local cache. Unset HF_HUB_OFFLINE "
        "and try again with a network; afterwards it works offline.",
    ),
    (httpx2.ProxyError, "the proxy refused the connection ({error}). Check HTTPS_PROXY and NO_PROXY."),
    (
        httpx2.TransportError,
        "the Hub cannot be reached, or the connection broke ({error}), and the local cache does not hold this "
        "commit. Check the network and HF_ENDPOINT, then try again.",
    ),
    (XetDownloadError, "the download broke off ({error}). Try again; what arrived is kept in the cache."),
)
_BY_STATUS = {
    401: "the token is not valid (401). Set HF_TOKEN to a valid one, or run `hf auth login`.",
    403: "this account has no permission for `{repo}` (403). Use a token with write access, or another repository.",
    412: "somebody else changed `{repo}` at the same moment (412); nothing was written. Try again.",
    429: "the Hub's rate limit is reached (429). Wait a few minutes, then try again.",
}


@contextmanager
def hub_errors(action: str, location: HubLocation) -> Iterator[None]:
    """Turns what the Hub's client raises inside the block into HubError, or InputError for a refused argument.

    Args:
        action: The verb of the message, `pull` or `push`.
        location: What the block is about.
    """
    try:
        yield
    except (httpx2.HTTPError, EntryNotFoundError, RevisionResolutionError, XetDownloadError, OSError) as error:
        raise HubError(f"Cannot {action} {location.url}: {_explain(error, location)}") from error
    except ValueError as error:  # the client's own check of names and of the card's front matter
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"Cannot {action} {location.url}: {said}. Correct it and try again.") from error


def _explain(error: BaseException, location: HubLocation) -> str:
    root = _root(error)
    status = root.response.status_code if isinstance(root, HfHubHTTPError) else 0
    template = next((text for kind, text in _BY_TYPE if isinstance(root, kind)), None) or _BY_STATUS.get(status)
    if template is None and status >= 500:
        template = "the Hub has a fault of its own ({error}). Wait a little, then try again."
    template = template or "{error}. Try again."
    return template.format(repo=location.repo_id, revision=location.revision, error=_first_line(root))


def _root(error: BaseException) -> BaseException:
    # The client says "not in the cache" where the reason is one step behind: offline, refused, 401.
    while isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
