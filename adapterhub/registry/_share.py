"""A task of a registry, put on the Hugging Face Hub as a plain PEFT repository."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from adapterhub.errors import InputError, IntegrityError
from adapterhub.hub import HubLocation, model_card, push
from adapterhub.registry._files import adapter_faults, hash_of
from adapterhub.registry._registry import Registry
from adapterhub.task import CARD, write_card

__all__ = ["push_task"]

_WEIGHTS = "adapter_model.safetensors"


def push_task(
    registry: Registry,
    name: str,
    repo_id: str,
    *,
    adapter: Path | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Push a task to the Hub: its adapter's files, its card complete with what it inherits, and a model card.

    Args:
        registry: Where the task is.
        name: Its name, which is also its folder in the repository.
        repo_id: `org/name`; created if it does not exist.
        adapter: A sealed folder to push in place of the task's own, such as one that `quantise` made of it. What was
            measured of the task's own adapter is then left out.
        private: Create it as private.
        token: Access token; by default the stored one.

    Returns:
        The pinned address, `hf://org/name@<commit>/<task>`.

    Raises:
        TaskNotFoundError: If there is no such task.
        InputError: If it has no adapter.
        IntegrityError: If the adapter's files are not the ones that were sealed.
        HubError: If the Hub refuses or cannot be reached.
    """
    task = registry[name]
    own = registry.adapter_path(name)
    if own is None:
        raise InputError(f"What is pushed is an adapter. {name!r} has none. Train it: adapterhub train {name}")
    source = own if adapter is None else adapter
    faults = adapter_faults(source, task.sha256 if adapter is None else None)
    if faults:
        raise IntegrityError(f"{name}: what is pushed is whole. {' '.join(faults)}")
    base_model = str(json.loads((source / "adapterhub.json").read_text(encoding="utf-8"))["base_model"])
    # Place and hash belong to this registry; the one that pulls gives its own.
    told = dataclasses.replace(task, adapter=None, sha256=None, base_model=base_model)
    if adapter is not None and hash_of(adapter) != task.sha256:
        told = dataclasses.replace(told, metrics={})
    with tempfile.TemporaryDirectory(prefix="adapterhub-push-") as temporary:
        folder = Path(temporary)
        for file in ("adapter_config.json", _WEIGHTS, "adapterhub.json"):
            shutil.copyfile(source / file, folder / file)
        write_card(folder / CARD, told)
        card = model_card(told, repo_id=repo_id, path_in_repo=name, int8=_is_int8(folder))
        commit = push(folder, repo_id, path_in_repo=name, card=card, private=private, token=token)
    return HubLocation(repo_id, commit, name).url


def _is_int8(folder: Path) -> bool:
    """Whether a folder's tensors are int8, which PEFT refuses; a file that is no safetensors is told by `push`."""
    try:
        with safe_open(folder / _WEIGHTS, framework="np") as file:
            return any(file.get_slice(key).get_dtype() == "I8" for key in file.keys())  # noqa: SIM118
    except SafetensorError:
        return False
