"""A batch of token ids that has passed every check, and its alignment to either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from adapterhub.errors import InputError
from adapterhub.route import Route


@dataclass(frozen=True)
class Batch:
    """Rows of token ids in which every row has one unbroken run of real tokens.

    Args:
        input_ids: (rows, T), int64.
        attention_mask: (rows, T), int64, one for a real token.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    @property
    def width(self) -> int:
        """T, padding included."""
        return self.input_ids.shape[1]

    @cached_property
    def starts(self) -> torch.Tensor:
        """(rows,), the index of each row's first real token."""
        return self.attention_mask.argmax(dim=1)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """(rows,), the number of each row's real tokens."""
        return self.attention_mask.sum(dim=1)

    def left(self) -> Batch:
        """The real tokens first, the padding behind: positions count from the first real token in any model."""
        return self._rolled(self.starts)

    def right(self) -> Batch:
        """The padding first, the real tokens at the end: what generation continues."""
        return self._rolled(self.starts + self.lengths)

    def aligned(self, row: int, values: torch.Tensor) -> torch.Tensor:
        """Values (T, ...) of a row of `left()`, put back to where the row's tokens stand here."""
        start = int(self.starts[row])
        return values.roll(start, 0) if start else values

    def _rolled(self, by: torch.Tensor) -> Batch:
        index = (torch.arange(self.width, device=by.device) + by[:, None]) % self.width  # (rows, T)
        return Batch(self.input_ids.gather(1, index), self.attention_mask.gather(1, index))


def check_batch(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    routes: Sequence[Route],
    *,
    vocabulary: int,
    context: int | None,
) -> Batch:
    """Check a batch and return it as int64.

    Args:
        input_ids: (rows, T).
        attention_mask: (rows, T).
        routes: One a row.
        vocabulary: Number of token ids that the base knows.
        context: Largest T, or None where the base has no limit.

    Raises:
        InputError: With every fault found.
    """
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"input_ids should be (rows, tokens), at least one of each. Found {shape}. Give at least one text."
        )
    if tuple(attention_mask.shape) != shape:
        raise InputError(
            f"attention_mask should be of the shape of input_ids, {shape}. Found {tuple(attention_mask.shape)}. "
            "Pass what the tokenizer returned."
        )
    batch = Batch(input_ids.long(), (attention_mask != 0).long())
    faults = _route_faults(batch, routes) + _token_faults(batch, vocabulary, context) + _mask_faults(batch)
    if faults:
        raise InputError("\n".join(faults))
    return batch


def check_new_tokens(prompt: int, new: int, context: int | None) -> None:
    """Raise InputError where the tokens of prompt and answer are more than the base's context."""
    if context is not None and prompt + new > context:
        raise InputError(
            f"Prompt and new tokens should be at most {context} in all. Found {prompt} and {new}. "
            "Shorten the prompt or lower `max_new_tokens`."
        )


def _route_faults(batch: Batch, routes: Sequence[Route]) -> list[str]:
    rows = len(batch.input_ids)
    if rows == len(routes):
        return []
    return [
        f"A batch needs one route a row. Found {rows} rows and {len(routes)} routes. "
        "Give `Route()` to rows of the base."
    ]


def _token_faults(batch: Batch, vocabulary: int, context: int | None) -> list[str]:
    faults = []
    if context is not None and batch.width > context:
        faults.append(f"The base reads at most {context} tokens. Found {batch.width}. Shorten or truncate the text.")
    low, high = (int(extreme) for extreme in batch.input_ids.aminmax())
    if low < 0 or high >= vocabulary:
        found = low if low < 0 else high
        faults.append(f"A token id should be from 0 to {vocabulary - 1}. Found {found}. Use the base's own tokenizer.")
    return faults


def _mask_faults(batch: Batch) -> list[str]:
    # A run of real tokens begins where the mask rises.
    rises = (
        batch.attention_mask.diff(dim=1, prepend=batch.attention_mask.new_zeros(len(batch.input_ids), 1)) == 1
    ).sum(dim=1)
    faults = []
    for row, runs in enumerate(rises.tolist()):
        if runs == 0:
            faults.append(f"A row needs at least one real token. Row {row} is all padding. Leave empty texts out.")
        elif runs > 1:
            faults.append(
                f"A row's real tokens should be one unbroken run. Row {row} has {runs} runs in attention_mask. "
                "Pad at the ends only."
            )
    return faults
