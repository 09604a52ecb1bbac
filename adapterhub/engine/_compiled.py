"""Greedy generation by a compiled decoding step, which stays compiled while routes change."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from adapterhub.adapter import plain_copy
from adapterhub.engine._arena import Arena
from adapterhub.engine._backbone import Backbone
from adapterhub.engine._batch import Batch, check_batch, check_new_tokens
from adapterhub.engine._decoding import Decoding, decoding
from adapterhub.engine._frame import Frame
from adapterhub.engine._heads import check_headless, first_heads
from adapterhub.engine._tiers import Tiers
from adapterhub.errors import InputError
from adapterhub.route import Route

__all__ = ["Compiled"]

# Shapes of the frame that torch may keep; its own default, 8, is meant for shapes that never end.
_SHAPES = 64


class Compiled:
    """Decodes batches of at most `rows` rows through one compiled graph.

    The adapters of a batch are copied into a frame of tensors that the graph reads, so another route is another copy.
    More ranks a row than before (in steps of a third to a half) and the first adapter with another kind of part are
    compiled when they first come. Prompts are read by the engine as ever. Calls from several threads take turns.

    Args:
        tiers: Where adapters come from.
        arena: Where they are held.
        backbone: The base.
        rows: Rows of the graph; smaller batches are filled up.
        ranks: Ranks a row of the first graph, all of which every step computes: those of its adapters together.
        context: Tokens of prompt and answer in all, all of which every step attends to: keep it small.
        **options: What `torch.compile` takes: `mode`, `backend`, ...

    Raises:
        InputError: If a number is out of its range, or the base keeps no plain cache of keys and values.
    """

    def __init__(
        self,
        tiers: Tiers,
        arena: Arena,
        backbone: Backbone,
        *,
        rows: int = 16,
        ranks: int = 8,
        context: int = 512,
        **options: Any,
    ) -> None:
        _check_sizes({"rows": rows, "ranks": ranks, "context": context}, backbone.context)
        _check_model(backbone.model)
        self._tiers, self._arena, self._backbone = tiers, arena, backbone
        self._rows, self._context = rows, context
        model, twins = plain_copy(backbone.model, shared=True)
        self._frame = Frame(lambda name: twins[id(backbone.module(name))], rows, ranks)
        self._cache = _static_cache(model, context)
        self._step = torch.compile(_Step(model, self._cache), **{"fullgraph": True, "dynamic": False, **options})
        self._mask = torch.zeros(rows, context, dtype=torch.long, device=backbone.device)
        self._lock = threading.Lock()

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route], **generation: Any
    ) -> torch.Tensor:
        """Continue every row under its own route, greedily.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), as in `Engine.forward`.
            routes: One a row.
            **generation: What `Engine.generate` takes, as far as the tokens are the likeliest ones, one after another.

        Returns:
            (rows, T + new), int64: the `sequences` of `Engine.generate`, its prompts padded on the left.

        Raises:
            InputError: If the batch breaks a rule, has more rows or tokens than the graph, or asks for more than greedy
                tokens; if the base's forward is no single graph, or it cannot be compiled here.
            CapacityError: If the adapters of the batch have more ranks than the arena.
        """
        batch, goal = self._checked(input_ids, attention_mask, routes, generation)
        pad = _padding(self._backbone.model, generation)
        names = dict.fromkeys(name for route in routes for name in route.adapters)
        with self._lock, self._tiers.acquire(names), torch.no_grad():
            check_headless(first_heads(self._arena, routes))
            first = self._prefill(batch, routes)
            filled = [*routes, *[Route()] * (self._rows - len(routes))]
            self._frame.write(self._arena.complete(self._arena.plan(filled)))
            return torch.cat([batch.input_ids, self._continued(batch, first, goal, pad)], dim=1)

    def _checked(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route], generation: dict[str, Any]
    ) -> tuple[Batch, Decoding]:
        base = self._backbone
        batch = check_batch(input_ids, attention_mask, routes, vocabulary=base.vocabulary, context=base.context)
        batch = base.prompt(Batch(batch.input_ids.to(base.device), batch.attention_mask.to(base.device)))
        if len(routes) > self._rows:
            raise InputError(
                f"The compiled step has {self._rows} rows. Found {len(routes)}. Split the batch, or compile for more."
            )
        goal = decoding(base.model, batch.input_ids[:1], stop_strings=None, tokenizer=None, seed=0, options=generation)
        if not goal.plain or goal.alone or goal.criteria:
            raise InputError(
                "A compiled step takes the likeliest token. Found options that choose or end otherwise: "
                f"{', '.join(sorted(generation)) or 'the generation config'}. Call `Engine.generate`."
            )
        check_new_tokens(batch.width, goal.max_length - batch.width, self._context)
        return batch, goal

    def _prefill(self, batch: Batch, routes: Sequence[Route]) -> torch.Tensor:
        """Read the prompts into the cache; their next tokens, (rows,)."""
        model, width = self._backbone.model, batch.width
        positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        with self._arena.running(self._arena.plan(routes)):
            output = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=True,
                **_known(model, position_ids=positions, logits_to_keep=1),
            )
        _fill(self._cache, output.past_key_values, self._rows, width)
        self._mask.zero_()
        self._mask[: len(positions), :width] = batch.attention_mask
        tokens: torch.Tensor = output.logits[:, -1].argmax(dim=-1)
        return tokens

    def _continued(self, batch: Batch, tokens: torch.Tensor, goal: Decoding, pad: int) -> torch.Tensor:
        """All new tokens, (rows, new), the first ones known; rows that have ended go on as padding."""
        count, width = len(tokens), batch.width
        eos = torch.tensor(sorted(goal.eos), device=tokens.device)
        ended = torch.isin(tokens, eos)
        found = [tokens]
        ids, positions = (tokens.new_zeros(self._rows, 1) for _ in range(2))
        positions[:count] = batch.lengths[:, None]
        for column in range(width, goal.max_length - 1):
            if bool(ended.all()):
                break
            ids[:count, 0] = tokens
            self._mask[:, column] = 1
            tokens = self._stepped(ids, positions)[:count].masked_fill(ended, pad)
            ended = ended | torch.isin(tokens, eos)
            positions += 1
            found.append(tokens)
        return torch.stack(found, dim=1)

    def _stepped(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        try:
            with torch._dynamo.config.patch(recompile_limit=_SHAPES):
                tokens: torch.Tensor = self._step(ids, positions, self._mask)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"The decoding step of {type(self._backbone.model).__name__} should compile as one graph. Found: "
                f"{reason}. Install a C++ compiler if it is missing, pass another `backend`, or call `Engine.generate`."
            ) from error
        return tokens


class _Step:
    """One token further in every row; what `torch.compile` sees."""

    def __init__(self, model: PreTrainedModel, cache: StaticCache) -> None:
        self._model, self._cache = model, cache
        self._positions = "position_ids" in inspect.signature(model.forward).parameters

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The likeliest next tokens, (rows,).

        Args:
            ids: (rows, 1).
            positions: (rows, 1).
            mask: (rows, context), one for columns that a row sees.
        """
        more = {"position_ids": positions} if self._positions else {}
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **more)
        tokens: torch.Tensor = output.logits[:, -1].argmax(dim=-1)
        return tokens


