"""Joining, leaving, padding and trimming of a cache against one row at a time."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import tiny_llama
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticCache

from adapterhub.engine._cache import CachedRows, SpacedLayer, check_cache, gather
from adapterhub.errors import InputError

WINDOW = 5


def row_states(rng: random.Random, tokens: int) -> torch.Tensor:
    return torch.randn(2, 2, tokens, 3, generator=torch.Generator().manual_seed(rng.randrange(10**6)))


def cache_of(rows: list[torch.Tensor], kind: type[DynamicLayer]) -> tuple[DynamicCache, int]:
    """A cache of rows, each (keys and values, heads, tokens, d), padded on the left with what must not be seen."""
    width = max(row.shape[2] for row in rows)
    padded = torch.full((2, len(rows), 2, width, 3), torch.nan)
    for index, row in enumerate(rows):
        padded[:, index, :, width - row.shape[2] :] = row
    cache = DynamicCache()
    cache.layers.append(kind(WINDOW) if kind is DynamicSlidingWindowLayer else kind())
    cache.update(padded[0], padded[1], 0)
    return cache, width


def assert_holds(cache: DynamicCache, rows: list[torch.Tensor], kind: type[DynamicLayer]) -> None:
    layer = cache.layers[0]
    longest = max(row.shape[2] for row in rows)
    kept = min(longest, WINDOW - 1) if kind is DynamicSlidingWindowLayer else longest
    assert layer.get_seq_length() == longest
    assert layer.keys.shape[2] == layer.values.shape[2] == kept
    for index, row in enumerate(rows):
        seen = min(row.shape[2], kept)
        for held, true in zip((layer.keys, layer.values), row, strict=True):
            assert torch.equal(held[index, :, kept - seen :], true[:, row.shape[2] - seen :])


@pytest.mark.parametrize("kind", [DynamicLayer, DynamicSlidingWindowLayer])
@pytest.mark.parametrize("seed", range(20))
def test_rows_come_and_go_and_grow(kind, seed):
    rng = random.Random(seed)
    rows = [row_states(rng, rng.randint(1, 12)) for _ in range(rng.randint(1, 4))]
    cache, width = cache_of(rows, kind)
    for _ in range(8):
        stay = [index for index in range(len(rows)) if rng.random() < 0.7] or [0]
        parts, rows = [CachedRows(cache, stay, width)], [rows[index] for index in stay]
        for _ in range(rng.randint(0, 2)):
            new = [row_states(rng, rng.randint(1, 12)) for _ in range(rng.randint(1, 3))]
            wanted = sorted(rng.sample(range(len(new)), rng.randint(1, len(new))))
            other, other_width = cache_of(new, kind)
            parts.append(CachedRows(other, wanted, other_width))
            rows += [new[index] for index in wanted]
        width = max(row.shape[2] for row in rows)
        cache = gather(parts, width)
        assert_holds(cache, rows, kind)
        for _ in range(rng.choice([0, 1, 30])):  # steps; some outgrow the spare room
            step = torch.stack([row_states(rng, 1) for _ in rows], dim=1)
            keys, values = cache.update(step[0], step[1], 0)
            rows = [torch.cat([row, step[:, index]], dim=2) for index, row in enumerate(rows)]
            width += 1
            assert torch.equal(keys[:, :, -1:], step[0])
            assert torch.equal(values[:, :, -1:], step[1])
            assert_holds(cache, rows, kind)


def test_padding_that_is_added_is_finite():
    """A key that the mask hides still meets its query: 0 · NaN is NaN."""
    rng = random.Random(0)
    short, width = cache_of([row_states(rng, 2)], DynamicLayer)
    long, other = cache_of([row_states(rng, 9)], DynamicLayer)
    keys = gather([CachedRows(short, [0], width), CachedRows(long, [0], other)], 9).layers[0].keys
    assert keys.isfinite().all()


def test_a_step_writes_its_column_only():
    """No copy of the columns before: that is what the spare room is for."""
    rng = random.Random(0)
    layer = SpacedLayer(*row_states(rng, 4)[:, None])
    layer.update(*row_states(rng, 1)[:, None])
    before = layer.keys.data_ptr()
    for _ in range(8):
        layer.update(*row_states(rng, 1)[:, None])
    assert layer.keys.data_ptr() == before


def test_other_caches_are_refused():
    model: PreTrainedModel = tiny_llama()
    for cache in (StaticCache(config=model.config, max_cache_len=8), None):
        with pytest.raises(InputError, match=r"Found Static.* in LlamaForCausalLM|Found NoneType"):
            check_cache(model, cache)
