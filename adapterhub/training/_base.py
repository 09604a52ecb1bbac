"""Loading base models: one set of backbone weights for all tasks of a fit, whatever their heads."""

from __future__ import annotations

import json
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

from adapterhub.adapter import BaseSignature, describe_base
from adapterhub.errors import InputError
from adapterhub.training._quantised import (
    check_quantisation,
    describe_float,
    holds_plain_weights,
    keep_differentiable,
    quantising,
    quietly,
)

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
    """Base models in float32, loaded once; models with different heads share the backbone's tensors.

    A base may be quantised while it is loaded. Its linear modules are then shared whole, because what a quantiser
    keeps beside the weights lies in them; embeddings, normalisations and heads stay in float32.

    Args:
        quantization_config: A configuration of transformers' quantisers; None leaves the weights as they are.

    Raises:
        InputError: If it is something else.
    """

    def __init__(self, quantization_config: Any = None) -> None:
        check_quantisation(quantization_config)
        self._quantisation = quantization_config
        self._models: dict[tuple[str, str, int, str], PreTrainedModel] = {}
        self._tensors: dict[str, dict[str, nn.Parameter]] = {}
        self._modules: dict[str, dict[str, nn.Module]] = {}
        self._signatures: dict[tuple[str, type[PreTrainedModel]], BaseSignature] = {}

    def load(self, path: str, head: str, labels: int, pad_token_id: int, owner: str = "") -> PreTrainedModel:
        """The base with a fresh head.

        Args:
            path: Id or folder.
            head: The card's head.
            labels: Outputs of the head; 0 for generation.
            pad_token_id: The padding token, by which decoders find a text's last token.
            owner: Whose modules these are; models of two owners share tensors and quantised modules, but neither other
                modules nor heads.

        Returns:
            The model in evaluation mode: its dropout stays off while adapters train.

        Raises:
            InputError: If the base is missing, lacks weights, has a head that is not one linear layer in floating
                point, or cannot be quantised here.
            MissingExtraError: If what quantises it is not installed.
        """
        key = (path, _AUTO[head].__name__, labels, owner)
        if key not in self._models:
            model = _load(path, head, labels, self._quantisation)
            model.config.pad_token_id = pad_token_id
            self._share(path, model)
            if self._quantisation is not None:
                keep_differentiable(model)
            self._models[key] = model.eval()
        return self._models[key]

    def signature(self, path: str, model: PreTrainedModel) -> BaseSignature:
        """What adapters that are trained on a base are sealed to: the base in floating point.

        Args:
            path: Id or folder.
            model: What `load` gave for it, without adapters.

        Raises:
            InputError: If the base was to be quantised though its files are.
        """
        if self._quantisation is None:
            return describe_base(model, base_id(path))
        key = (path, type(model))
        if key not in self._signatures:
            self._signatures[key] = describe_float(path, type(model), base_id(path))
        return self._signatures[key]

    def _share(self, path: str, model: PreTrainedModel) -> None:
        known = self._modules.setdefault(path, {})
        for name, module in list(model.base_model.named_modules()):
            if name and not holds_plain_weights(module):
                model.base_model.set_submodule(name, known.setdefault(name, module))
        own = dict(model.base_model.named_parameters())
        shared = self._tensors.setdefault(path, own)
        for name, parameter in own.items():
            if name not in shared:
                shared[name] = parameter
            elif shared[name] is not parameter:
                parameter.data = shared[name].data


def _load(path: str, head: str, labels: int, quantisation: Any) -> PreTrainedModel:
    extra = {"num_labels": labels} if labels else {}
    try:
        with quietly(), quantising(quantisation) as how:
            model, report = _AUTO[head].from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **extra, **how
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"Base model {path} cannot be loaded for {head} ({_first_line(error)}). Check `base_model` in the card."
        ) from error
    missing = sorted(name for name in report["missing_keys"] if name.split(".")[0] not in HEADS)
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(f"Base model {path} needs trained weights for {head}. It lacks {names}. Choose another base.")
    if labels:
        _check_head(model)
    return model


def _check_head(model: PreTrainedModel) -> None:
    """Raise InputError where a model's head is not one linear layer that can be trained."""
    heads = {name: getattr(model, name) for name in HEADS if isinstance(getattr(model, name, None), nn.Linear)}
    if not heads:
        raise InputError(
            f"A head is one linear layer named {' or '.join(HEADS)}. {type(model).__name__} has none. Change the base."
        )
    for name, head in heads.items():
        if not holds_plain_weights(head):
            raise InputError(
                f"A head is trained in floating point. Found `{name}` quantised. Name it in the quantisation "
                "configuration as a module to skip."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
