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
        hidden: (rows, T, hidden), the last hidden states of the backbone, or of the encoder where there is also a
            decoder; real tokens begin at 0.
        pooled: (rows, hidden), the pooler's output, or None where the base has none.
        logits: (rows, T, vocabulary) of the LM head, or None where it was not asked. An encoder-decoder's are at the
            tokens of its decoder.
        decoded: Whether the logits are at a decoder's own tokens, which are not the batch's.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None
    logits: torch.Tensor | None
    decoded: bool = False


class _Pass(threading.local):
    """Where the backbone's output goes in the thread that waits for it."""

    wanted: bool = False
    output: Any = None


class Backbone:
    """A decoder, an encoder or an encoder-decoder of transformers, in evaluation mode.

    Args:
        model: The model, with or without an LM head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        self.causal = not self.encoder_decoder and _is_causal(model)
        self.context = _context(model)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._body: nn.Module = model.base_model
        self._pass = _Pass()
        # Some language models (OPT) go past their body, to the decoder inside.
        source = model.base_model.get_decoder() if self.causal else self._body
        self._hook = source.register_forward_hook(self._keep)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self.model.device
        return device

    @property
    def has_lm_head(self) -> bool:
        """Whether the model turns hidden states into token logits."""
        return self.model.get_output_embeddings() is not None

    def check_generates(self) -> None:
        """Raise InputError where the base does not generate."""
        if not self.model.can_generate():
            raise InputError(
                f"Only a base with an LM head generates. Found {type(self.model).__name__}. Load it as a causal "
                "language model, or call `forward`."
            )

    def module(self, name: str) -> nn.Module:
        """The module of a backbone-relative name, or the LM head."""
        return getattr(self.model, name) if name == "lm_head" else self._body.get_submodule(name)

    def prompt(self, batch: Batch) -> Batch:
        """A batch in the form that `generate` takes: what is continued is padded on the left, what is encoded is not.

        A decoder's new tokens follow the last column. An encoder's positions may be counted from the first one.
        """
        return batch.left() if self.encoder_decoder else batch.right()

    def prompt_tokens(self, batch: Batch) -> int:
        """Places of the context that a prompt takes before the first new token; a decoder of its own has its start."""
        return 1 if self.encoder_decoder else batch.width

    def states(self, batch: Batch, *, lm: bool, decoder_input_ids: torch.Tensor | None = None) -> States:
        """Run the base once, through its LM head where `lm` asks for it.

        The model's own forward makes the logits, with whatever it does behind the head (caps, scales). An
        encoder-decoder's decoder runs for the LM head alone.

        Args:
            batch: The rows.
            lm: Whether the LM head is asked.
            decoder_input_ids: (rows, n), what the decoder of an encoder-decoder has read; the padding, which changes
                nothing before it, stands at the end. By default its start token alone.

        Raises:
            InputError: If `decoder_input_ids` break a rule, or were given to a base without a decoder of its own.
        """
        left = batch.left()
        inputs: dict[str, Any] = {"input_ids": left.input_ids, "attention_mask": left.attention_mask}
        if self.encoder_decoder:
            decoded = self._decoder_inputs(len(left.input_ids), decoder_input_ids)
            return self._encoded(inputs, decoded if lm else None)
        if decoder_input_ids is not None:
            raise InputError(
                f"Only an encoder-decoder takes decoder_input_ids. Found {type(self.model).__name__}. Leave them out."
            )
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

    def _encoded(self, inputs: dict[str, Any], decoded: torch.Tensor | None) -> States:
        """One pass of an encoder-decoder, of the encoder alone without `decoded`."""
        if decoded is None:
            return States(self.model.get_encoder()(**inputs).last_hidden_state, None, None)
        output = self.model(**inputs, decoder_input_ids=decoded, use_cache=False)
        return States(output.encoder_last_hidden_state, None, output.logits, decoded=True)

    def _decoder_inputs(self, rows: int, given: torch.Tensor | None) -> torch.Tensor:
        """What the decoder reads, (rows, n), int64."""
        if given is None:
            return torch.full((rows, 1), self._decoder_start(), device=self.device)
        if given.ndim != 2 or len(given) != rows or not given.shape[1]:
            raise InputError(
                f"decoder_input_ids should be (rows, tokens), with the batch's {rows} rows and at least one token. "
                f"Found {tuple(given.shape)}. Leave them out to begin with the decoder's start token."
            )
        faults = []
        if self.context is not None and given.shape[1] > self.context:
            faults.append(
                f"The decoder reads at most {self.context} tokens. Found {given.shape[1]}. Shorten decoder_input_ids."
            )
        low, high = (int(extreme) for extreme in given.aminmax())
        if low < 0 or high >= self.vocabulary:
            faults.append(
                f"An id in decoder_input_ids should be from 0 to {self.vocabulary - 1}. "
                f"Found {low if low < 0 else high}. Use the base's own tokenizer."
            )
        if faults:
            raise InputError("\n".join(faults))
        return given.long().to(self.device)

    def _decoder_start(self) -> int:
        for name in ("decoder_start_token_id", "bos_token_id"):
            for config in (self.model.generation_config, self.model.config):
                found = getattr(config, name, None)
                if isinstance(found, int):
                    return found
        raise InputError(
            f"A decoder begins with a start token. Found no decoder_start_token_id in the configuration of "
            f"{type(self.model).__name__}. Pass `decoder_input_ids`."
        )

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
