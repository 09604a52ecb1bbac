"""Rows that join and leave a running key/value cache.

A cache lives and dies with its rows: nothing of it is kept for later requests, so there is no prefix to be found by a
key, and no key that could mistake one adapter's keys and values for another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from adapterhub.errors import InputError

__all__ = ["CachedRows", "check_cache", "gather", "is_masked", "is_recurrent"]


class CachedRows(NamedTuple):
    """Some rows of a cache.

    Args:
        cache: All its rows are aligned on the right: the last column is every row's last token.
        rows: The rows that are wanted, in ascending order.
        length: Columns of the cache that were filled, padding included.
    """

    cache: DynamicCache
    rows: Sequence[int]
    length: int


def gather(parts: Sequence[CachedRows], length: int) -> DynamicCache:
    """One cache of the wanted rows of several, in order, aligned on the right.

    Columns are added on the left (zeros, which the mask hides) or cut off there, so joining, leaving and trimming are
    one copy. The parts are used up.

    Args:
        parts: At least one; the first one's cache object is filled anew and returned.
        length: Columns of the result; no wanted row has more tokens.
    """
    cache = parts[0].cache
    for index, layer in enumerate(cache.layers):
        gathered = _GATHER[type(layer)]
        cache.layers[index] = gathered(layer, [(part.cache.layers[index], part.rows) for part in parts], length)
    return cache


def is_recurrent(cache: DynamicCache) -> bool:
    """Whether padding would enter a state, so that only prompts of one length are read together."""
    return any(isinstance(layer, LinearAttentionLayer) for layer in cache.layers)


def is_masked(cache: DynamicCache) -> bool:
    """Whether some layer looks back at columns, of which padding must be hidden."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def check_cache(model: PreTrainedModel, cache: object) -> None:
    """Check that rows can join and leave the cache that a base made.

    Args:
        model: The base.
        cache: What its forward returned.

    Raises:
        InputError: If they cannot.
    """
    kinds = [type(layer) for layer in cache.layers] if isinstance(cache, DynamicCache) else [type(cache)]
    faults = sorted({kind.__name__ for kind in kinds if kind not in _GATHER})
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        faults.append("chunked attention")  # chunks are counted in columns, which differ from row to row
    if faults:
        raise InputError(
            "Rows join and leave a cache of keys and values by token, of sliding windows or of recurrent states. "
            f"Found {', '.join(faults)} in {type(model).__name__}. Call `Engine.generate` for whole batches."
        )


class SpacedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values with room for more columns: a step writes one column, where `DynamicLayer` copies all of them.

    Args:
        keys: (rows, heads, T, d_key).
        values: (rows, heads, T, d_value).
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._room = (keys, values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add columns, (rows, heads, n, d), and return all."""
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._room[0].shape[2]:
            room = end + end // 4 + 16
            self._room = (_right([(self.keys, None)], start, room), _right([(self.values, None)], start, room))
        for held, new in zip(self._room, (key_states, value_states), strict=True):
            held[:, :, start:end] = new
        self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values


_Layers = Sequence[tuple[Any, Sequence[int]]]


def _tokens(_: DynamicLayer, parts: _Layers, length: int) -> DynamicLayer:
    return SpacedLayer(*(_right([(getattr(part, name), rows) for part, rows in parts], length) for name in _KV))


def _window(layer: DynamicSlidingWindowLayer, parts: _Layers, length: int) -> DynamicLayer:
    # A window holds the last columns only, but counts all of them.
    width = min(length, layer.sliding_window - 1)
    layer.keys, layer.values = (_right([(getattr(part, name), rows) for part, rows in parts], width) for name in _KV)
    layer.cumulative_length = length
    return layer


def _states(layer: LinearAttentionLayer, parts: _Layers, _: int) -> LinearAttentionLayer:
    for states in ("conv_states", "recurrent_states"):
        for index, state in getattr(layer, states).items():
            if state is not None:
                rows = [getattr(part, states)[index][list(rows)] for part, rows in parts]
                getattr(layer, states)[index] = torch.cat(rows)
    return layer


def _right(
    parts: Sequence[tuple[torch.Tensor, Sequence[int] | None]], length: int, room: int | None = None
) -> torch.Tensor:
    """(rows, heads, room, d): the last columns of the wanted rows (None: all) end at `length`, zeros elsewhere."""
    like = parts[0][0]
    wanted = [values if rows is None or len(rows) == len(values) else values[list(rows)] for values, rows in parts]
    out = like.new_zeros(sum(map(len, wanted)), like.shape[1], room or length, like.shape[3])
    start = 0
    for values in wanted:
        width = min(length, values.shape[2])
        out[start : start + len(values), :, length - width : length] = values[:, :, values.shape[2] - width :]
        start += len(values)
    return out


_KV = ("keys", "values")
_GATHER: dict[type, Callable[[Any, _Layers, int], Any]] = {
    DynamicLayer: _tokens,
    SpacedLayer: _tokens,
    DynamicSlidingWindowLayer: _window,
    LinearAttentionLayer: _states,
}
