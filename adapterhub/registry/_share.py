"""A task of a registry, put on the Hugging Face Hub as a plain PEFT repository."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from adapterhub.errors import InputError
from adapterhub.hub import HubLocation, model_card, push
from adapterhub.registry._registry import Registry
from adapterhub.task import CARD, write_card

__all__ = ["push_task"]


def push_task(registry: Registry, name: str, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Push a task to the Hub: its adapter's files, its card complete with what it inherits, and a model card.

    Args:
        registry: Where the task is.
        name: Its name, which is also its folder in the repository.
        repo_id: `org/name`; created if it does not exist.
        private: Create it as private.
        token: Access token; by default the stored one.

    Returns:
        The pinned address, `hf://org/name@<commit>/<task>`.

    Raises:
        TaskNotFoundError: If there is no such task.
        InputError: If it has no adapter.
        HubError: If the Hub refuses or cannot be reached.
    """
    task = registry[name]
    adapter = registry.adapter_path(name)
    if adapter is None:
        raise InputError(f"What is pushed is an adapter. {name!r} has none. Train it: adapterhub train {name}")
    base_model = str(json.loads((adapter / "adapterhub.json").read_text(encoding="utf-8"))["base_model"])
    # Place and hash belong to this registry; the one that pulls gives its own.
    told = dataclasses.replace(task, adapter=None, sha256=None, base_model=base_model)
    with tempfile.TemporaryDirectory(prefix="adapterhub-push-") as temporary:
        folder = Path(temporary)
        for file in ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json"):
            shutil.copyfile(adapter / file, folder / file)
        write_card(folder / CARD, told)
        card = model_card(told, repo_id=repo_id, path_in_repo=name)
        commit = push(folder, repo_id, path_in_repo=name, card=card, private=private, token=token)
    return HubLocation(repo_id, commit, name).url
