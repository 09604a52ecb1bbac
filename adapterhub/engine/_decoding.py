"""How one request chooses its tokens and when it ends, as transformers' own `generate` would build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerationMode

from adapterhub.errors import InputError

FinishReason = Literal["length", "stop", "eos", "cancelled"]

# What changes the inputs or the outputs of `generate` beyond one list of token ids.
_REFUSED = frozenset(
    (
        *("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "cache_params"),
        *("assistant_model", "assistant_tokenizer", "custom_generate", "synced_gpus", "streamer"),
        *("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
    )
)
_STEPWISE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_BY_GENERATE = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE, GenerationMode.ASSISTED_GENERATION)


@dataclass(frozen=True)
class Decoding:
    """What `generate` would do with the logits of one row.

    Args:
        processors: Applied to the float32 logits of each step.
        sample: Whether a token is drawn; otherwise the likeliest is taken.
        eos: Ids that end the row, themselves included.
        max_length: Prompt and new tokens in all.
        criteria: Whatever else ends a row: stop strings, time, the caller's own.
        alone: Whether one step a row is not enough (beams, several sequences, ...), so that `generate` runs it.
        seed: Where drawing begins.
    """

    processors: LogitsProcessorList
    sample: bool
    eos: frozenset[int]
    max_length: int
    criteria: tuple[Any, ...]
    alone: bool
    seed: int

    @property
    def plain(self) -> bool:
        """Whether the next token is the argmax of the logits as they are."""
        return not self.sample and not self.processors

    def end(self, token: int, length: int, ids: torch.Tensor | None) -> FinishReason | None:
        """Why a row ends with this token, or None where it goes on.

        Args:
            token: The token that was chosen.
            length: Tokens of the row, this one included.
            ids: (1, length), the row; read only where there are `criteria`.
        """
        if token in self.eos:
            return "eos"
        for criterion in self.criteria:
            if bool(criterion(ids, None)):
                return "length" if isinstance(criterion, MaxTimeCriteria) else "stop"
        return "length" if length >= self.max_length else None


def decoding(
    model: PreTrainedModel,
    ids: torch.Tensor,
    *,
    stop_strings: str | Sequence[str] | None,
    tokenizer: Any,
    seed: int | None,
    options: Mapping[str, Any],
) -> Decoding:
    """Let `generate` itself prepare one row: its defaults, its checks, its processors and criteria, but no pass.

    Args:
        model: The base.
        ids: (1, T), int64.
        stop_strings: Strings that end the row, in place of those of the generation config.
        tokenizer: The base's tokenizer, which stop strings need.
        seed: Where drawing begins; None takes it from torch's global generator.
        options: What `generate` takes.

    Raises:
        InputError: If an option is not one of `generate`, or asks for more than a list of token ids.
    """
    _check_options(options)
    given = {**options, "stop_strings": None, "stopping_criteria": _criteria(model, stop_strings, tokenizer, options)}

    def prepared(
        *_: Any, logits_processor: Any, stopping_criteria: Any, generation_config: GenerationConfig, **__: Any
    ) -> Decoding:
        return _decoding(logits_processor, stopping_criteria, generation_config, seed)

    try:
        # A mask of ones: without it, prompt tokens equal to the padding token would be taken for padding.
        result = model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=prepared, **given)
    except (ValueError, TypeError) as error:
        raise InputError(f"Generation options should be ones that `generate` takes. Found a fault: {error}") from error
    assert isinstance(result, Decoding)
    return result


def _decoding(
    processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig, seed: int | None
) -> Decoding:
    mode = config.get_generation_mode()
    if mode not in _STEPWISE + _BY_GENERATE:
        raise ValueError(f"{mode.value} needs code from the Hub. Choose greedy search, sampling or beams.")
    eos = [c.eos_token_id for c in criteria if isinstance(c, EosTokenCriteria)]
    lengths = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    return Decoding(
        processors=processors,
        sample=bool(config.do_sample),
        eos=frozenset(token for ids in eos for token in ids.tolist()),
        max_length=min(lengths),
        criteria=tuple(c for c in criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)),
        alone=_alone(mode, config),
        seed=int(torch.randint(2**62, ())) if seed is None and config.do_sample else seed or 0,
    )


def _alone(mode: GenerationMode, config: GenerationConfig) -> bool:
    return (
        mode not in _STEPWISE
        or (config.num_return_sequences or 1) > 1
        or config.guidance_scale not in {None, 1}  # its processor runs the model
        or config.use_cache is False
        or config.cache_implementation is not None
        or config.prefill_chunk_size is not None
        or bool(config.token_healing)
    )


def _criteria(
    model: PreTrainedModel, stops: str | Sequence[str] | None, tokenizer: Any, options: Mapping[str, Any]
) -> StoppingCriteriaList:
    """The caller's criteria, and that of stop strings: `generate` drops the tokenizer beside a custom function."""
    found = StoppingCriteriaList(options.get("stopping_criteria") or [])
    stops = stops or (options.get("generation_config") or model.generation_config).stop_strings
    if stops and tokenizer is None:
        raise InputError(
            f"Stop strings are matched by the base's tokenizer. Found {stops!r} and no tokenizer. Pass `tokenizer=`."
        )
    if stops:
        found.append(StopStringCriteria(tokenizer, stops if isinstance(stops, str) else list(stops)))
    return found


def _check_options(options: Mapping[str, Any]) -> None:
    refused = sorted(_REFUSED & options.keys())
    if refused:
        raise InputError(
            f"A request takes token ids and gives token ids. Found {', '.join(refused)}. Iterate over the generation "
            "for its tokens as they come, or call `Engine.generate`."
        )
