"""Loading base models: one set of backbone weights for all tasks of a fit, whatever their heads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging

from adapterhub.errors import InputError

__all__ = ["HEADS", "Bases", "base_id", "context_length", "is_decoder", "load_tokenizer"]

HEADS = ("score", "classifier")
"""Names under which transformers keeps a linear head."""

_AUTO = {
    "generation": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


def base_id(path: str) -> str:
    """The id under which adapters remember their base model.

    Args:
        path: A Hub id, or the folder of a base model.

    Returns:
        The Hub id as it is; for a folder the `id` in its `adapterhub.json`, else the folder's name.

    Raises:
        InputError: If the folder's `adapterhub.json` has no id.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    note = folder / "adapterhub.json"
    if not note.is_file():
        return folder.resolve().name
    try:
        found = json.loads(note.read_text(encoding="utf-8"))["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{note}: a base\'s note is JSON like {{"id": "org/name"}}. Found none. Correct it.'
        ) from error
    return str(found)


def is_decoder(config: Any) -> bool:
    """Whether a model of this configuration reads left to right: only a word's last token has then seen all of it."""
    kind = type(config)
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    return causal or bool(getattr(config, "is_decoder", False))


def context_length(config: Any, tokenizer: Any) -> int:
    """The most tokens that the base reads, from its configuration and its tokenizer."""
    sizes = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    found = [size for size in sizes if isinstance(size, int) and size > 0]
    return min([*found, int(tokenizer.model_max_length)])


def load_tokenizer(path: str) -> Any:
    """The base's fast tokenizer, with a padding token.

    Raises:
        InputError: If there is none, or if it has neither a padding nor an end token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"The tokenizer of base model {path} cannot be loaded ({_first_line(error)}).") from error
    if not tokenizer.is_fast:
        raise InputError(f"Training needs a fast tokenizer. Found {type(tokenizer).__name__}. Save a tokenizer.json.")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"The tokenizer of {path} needs a padding or an end token. Found neither. Set `pad_token`."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class Bases:
    """Base models in float32, loaded once; models with different heads share the backbone's tensors."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str, int, str], PreTrainedModel] = {}
        self._tensors: dict[str, dict[str, nn.Parameter]] = {}

    def load(self, path: str, head: str, labels: int, pad_token_id: int, owner: str = "") -> PreTrainedModel:
        """The base with a fresh head.

        Args:
            path: Id or folder.
            head: The card's head.
            labels: Outputs of the head; 0 for generation.
            pad_token_id: The padding token, by which decoders find a text's last token.
            owner: Whose modules these are; models of two owners share tensors, but neither modules nor heads.

        Returns:
            The model in evaluation mode: its dropout stays off while adapters train.

        Raises:
            InputError: If the base is missing, lacks weights, or has a head that is not one linear layer.
        """
        key = (path, _AUTO[head].__name__, labels, owner)
        if key not in self._models:
            model = _load(path, head, labels)
            model.config.pad_token_id = pad_token_id
            self._share(path, model)
            self._models[key] = model.eval()
        return self._models[key]

    def _share(self, path: str, model: PreTrainedModel) -> None:
        own = dict(model.base_model.named_parameters())
        shared = self._tensors.setdefault(path, own)
        for name, parameter in own.items():
            if name in shared:
                parameter.data = shared[name].data
            else:
                shared[name] = parameter


def _load(path: str, head: str, labels: int) -> PreTrainedModel:
    extra = {"num_labels": labels} if labels else {}
    try:
        with _quiet():
            model, report = _AUTO[head].from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **extra
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"Base model {path} cannot be loaded for {head} ({_first_line(error)}). Check `base_model` in the card."
        ) from error
    missing = sorted(name for name in report["missing_keys"] if name.split(".")[0] not in HEADS)
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(f"Base model {path} needs trained weights for {head}. It lacks {names}. Choose another base.")
    if labels and not any(isinstance(getattr(model, name, None), nn.Linear) for name in HEADS):
        raise InputError(
            f"A head is one linear layer named {' or '.join(HEADS)}. {type(model).__name__} has none. Change the base."
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and no report on the fresh head: what is missing is checked here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
