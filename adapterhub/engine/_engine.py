"""The engine: one frozen base, adapters that come and go, and batches in which every row has its own route."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel

from adapterhub.adapter import Adapter, HeadTensors, describe_base, read_adapter
from adapterhub.engine._arena import Arena, check_capacity, ranks_of
from adapterhub.engine._backbone import Backbone
from adapterhub.engine._batch import Batch, check_batch, check_new_tokens
from adapterhub.engine._heads import answers
from adapterhub.errors import InputError, did_you_mean
from adapterhub.route import Route

__all__ = ["Engine"]


@dataclass(frozen=True)
class _Location:
    folder: Path
    sha256: str | None


class Engine:
    """Runs batches on one base model, each row through the adapters of its own route, in one backbone pass.

    Every adapted module computes `y = W x; h = act(z Aᵀ + b) · G[row]; y += h B` over the ranks that the batch uses,
    with z its input (LoRA) or its own output (bottleneck): the weighted sum over a row's adapters is exact, and a row
    with the empty route equals the base. The base's parameters are never written.

    While the engine is open, the base carries forward hooks, which do nothing outside the engine's own calls. One call
    runs at a time; calls from several threads wait for one another.

    Args:
        model: A decoder or an encoder of transformers, with or without its LM head. It is put into evaluation mode.
        model_id: The id that adapters name as their base; by default where the model was loaded from.
        arena_ranks: Ranks of adapters that are held beside the base at once. Memory is taken as adapters need it.

    Raises:
        InputError: If the model is an encoder-decoder or carries PEFT layers, or `arena_ranks` is not positive.
    """

    def __init__(self, model: PreTrainedModel, *, model_id: str | None = None, arena_ranks: int = 1024) -> None:
        if arena_ranks < 1:
            raise InputError(f"arena_ranks should be at least 1. Found {arena_ranks}. Leave it out for 1,024.")
        self.base = describe_base(model, model_id)
        self._backbone = Backbone(model)
        self._arena = Arena(self._backbone.module, arena_ranks)
        self._locations: dict[str, _Location] = {}
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take every hook off the base, free the arena, and refuse further calls."""
        with self._lock:
            self._closed = True
            self._backbone.close()
            self._arena.close()
            self._locations.clear()

    @property
    def model(self) -> PreTrainedModel:
        """The base model."""
        return self._backbone.model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all adapters that were added, sorted."""
        return tuple(sorted(self._locations))

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters in the arena, least recently used first."""
        return self._arena.names

    def add(self, name: str, folder: Path, *, sha256: str | None = None) -> None:
        """Say where an adapter lies. It is read and checked when it is first used.

        A name is bound to its bytes at the first load: a folder that changes later is refused until it is added again.

        Args:
            name: The name that routes use; one that exists is replaced.
            folder: The adapter's folder.
            sha256: Its content hash, or None to take what is found at the first load.

        Raises:
            InputError: If there is no such folder.
        """
        if not Path(folder).is_dir():
            raise InputError(f"The folder of adapter '{name}' should exist. Found none at {folder}. Check the path.")
        with self._lock:
            self._check_open()
            location = _Location(Path(folder), sha256)
            if sha256 is not None and self._locations.get(name) == location:
                return  # these very bytes may be in the arena
            self._locations[name] = location
            if name in self._arena:
                self._arena.drop(name)

    def load(self, name: str) -> Adapter:
        """Read an adapter's folder, put it into the arena if it is not there, and return what was read.

        Args:
            name: A name that was added.

        Raises:
            InputError: If the name was not added.
            IncompatibleAdapterError: If the adapter does not fit the base.
            IntegrityError: If its bytes are damaged, or not those of the first load.
            CapacityError: If it has more ranks than the arena.
        """
        with self._lock:
            self._check_names([name])
            adapter = self._read(name)
            self._place({} if name in self._arena else {name: adapter}, [name])
            return adapter

    def evict(self, name: str) -> None:
        """Take an adapter out of the arena; it comes back when it is next used.

        Args:
            name: A name that was added.

        Raises:
            InputError: If the name was not added.
        """
        with self._lock:
            self._check_names([name])
            if name in self._arena:
                self._arena.drop(name)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route]
    ) -> list[torch.Tensor]:
        """Answer every row with the head of its route's first adapter, after one backbone pass.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), one for real tokens, which are one run; padding on either side answers alike.
            routes: One a row.

        Returns:
            One tensor a row: (T, vocabulary) of the base's LM head, (labels,) of a sequence head, (T, labels) of a
            token head. What stands at padding positions has no meaning.

        Raises:
            InputError: If the batch breaks a rule, names an unknown adapter, or asks an LM head that the base lacks.
            CapacityError: If the adapters of the batch have more ranks than the arena.
        """
        batch = self._check_batch(input_ids, attention_mask, routes)
        with self._running(routes):
            heads = self._heads(routes)
            lm = any(route.adapters[:1] not in {(name,) for name in heads} for route in routes)
            if lm and not self._backbone.has_lm_head:
                raise InputError(
                    "A route without an adapter's head is answered by the base's LM head. Found none in "
                    f"{type(self._backbone.model).__name__}. Route to an adapter with a head, or call `hidden`."
                )
            states = self._backbone.states(batch, lm=lm)
            return answers(states, batch, routes, heads, causal=self._backbone.causal)

    def hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route]
    ) -> list[torch.Tensor]:
        """The backbone's last hidden states under each row's route.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), as in `forward`.
            routes: One a row.

        Returns:
            (T, hidden) for each row. What stands at padding positions has no meaning.

        Raises:
            InputError: If the batch breaks a rule or names an unknown adapter.
            CapacityError: If the adapters of the batch have more ranks than the arena.
        """
        batch = self._check_batch(input_ids, attention_mask, routes)
        with self._running(routes):
            states = self._backbone.states(batch, lm=False)
            return [batch.aligned(row, hidden) for row, hidden in enumerate(states.hidden)]

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route], **generation: Any
    ) -> Any:
        """Continue every row under its own route, by transformers' `generate`.

        Args:
            input_ids: (rows, T), int64.
            attention_mask: (rows, T), as in `forward`. Rows are padded on the left before they are continued.
            routes: One a row.
            **generation: What `generate` takes: `max_new_tokens`, `do_sample`, `num_beams`, `num_return_sequences`, ...

        Returns:
            transformers' output object: `sequences`, (rows · num_return_sequences, T + new) with the new tokens from
            column T on, and `scores` and the like where they were asked for.

        Raises:
            InputError: If the batch breaks a rule, names an unknown adapter or one whose head classifies; if prompt and
                new tokens are longer than the base's context; or if the base does not generate.
            CapacityError: If the adapters of the batch have more ranks than the arena.
        """
        model = self._backbone.model
        if not model.can_generate():
            raise InputError(
                f"Only a base with an LM head generates. Found {type(model).__name__}. Load it as a causal language "
                "model, or call `forward`."
            )
        batch = self._check_batch(input_ids, attention_mask, routes).right()
        config = generation.get("generation_config") or model.generation_config
        check_new_tokens(batch, generation.get("max_new_tokens", config.max_new_tokens) or 1, self._backbone.context)
        options = {**generation, "return_dict_in_generate": True}
        with self._running(routes):
            self._check_headless(routes)
            return model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)

    @contextmanager
    def _running(self, routes: Sequence[Route]) -> Iterator[None]:
        """Hold the lock, with every adapter of the routes in the arena and their plan set."""
        names = list(dict.fromkeys(name for route in routes for name in route.adapters))
        with self._lock, torch.no_grad():
            self._check_names(names)
            # All are read and checked before anything moves, so that a bad one leaves the arena as it was.
            self._place({name: self._read(name) for name in names if name not in self._arena}, names)
            with self._arena.running(self._arena.plan(routes)):
                yield

    def _place(self, read: dict[str, Adapter], names: Sequence[str]) -> None:
        """Put adapters into the arena, keeping all of `names` there, and bind them to the bytes that were read."""
        inside = sum(self._arena.length(name) for name in names if name in self._arena)
        check_capacity(inside + sum(ranks_of(adapter) for adapter in read.values()), self._arena.capacity)
        for name, adapter in read.items():
            self._arena.place(name, adapter, keep=names)
            self._locations[name] = replace(self._locations[name], sha256=adapter.sha256)
        self._arena.touch(names)

    def _read(self, name: str) -> Adapter:
        location = self._locations[name]
        return read_adapter(location.folder, self.base, sha256=location.sha256)

    def _heads(self, routes: Sequence[Route]) -> dict[str, HeadTensors]:
        """The heads of the routes' first adapters that have one."""
        first = dict.fromkeys(route.adapters[0] for route in routes if route.adapters)
        return {name: head for name in first if (head := self._arena.head(name)) is not None}

    def _check_headless(self, routes: Sequence[Route]) -> None:
        heads = self._heads(routes)
        if heads:
            raise InputError(
                f"Only an adapter without a head of its own generates. Found {', '.join(sorted(heads))} first in a "
                "route. Call `forward` for these rows."
            )

    def _check_batch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, routes: Sequence[Route]) -> Batch:
        base = self._backbone
        batch = check_batch(input_ids, attention_mask, routes, vocabulary=base.vocabulary, context=base.context)
        return Batch(batch.input_ids.to(base.device), batch.attention_mask.to(base.device))

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("A closed engine takes no more calls. Found one. Make a new `Engine` on the model.")

    def _check_names(self, names: Sequence[str]) -> None:
        self._check_open()
        known = self._locations
        faults = [
            f"No adapter '{name}' in this engine ({len(known)} adapters).{did_you_mean(name, known)} "
            "Register it with `Engine.add`."
            for name in names
            if name not in known
        ]
        if faults:
            raise InputError("\n".join(faults))
