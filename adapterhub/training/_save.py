"""Writing a trained adapter as a plain PEFT folder, byte for byte the same for the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from adapterhub.adapter import BaseSignature, seal
from adapterhub.training._base import HEADS
from adapterhub.training._disk import writing

__all__ = ["save_adapter"]


def save_adapter(
    model: Any, folder: Path, base: BaseSignature, *, stack: Mapping[str, str] | None = None, head_scale: float = 1.0
) -> str:
    """Write `adapter_config.json` and `adapter_model.safetensors` and seal the folder to its base.

    Args:
        model: The PEFT model with its adapter `default`.
        folder: A new folder.
        base: The base that the adapter was trained on.
        stack: The adapters that lay under it, from the lowest up: content hash by task.
        head_scale: Factor on the head's weights, by which a head that learned scaled values gives plain ones.

    Returns:
        The folder's content hash.

    Raises:
        IntegrityError: If the disk is full; nothing of the folder is left.
    """
    folder.mkdir(parents=True)
    with writing(folder, "Nothing of it is left. Free space, then train again: with resume=True, from the checkpoint."):
        return _write(model, folder, base, stack, head_scale)


def _write(model: Any, folder: Path, base: BaseSignature, stack: Mapping[str, str] | None, head_scale: float) -> str:
    tensors = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    tensors = {
        name: (tensor * head_scale if _of_head(name) else tensor).detach().to("cpu", torch.float32).contiguous()
        for name, tensor in tensors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    fields = _canonical(model.peft_config["default"]) | {
        "base_model_name_or_path": base.model_id,
        "inference_mode": True,
    }
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return seal(folder, base, stack)


def _of_head(name: str) -> bool:
    return name.split(".")[-2] in HEADS


def _canonical(config: PeftConfig) -> dict[str, object]:
    """The configuration with its sets sorted: PEFT writes them in the order of the process's hash seed."""
    return {
        name: sorted(set(value)) if isinstance(value, set) or (name == "modules_to_save" and value) else value
        for name, value in config.to_dict().items()
    }
