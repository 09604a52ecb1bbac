"""The engine: one frozen base, adapters that come and go, and batches in which every row has its own route."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from adapterhub.adapter import BaseSignature, describe_base, read_adapter
from adapterhub.engine._arena import Arena
from adapterhub.engine._backbone import Backbone
from adapterhub.engine._batch import Batch, check_batch, check_new_tokens
from adapterhub.engine._batcher import Batcher
from adapterhub.engine._compiled import Compiled
from adapterhub.engine._delta import Folded, fold
from adapterhub.engine._explain import Explanation, explain
from adapterhub.engine._heads import answers, check_headless, first_heads
from adapterhub.engine._library import Native
from adapterhub.engine._merge import merged
from adapterhub.engine._packed import PackedCache
from adapterhub.engine._planner import Kind, check_kind
from adapterhub.engine._shelf import Shelf
from adapterhub.engine._tiers import Tiers
from adapterhub.errors import InputError
from adapterhub.route import Route

__all__ = ["Engine"]


class Engine(Shelf):
    """Runs batches on one base model, each row through the adapters of its own route, in one backbone pass.

    Every adapted module computes `y = W x; h = act(z Aᵀ + b) · G[row]; y += h B` over the ranks that the batch uses,
    with z its input (LoRA) or its own output (bottleneck), and elementwise gains and shifts (DoRA, IA³, layer-norm
    tuning) in the same sum: the weighted sum over a row's adapters is exact, and a row with the empty route equals the
    base. The base's parameters are never written.

    Adapters move from disk through host memory into the arena as they are needed, and stay while a batch uses them. All
    methods may be called from any thread; a call waits where the arena is full of adapters that others are using.
    While the engine is open, adapted modules of the base carry a forward of their own, which does nothing outside the
    engine's calls.

    Args:
        model: A model of transformers, with or without its LM head. It is put into evaluation mode.
        model_id: The id that adapters name as their base; by default where the model was loaded from.
        base: What adapters are checked against, where it is not what `describe_base` finds: the signature of the model
            before it was quantised.
        arena_ranks: Ranks of adapters that are held beside the base at once. Memory is taken as adapters need it.
        arena_bytes: Bytes of adapters that are held beside the base at once; None leaves it to the ranks.
        host_bytes: Bytes of adapters that are kept in host memory behind the arena.
        cache: A folder for packed copies of adapters, which load faster than PEFT folders; None for none.
        plan: `dense`, `packed`, `blocked`, `segment` or `kernel` to compute every batch so; None takes the cheapest
            for each.
        kernel: Whether C code, compiled once on this machine, may compute batches on a CPU. Without a C compiler, or
            with ADAPTERHUB_KERNEL=0 in the environment, batches are computed by torch alone.

    Raises:
        InputError: If the model carries PEFT layers or an argument is out of its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        model_id: str | None = None,
        base: BaseSignature | None = None,
        arena_ranks: int = 1024,
        arena_bytes: int | None = None,
        host_bytes: int = 1 << 30,
        cache: Path | None = None,
        plan: Kind | None = None,
        kernel: bool = True,
    ) -> None:
        if arena_ranks < 1:
            raise InputError(f"arena_ranks should be at least 1. Found {arena_ranks}. Leave it out for 1,024.")
        self._native = Native(wanted=kernel)
        check_kind(plan, self._native)
        own = describe_base(model, model_id)
        self.base = own if base is None else base
        self._backbone = Backbone(model)
        arena = Arena(self._backbone.module, arena_ranks, model.dtype, plan, self._native)
        base_id = f"{self.base.model_id} {self.base.fingerprint} {own.fingerprint}"
        packed = None if cache is None else PackedCache(Path(cache), base_id, model.dtype)
        tiers = Tiers(arena, self._read, host_bytes=host_bytes, arena_bytes=arena_bytes, packed=packed, workers=2)
        super().__init__(tiers, arena)
        self._batchers: WeakSet[Batcher] = WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every batcher, give the base its own forwards back, free the arena, and refuse further calls."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for batcher in list(self._batchers):
            batcher.close(cancel=True)
        self._tiers.close()
        self._backbone.close()
        self._arena.close()

    @property
    def model(self) -> PreTrainedModel:
        """The base model."""
        return self._backbone.model

    @property
    def kernel(self) -> str:
        """Whether the kernel is compiled, or why there is none; the first call compiles it."""
        return self._native.state

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        routes: Sequence[Route],
        *,
        decoder_input_ids: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Answer every row with the head of its route's first adapter, after one backbone pass.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), one for real tokens, which are one run; padding on either side answers alike.
            routes: One a row.
            decoder_input_ids: (rows, n) for an encoder-decoder: what its decoder has read; by default its start token.

        Returns:
            One tensor a row: (T, vocabulary) of the base's LM head, (n, vocabulary) of an encoder-decoder's, (labels,)
            of a sequence head, (T, labels) of a token head. What stands at padding positions has no meaning.

        Raises:
            InputError: If the batch breaks a rule, names an unknown adapter, or asks an LM head that the base lacks.
            CapacityError: If the adapters of the batch have more ranks than the arena.
        """
        batch = self._check_batch(input_ids, attention_mask, routes)
        with self.planned(routes):
            heads = first_heads(self._arena, routes)
            return answers(self._backbone, batch, routes, heads, decoder_input_ids)

    def hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route]
    ) -> list[torch.Tensor]:
        """The backbone's last hidden states, each row under its own route; an encoder-decoder's are its encoder's.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), as in `forward`.
            routes: One a row.

        Returns:
            (T, hidden) a row. What stands at padding positions has no meaning.
        """
        batch = self._check_batch(input_ids, attention_mask, routes)
        with self.planned(routes):
            states = self._backbone.states(batch, lm=False)
            return [batch.aligned(row, hidden) for row, hidden in enumerate(states.hidden)]

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route], **generation: Any
    ) -> Any:
        """Continue every row under its own route, by transformers' `generate`.

        A base with a state in place of a cache (Mamba) reads padding where an adapter adds a bias, as it does in PEFT:
        rows of different lengths go to a `batcher`, which pads none.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), as in `forward`. Rows are padded on the left before they are continued.
            routes: One a row.
            **generation: What `generate` takes: `max_new_tokens`, `do_sample`, `num_beams`, `num_return_sequences`, ...

        Returns:
            transformers' output object: `sequences`, (rows · num_return_sequences, T + new) with the new tokens from
            column T on (an encoder-decoder's hold its start token and the new ones), and `scores` and the like where
            they were asked for.

        Raises:
            InputError: If the batch breaks a rule, names an unknown adapter or one whose head classifies; if prompt and
                new tokens are longer than the base's context; or if the base does not generate.
            CapacityError: If the adapters of the batch have more ranks than the arena.
        """
        model, backbone = self._backbone.model, self._backbone
        self._backbone.check_generates()
        batch = backbone.prompt(self._check_batch(input_ids, attention_mask, routes))
        config = generation.get("generation_config") or model.generation_config
        new = generation.get("max_new_tokens", config.max_new_tokens) or 1
        check_new_tokens(backbone.prompt_tokens(batch), new, backbone.context)
        options = {**generation, "return_dict_in_generate": True}
        with self.planned(routes, uses=new):
            check_headless(first_heads(self._arena, routes))
            return model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)

    def batcher(self, *, max_rows: int = 16, max_waiting: int | None = None, prefill_tokens: int = 2048) -> Batcher:
        """Start continuous batching: rows join and leave while others decode, stream, and can be cancelled.

        Args:
            max_rows: Rows that decode together at most.
            max_waiting: Requests that wait at most; None for any number.
            prefill_tokens: Prompt tokens that are read between two steps at most; a longer prompt is read alone.

        Returns:
            The batcher; it ends with the engine at the latest.

        Raises:
            InputError: If a number is not positive, or the base does not generate.
        """
        self._backbone.check_generates()
        parts = {"tiers": self._tiers, "arena": self._arena, "backbone": self._backbone}
        limits = {"max_rows": max_rows, "max_waiting": max_waiting, "prefill_tokens": prefill_tokens}
        found = Batcher(**parts, **limits)  # type: ignore[arg-type]
        self._batchers.add(found)
        return found

    def compiled(self, *, rows: int = 16, ranks: int = 8, context: int = 512, **options: Any) -> Compiled:
        """Compile the decoding step: greedy generation through one graph, which stays as it is when routes change.

        It pays where a step is bound by calls, not by memory: small bases, long-running services. Compiling takes
        seconds to minutes at the first batch, and once for every new shape.

        Args:
            rows: Rows of the graph; smaller batches are filled up.
            ranks: Ranks a row of the first graph: those of its adapters together.
            context: Tokens of prompt and answer in all; every step attends to all of them.
            **options: What `torch.compile` takes.

        Raises:
            InputError: If a number is out of its range, or the base keeps no plain cache of keys and values.
        """
        self._backbone.check_generates()
        return Compiled(self._tiers, self._arena, self._backbone, rows=rows, ranks=ranks, context=context, **options)

    @contextmanager
    def planned(self, routes: Sequence[Route], *, uses: int = 1, plan: Kind | None = None) -> Iterator[None]:
        """Let calls of the base itself, in this thread, run under routes until the block is left.

        Args:
            routes: One for each row that the base will see; adapters that are missing are loaded.
            uses: Passes that are expected, over which the cost of gathering is spread.
            plan: `dense`, `packed`, `blocked`, `segment` or `kernel`; None takes the engine's own choice.

        Raises:
            InputError: If a route names an unknown adapter.
            CapacityError: If the adapters have more ranks than the arena.
        """
        check_kind(plan, self._native)
        names = dict.fromkeys(name for route in routes for name in route.adapters)
        with self._tiers.acquire(names), torch.no_grad(), self._arena.running(self._arena.plan(routes, plan, uses)):
            yield

    def explain(self, routes: Sequence[Route], *, tokens: int = 1, uses: int = 1) -> Explanation:
        """Say how a batch would be computed, module by module, and what each plan is estimated to cost.

        Args:
            routes: One a row; adapters that are missing are loaded.
            tokens: Tokens a row in one pass: 1 for a decoding step, the prompt's length for a prefill.
            uses: Passes over which the cost of gathering is spread.
        """
        names = dict.fromkeys(name for route in routes for name in route.adapters)
        with self._tiers.acquire(names):
            return explain(self._arena, self._arena.plan(routes, uses=uses), tokens)

    def merge(self, route: Route) -> PreTrainedModel:
        """A copy of the base with a route's adapters in its weights, for work that knows one route only.

        Args:
            route: Adapters without a head or an activation, and their gates.

        Returns:
            A plain model of transformers, which equals the engine under this route, at the bare base's cost.

        Raises:
            InputError: If a part of the route is not linear; every such part is listed.
        """
        folded = {name: self._tiers.folded(name) for name in route.adapters}
        return merged(self._backbone.model, route, folded, self._backbone.module)

    def _read(self, folder: Path, sha256: str | None) -> Folded:
        return fold(read_adapter(folder, self.base, sha256=sha256), self._backbone.module)

    def _check_batch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route]) -> Batch:
        base = self._backbone
        batch = check_batch(input_ids, attention_mask, routes, vocabulary=base.vocabulary, context=base.context)
        return Batch(batch.input_ids.to(base.device), batch.attention_mask.to(base.device))
