"""Batches of rows of like length, padded on the right to the longest of each batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from adapterhub.training._encode import IGNORED, Features

__all__ = ["Batch", "by_length", "collate", "schedule", "steps_per_epoch"]

_POOL = 50
"""Batches whose rows are sorted by length together: wide enough for little padding, narrow enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Rows as tensors.

    Args:
        rows: The features.
        input_ids: (rows, tokens) int64.
        attention_mask: (rows, tokens) int64.
        labels: (rows, tokens) int64 for generation and token classification, (rows,) int64 for classification, (rows,)
            float32 for regression.
    """

    rows: Sequence[Features]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(self.rows, self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def collate(rows: Sequence[Features], head: str, pad_token_id: int) -> Batch:
    """Pad rows to the longest of them.

    Args:
        rows: At least one row.
        head: The card's head; it decides what the labels are.
        pad_token_id: Fills the ids; the mask says where.
    """
    ids = [torch.tensor(row.ids) for row in rows]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor([len(row.ids) for row in rows])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    if head == "classification":
        labels = torch.tensor([row.example.label for row in rows])
    elif head == "regression":
        labels = torch.tensor([row.example.value for row in rows], dtype=torch.float32)
    else:
        labels = pad_sequence([torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=IGNORED)
    return Batch(rows, input_ids, mask, labels)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches that hold every row once."""
    return math.ceil(rows / batch_size)


def schedule(lengths: Sequence[int], batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Batches without end, every row once an epoch, each batch of like lengths, the same for the same seed.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        start: Batches to leave out, where a run resumes.

    Yields:
        Positions of the batch's rows.
    """
    size = steps_per_epoch(len(lengths), batch_size)
    epoch, skip = divmod(start, size)
    while True:
        yield from _epoch(lengths, batch_size, np.random.default_rng([seed, epoch]))[skip:]
        epoch, skip = epoch + 1, 0


def _epoch(lengths: Sequence[int], batch_size: int, generator: np.random.Generator) -> list[list[int]]:
    order = generator.permutation(len(lengths)).tolist()
    pool = batch_size * _POOL
    batches: list[list[int]] = []
    for begin in range(0, len(order), pool):
        rows = sorted(order[begin : begin + pool], key=lengths.__getitem__)
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [batches[position] for position in generator.permutation(len(batches))]


def by_length(rows: Sequence[Features], batch_size: int) -> list[list[Features]]:
    """The rows in batches of like length, shortest first."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    return [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
