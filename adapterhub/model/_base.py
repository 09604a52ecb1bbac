"""Find and load a frozen base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from adapterhub.errors import InputError
from adapterhub.registry import Registry
from adapterhub.training import check_quantisation, is_decoder, load_tokenizer, quantising

__all__ = ["load_base", "only_base"]


def load_base(
    base: str | Path, dtype: torch.dtype = torch.float32, quantization_config: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer, frozen and in evaluation mode.

    Decoders come with their language-model head, encoders as the bare backbone.

    Args:
        base: Folder, or id on the Hugging Face Hub.
        dtype: Type of the weights in memory, of those that are not quantised.
        quantization_config: A configuration of transformers' quantisers, or None.

    Raises:
        InputError: If there is no model under that name, or it cannot be quantised here.
        MissingExtraError: If what quantises it is not installed.
    """
    check_quantisation(quantization_config)
    try:
        config = AutoConfig.from_pretrained(base)
        loader = AutoModelForCausalLM if is_decoder(config) else AutoModel
        with _without_bar(), quantising(quantization_config) as how:
            model = loader.from_pretrained(base, dtype=dtype, use_safetensors=True, **how)
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"A base model is a folder or a Hub id. Found {str(base)!r}, which did not load: {reason} "
            "Check the name; restore a folder from a copy; go online once to download an id."
        ) from error
    model.requires_grad_(False)
    return cast("PreTrainedModel", model.eval()), cast("PreTrainedTokenizerBase", load_tokenizer(str(base)))


@contextmanager
def _without_bar() -> Iterator[None]:
    """No bar on standard error while tensors are read: it belongs to whoever calls."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def only_base(registry: Registry) -> str:
    """The base that all tasks with an adapter share; a card without one does not answer, so it has no say."""
    bases = registry.bases()
    if len(bases) != 1 or not bases[0]:
        found = ", ".join(base or "a card without one" for base in bases) or "none"
        raise InputError(
            "Without `base`, all tasks with an adapter name the same `base_model`. "
            f"Found {found} in {registry.place}. Give `base`, or train a task first."
        )
    return bases[0]
