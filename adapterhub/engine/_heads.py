"""What answers a row: the base's LM head, or the linear head that an adapter brought along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from adapterhub.adapter import HeadTensors
from adapterhub.engine._arena import Arena
from adapterhub.engine._backbone import Backbone, States
from adapterhub.engine._batch import Batch
from adapterhub.errors import InputError
from adapterhub.route import Route


def answers(
    backbone: Backbone,
    batch: Batch,
    routes: Sequence[Route],
    heads: Mapping[str, HeadTensors],
    decoder_input_ids: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Run the base once; each row's answer, by the head of its route's first adapter.

    Args:
        backbone: The base.
        batch: The batch as it was given; answers for tokens are aligned to it.
        routes: One a row.
        heads: The heads of the first adapters that have one.
        decoder_input_ids: (rows, n) or None, for an encoder-decoder.

    Raises:
        InputError: If a row needs the base's LM head and there is none.
    """
    lm = any(route.adapters[:1] not in {(name,) for name in heads} for route in routes)
    if lm and not backbone.has_lm_head:
        raise InputError(
            "A route without an adapter's head is answered by the base's LM head. Found none in "
            f"{type(backbone.model).__name__}. Route to an adapter with a head, or call `hidden`."
        )
    states = backbone.states(batch, lm=lm, decoder_input_ids=decoder_input_ids)
    found: list[torch.Tensor | None] = [None] * len(routes)
    for name, head in heads.items():
        rows = [row for row, route in enumerate(routes) if route.adapters[:1] == (name,)]
        sequence = head.kind == "sequence"
        vectors = _sequence(states, batch, rows, backbone.causal) if sequence else states.hidden[rows]
        for row, logits in zip(rows, _linear(head, vectors), strict=True):
            found[row] = logits if sequence else batch.aligned(row, logits)
    if states.logits is not None:
        found = [_lm(states, batch, row) if answer is None else answer for row, answer in enumerate(found)]
    return [answer for answer in found if answer is not None]


def _sequence(states: States, batch: Batch, rows: list[int], causal: bool) -> torch.Tensor:
    """One vector a text, (rows, hidden), where transformers' sequence classification takes it.

    A decoder's last real token; an encoder's pooler, or its first token where it has no pooler.
    """
    if causal:
        last = batch.lengths[rows] - 1
        return states.hidden[rows, last.to(states.hidden.device)]
    return states.hidden[rows, 0] if states.pooled is None else states.pooled[rows]


def _lm(states: States, batch: Batch, row: int) -> torch.Tensor:
    """The LM head's logits of one row; a decoder of its own has its own tokens."""
    assert states.logits is not None
    return states.logits[row] if states.decoded else batch.aligned(row, states.logits[row])


def _linear(head: HeadTensors, vectors: torch.Tensor) -> torch.Tensor:
    bias = None if head.bias is None else head.bias.to(vectors)
    return functional.linear(vectors, head.weight.to(vectors), bias)


def first_heads(arena: Arena, routes: Sequence[Route]) -> dict[str, HeadTensors]:
    """The heads of the routes' first adapters that have one; all are in the arena."""
    first = dict.fromkeys(route.adapters[0] for route in routes if route.adapters)
    return {name: head for name in first if (head := arena.head(name)) is not None}


def check_headless(heads: Mapping[str, HeadTensors]) -> None:
    """Raise InputError where rows that are to be continued would be answered by heads of adapters."""
    if heads:
        raise InputError(
            f"Only an adapter without a head of its own generates. Found {', '.join(sorted(heads))} first in a route. "
            "Call `forward` for these rows."
        )
