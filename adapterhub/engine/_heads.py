"""What answers a row: the base's LM head, or the linear head that an adapter brought along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from adapterhub.adapter import HeadTensors
from adapterhub.engine._backbone import States
from adapterhub.engine._batch import Batch
from adapterhub.route import Route


def answers(
    states: States, batch: Batch, routes: Sequence[Route], heads: Mapping[str, HeadTensors], *, causal: bool
) -> list[torch.Tensor]:
    """Each row's answer, by the head of its route's first adapter.

    Args:
        states: One pass over the batch.
        batch: The batch as it was given; answers for tokens are aligned to it.
        routes: One a row.
        heads: The heads of the first adapters that have one.
        causal: Whether the base is a decoder.
    """
    found: list[torch.Tensor | None] = [None] * len(routes)
    for name, head in heads.items():
        rows = [row for row, route in enumerate(routes) if route.adapters[:1] == (name,)]
        vectors = _sequence(states, batch, rows, causal) if head.kind == "sequence" else states.hidden[rows]
        for row, logits in zip(rows, _linear(head, vectors), strict=True):
            found[row] = logits if head.kind == "sequence" else batch.aligned(row, logits)
    if states.logits is not None:
        lm = states.logits
        return [batch.aligned(row, lm[row]) if answer is None else answer for row, answer in enumerate(found)]
    return [answer for answer in found if answer is not None]


def _sequence(states: States, batch: Batch, rows: list[int], causal: bool) -> torch.Tensor:
    """One vector a text, (rows, hidden), where transformers' sequence classification takes it.

    A decoder's last real token; an encoder's pooler, or its first token where it has no pooler.
    """
    if causal:
        last = batch.lengths[rows] - 1
        return states.hidden[rows, last.to(states.hidden.device)]
    return states.hidden[rows, 0] if states.pooled is None else states.pooled[rows]


def _linear(head: HeadTensors, vectors: torch.Tensor) -> torch.Tensor:
    bias = None if head.bias is None else head.bias.to(vectors)
    return functional.linear(vectors, head.weight.to(vectors), bias)
