"""The base model as the engine sees it: modules by name, one pass for all heads, and its limits."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from adapterhub.engine._batch import Batch
from adapterhub.errors import InputError


class States(NamedTuple):
    """What one pass over a batch gave.

    Args:
        hidden: (rows, T, hidden), the backbone's last hidden states; real tokens begin at 0.
        pooled: (rows, hidden), the pooler's output, or None where the base has none.
        logits: (rows, T, vocabulary) of the LM head, or None where it was not asked.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None
    logits: torch.Tensor | None


class _Pass(threading.local):
    """Where the backbone's output goes in the thread that waits for it."""

    wanted: bool = False
    output: Any = None


class Backbone:
    """A decoder or an encoder of transformers, in evaluation mode.

    Args:
        model: The model, with or without an LM head.

    Raises:
        InputError: If the model is an encoder-decoder.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if model.config.is_encoder_decoder:
            raise InputError(
                f"A base should be a decoder or an encoder. Found {type(model).__name__}, which is both. "
                "Take another base."
            )
        self.model = model.eval()
        self.causal = _is_causal(model)
        self.context = _context(model)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._body: nn.Module = model.base_model
        self._pass = _Pass()
        self._hook = self._body.register_forward_hook(self._keep)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self.model.device
        return device

    @property
    def has_lm_head(self) -> bool:
        """Whether the model turns hidden states into token logits."""
        return self.model.get_output_embeddings() is not None

    def module(self, name: str) -> nn.Module:
        """The module of a backbone-relative name, or the LM head."""
        return getattr(self.model, name) if name == "lm_head" else self._body.get_submodule(name)

    def states(self, batch: Batch, *, lm: bool) -> States:
        """Run the base once, through its LM head where `lm` asks for it.

        The model's own forward makes the logits, with whatever it does behind the head (caps, scales).
        """
        left = batch.left()
        inputs: dict[str, Any] = {"input_ids": left.input_ids, "attention_mask": left.attention_mask}
        if self.causal:
            inputs["use_cache"] = False
        self._pass.wanted = True
        try:
            output = (self.model if lm else self._body)(**inputs)
            body = self._pass.output
        finally:
            self._pass.wanted, self._pass.output = False, None
        return States(body.last_hidden_state, getattr(body, "pooler_output", None), output.logits if lm else None)

    def close(self) -> None:
        """Take the hook off."""
        self._hook.remove()

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._pass.wanted:
            self._pass.output = output


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether tokens see only what is before them, so that the last one has read the whole text."""
    return bool(model.can_generate()) or any(getattr(module, "is_causal", False) is True for module in model.modules())


def _context(model: PreTrainedModel) -> int | None:
    """Largest number of tokens, or None where positions have no end."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # RoBERTa's positions begin behind the padding index.
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return limit if limit is None or padding is None else limit - padding - 1