def _known(model: PreTrainedModel, **inputs: Any) -> dict[str, Any]:
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _fill(cache: StaticCache, prompt: DynamicCache, rows: int, width: int) -> None:
    """Put the prompts' keys and values into the first columns of the first rows."""
    for held, new in zip(cache.layers, prompt.layers, strict=True):
        assert isinstance(new, DynamicLayer)
        if not held.is_initialized:
            held.lazy_initialization(*(v.new_empty(rows, v.shape[1], 0, v.shape[3]) for v in (new.keys, new.values)))
        held.cumulative_length.fill_(width)
        for columns, prompts in ((held.keys, new.keys), (held.values, new.values)):
            columns.zero_()  # what overflowed in a batch before would come through the mask as NaN
            columns[: len(prompts), :, :width] = prompts


def _static_cache(model: PreTrainedModel, context: int) -> StaticCache:
    cache = StaticCache(config=model.config, max_cache_len=context)
    kinds = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not StaticLayer})
    if kinds:
        raise InputError(
            f"A compiled step keeps keys and values of all tokens. Found {', '.join(kinds)} in {type(model).__name__}. "
            "Call `Engine.generate`."
        )
    return cache


def _padding(model: PreTrainedModel, generation: dict[str, Any]) -> int:
    """What stands behind the end of a row, as `generate` takes it."""
    config = generation.get("generation_config") or model.generation_config
    pad, eos = (generation.get(name, getattr(config, name)) for name in ("pad_token_id", "eos_token_id"))
    found = pad if pad is not None else eos
    return int(found[0]) if isinstance(found, list) else int(found or 0)


def _check_sizes(sizes: dict[str, int], limit: int | None) -> None:
    faults = [f"{name} should be at least 1. Found {value}." for name, value in sizes.items() if value < 1]
    if limit is not None and sizes["context"] > limit:
        faults.append(f"context should be at most the base's, {limit}. Found {sizes['context']}.")
    if faults:
        raise InputError("\n".join([*faults, "Leave the argument out, or choose one in its range."]))


def _check_model(model: PreTrainedModel) -> None:
    names = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder or not model.can_generate() or "past_key_values" not in names:
        raise InputError(
            f"A compiled step needs a decoder with an LM head and a cache of keys and values. Found "
            f"{type(model).__name__}. Call `Engine.forward` or `Engine.generate`."
        )
    if not all(value.is_floating_point() for value in model.parameters()):
        raise InputError(
            f"A compiled step needs weights that torch itself can multiply. Found quantised ones in "
            f"{type(model).__name__}. Call `Engine.generate`."
        )
