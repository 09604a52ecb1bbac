"""A task folder goes to the Hub in one commit."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

from adapterhub.errors import InputError
from adapterhub.hub._errors import hub_errors
from adapterhub.hub._files import task_files
from adapterhub.hub._urls import HubLocation, check_path, check_repo_id

__all__ = ["push"]

_REPLACED = ("adapterhub.json", "task.yaml")


def push(
    folder: Path,
    repo_id: str,
    *,
    path_in_repo: str = "",
    card: str = "",
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads a task folder in one commit; the repository is made if it does not exist.

    The result is a plain PEFT folder, so that `PeftModel.from_pretrained(base, repo_id, subfolder=path_in_repo)` loads
    it. The commit names the one it was built on, so that of two pushes at the same moment one is refused.

    Args:
        folder: A flat folder with `adapter_config.json` and `adapter_model.safetensors`; besides them only
            `*.safetensors`, `*.json`, `*.yaml` and `README.md`.
        repo_id: `org/repo`.
        path_in_repo: Folder inside the repository, usually the task's name; empty for its root.
        card: Text of the model card; empty to send the folder's own `README.md`, if it has one.
        private: Whether a new repository is private; an existing one stays as it is.
        token: Access token; by default the one of the environment or of the last login.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        InputError: If an argument or the folder's content is refused; then nothing was sent.
        HubError: If the Hub refuses, cannot be reached, or changed meanwhile; then no file was changed there.
    """
    location = HubLocation(check_repo_id(repo_id), path=check_path(path_in_repo))
    files: dict[str, Path | bytes] = dict(task_files(Path(folder)))
    if card:
        _check_card(card)
        files["README.md"] = card.encode()
    with hub_errors("push to", location):
        api = HfApi(token=token, library_name="adapterhub")
        api.create_repo(repo_id, private=private, exist_ok=True)
        parent = api.model_info(repo_id).sha
        operations = [CommitOperationAdd(_inside(location, name), content) for name, content in sorted(files.items())]
        stale = _stale(api, location, parent, files)
        commit = api.create_commit(
            repo_id,
            [*operations, *stale],
            commit_message=f"Push {location.path or 'an adapter'} with adapterhub",
            parent_commit=parent,
        )
    return commit.oid


def _check_card(card: str) -> None:
    try:
        ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"A model card begins with YAML between two lines `---`. Found: {' '.join(str(error).split())}. "
            "Correct the card; `model_card` writes one."
        ) from error


def _inside(location: HubLocation, name: str) -> str:
    return f"{location.path}/{name}" if location.path else name


def _stale(api: HfApi, location: HubLocation, parent: str | None, kept: Collection[str]) -> list[CommitOperationDelete]:
    """Deletions of our own files of an earlier push that this one lacks: they would describe other bytes."""
    gone = [_inside(location, name) for name in _REPLACED if name not in kept]
    if not gone or parent is None:
        return []
    return [CommitOperationDelete(found.path) for found in api.get_paths_info(location.repo_id, gone, revision=parent)]
