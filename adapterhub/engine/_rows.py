"""The running rows as tensors: prefill, one decoding step for all, joining and leaving. It never sees a queue."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from adapterhub.engine._arena import Arena
from adapterhub.engine._cache import CachedRows, check_cache, gather, is_masked, is_recurrent
from adapterhub.engine._plan import Plan
from adapterhub.engine._requests import Request
from adapterhub.errors import InputError

__all__ = ["Prefilled", "RunningRows", "generate_alone"]


@dataclass(frozen=True)
class Prefilled:
    """RunningRows that were read together.

    Args:
        requests: One a row.
        logits: (rows, vocabulary), of each row's last token.
        cache: Its columns are aligned on the right.
        width: Columns, padding included.
    """

    requests: tuple[Request, ...]
    logits: torch.Tensor
    cache: DynamicCache
    width: int


class RunningRows:
    """RunningRows that decode together, each at its own position, under one plan.

    Args:
        model: The base.
        arena: Where the adapters of all rows are held.

    Raises:
        InputError: If the base keeps no cache that rows can join and leave.
    """

    def __init__(self, model: PreTrainedModel, arena: Arena) -> None:
        self._arena = arena
        self._model = _Model(model)
        self.requests: tuple[Request, ...] = ()
        self._cache: DynamicCache | None = None
        self._length = 0  # columns of the cache
        self._padding = torch.zeros(0, dtype=torch.long)  # (rows, 1), columns before a row's first token
        self._plan: Plan | None = None

    @torch.no_grad()
    def prefill(self, requests: Sequence[Request]) -> list[Prefilled]:
        """Read the prompts of new rows, padded on the left; those that are running wait meanwhile."""
        groups: dict[int, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.ids.shape[1] if self._model.recurrent else 0, []).append(request)
        return [self._prefill(group) for group in groups.values()]

    @torch.no_grad()
    def regroup(self, new: Sequence[Prefilled]) -> None:
        """Let rows that have ended leave and those of `new` that have not join, and plan for those that are left."""
        groups = [(self.requests, self._cache, self._length), *((p.requests, p.cache, p.width) for p in new)]
        parts, requests = [], []
        for members, cache, length in groups:
            rows = [row for row, request in enumerate(members) if not request.done]
            if rows and cache is not None:
                parts.append(CachedRows(cache, rows, length))
                requests += [members[row] for row in rows]
        self.clear()
        if not requests:
            return
        # The newest token of a row is not in the cache yet.
        lengths = [request.length - 1 for request in requests]
        self._length = max(lengths)
        self._cache = gather(parts, self._length)
        self._padding = torch.tensor([[self._length - n] for n in lengths], device=self._model.device)
        steps = min(request.decoding.max_length - request.length for request in requests)
        self._plan = self._arena.plan([request.route for request in requests], uses=steps)
        self.requests = tuple(requests)

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token further in every row.

        Args:
            tokens: Each row's newest.

        Returns:
            Logits of the next ones, (rows, vocabulary).
        """
        assert self._plan is not None
        ids = torch.tensor([[token] for token in tokens], device=self._model.device)
        with self._arena.running(self._plan):
            logits, self._cache = self._model(ids, self._padding, self._cache, self._length)
        self._length += 1
        return logits

    def clear(self) -> None:
        """Let all rows go, with their memory."""
        self.requests, self._cache, self._plan, self._length = (), None, None, 0

    def _prefill(self, requests: Sequence[Request]) -> Prefilled:
        width = max(request.ids.shape[1] for request in requests)
        ids = requests[0].ids.new_zeros(len(requests), width)
        for row, request in enumerate(requests):
            ids[row, width - request.ids.shape[1] :] = request.ids[0]
        padding = torch.tensor([[width - request.ids.shape[1]] for request in requests], device=ids.device)
        with self._arena.running(self._arena.plan([request.route for request in requests])):
            logits, cache = self._model(ids, padding, None, 0)
        return Prefilled(tuple(requests), logits, cache, width)


class _Model:
    """The base's own forward over right-aligned rows, with whatever arguments it knows."""

    def __init__(self, model: PreTrainedModel) -> None:
        if model.config.is_encoder_decoder or not model.can_generate():
            raise InputError(
                f"Continuous batching needs a decoder with an LM head. Found {type(model).__name__}. Load it as a "
                "causal language model, or call `Engine.forward` or `Engine.generate`."
            )
        names = inspect.signature(model.forward).parameters
        self._model = model
        self._cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        self._positions = "position_ids" in names
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._columns = torch.arange(0, device=model.device)
        self.device = model.device
        self.recurrent, self._masked = False, True
        with torch.no_grad():  # two tokens say what cache it makes
            two = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            _, cache = self(two, torch.zeros(1, 1, dtype=torch.long, device=model.device), None, 0)
        check_cache(model, cache)
        self.recurrent, self._masked = is_recurrent(cache), is_masked(cache)

    def __call__(
        self, ids: torch.Tensor, padding: torch.Tensor, cache: DynamicCache | None, past: int
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Logits of the last column, (rows, vocabulary), and the cache with these columns in it.

        Args:
            ids: (rows, n), int64.
            padding: (rows, 1), columns before a row's first token.
            cache: That of the columns before, or None.
            past: Columns before.
        """
        end = past + ids.shape[1]
        if len(self._columns) < end:
            self._columns = torch.arange(2 * end, device=self.device)
        inputs: dict[str, Any] = {"input_ids": ids, self._cache_name: cache, "use_cache": True, **self._options}
        if self._masked:
            inputs["attention_mask"] = (self._columns[:end] >= padding).long()  # (rows, past + n)
        if self._positions:
            inputs["position_ids"] = (self._columns[past:end] - padding).clamp(min=0)  # (rows, n)
        output = self._model(**inputs)
        return output.logits[:, -1], getattr(output, self._cache_name, None)


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Ends `generate` once a request has ended."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((len(input_ids),), self._request.done, device=input_ids.device)


def generate_alone(model: PreTrainedModel, arena: Arena, request: Request) -> list[int]:
    """The new tokens of the first sequence that `generate` gives for one row under its own plan.

    Drawing takes torch's global generators, which are put back after.
    """
    width = request.ids.shape[1]
    options = {**request.options, "return_dict_in_generate": False}
    options["stopping_criteria"] = StoppingCriteriaList(
        [*(options.get("stopping_criteria") or []), _Cancelled(request)]
    )
    plan = arena.plan([request.route], uses=request.decoding.max_length - width)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), arena.running(plan):
        torch.manual_seed(request.decoding.seed)
        sequences = model.generate(request.ids, attention_mask=torch.ones_like(request.ids), **options)
    tokens: list[int] = sequences[0, width:].tolist()
    ends = [index for index, token in enumerate(tokens) if token in request.decoding.eos]
    return tokens[: ends[0] + 1] if ends else tokens  # padding follows
