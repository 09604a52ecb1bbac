"""Find and load a frozen base model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import adapterhub
from adapterhub.errors import InputError
from adapterhub.training import is_decoder, load_tokenizer

__all__ = ["bundled_registry", "load_base"]


def bundled_registry() -> Path:
    """Folder of the registry that comes with the package: inside the wheel, or beside the package in a checkout.

    Raises:
        InputError: If neither folder exists.
    """
    package = Path(adapterhub.__file__).parent
    for folder in (package / "_registry", package.parent / "registry"):
        if (folder / "_group.yaml").is_file():
            return folder
    raise InputError(f"The bundled registry should lie in {package / '_registry'}. Found none. Reinstall adapterhub.")


def load_base(base: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer, frozen and in evaluation mode.

    Decoders come with their language-model head, encoders as the bare backbone.

    Args:
        base: Folder, or id on the Hugging Face Hub.
        dtype: Type of the weights in memory.

    Raises:
        InputError: If there is no model under that name.
    """
    try:
        config = AutoConfig.from_pretrained(base)
        loader = AutoModelForCausalLM if is_decoder(config) else AutoModel
        model = loader.from_pretrained(base, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"A base model is a folder or a Hub id. Found {str(base)!r}, which did not load: {reason} "
            "Check the name, or go online once so that it can be downloaded."
        ) from error
    model.requires_grad_(False)
    return cast("PreTrainedModel", model.eval()), cast("PreTrainedTokenizerBase", load_tokenizer(str(base)))
