"""Requests and bases that continuous batching refuses, at once and with a remedy."""

from __future__ import annotations

import random

import pytest
from conftest import tiny_llama
from engine_batching import prompts
from engine_peft import BASES, engine_of

from adapterhub.engine import Engine
from adapterhub.engine._rows import RunningRows
from adapterhub.errors import InputError
from adapterhub.route import Route

NEW = {"max_new_tokens": 10, "do_sample": False}


@pytest.fixture(scope="module")
def engine():
    with engine_of("llama", {}) as engine:
        yield engine


@pytest.fixture
def rows():
    return prompts(random.Random(0), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 60}, "at most 64 in all"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokenz": 5}, "max_new_tokenz"),
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"streamer": object()}, "streamer"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores, return_dict_in_generate"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "Hub"),
        ({"stop_strings": ["a"]}, "tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_options_that_cannot_be_are_refused_at_once(engine, rows, options, message):
    with engine.batcher() as batcher, pytest.raises(InputError, match=message):
        batcher.submit(rows[0], Route(), **{"max_new_tokens": 5, **options})


@pytest.mark.parametrize("ids", [[], [96], [-1], [[2, 3]], list(range(2, 70))])
def test_prompts_that_cannot_be_are_refused_at_once(engine, ids):
    with engine.batcher() as batcher, pytest.raises(InputError):
        batcher.submit(ids, Route(), **NEW)


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"max_waiting": 0, "prefill_tokens": -1}])
def test_numbers_that_cannot_be_are_refused(engine, options):
    with pytest.raises(InputError) as info:
        engine.batcher(**options)
    assert all(f"{name} should be at least 1" in str(info.value) for name in options)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_base_whose_rows_cannot_join_says_what_to_call_instead(kind):
    with Engine(BASES[kind](), model_id="tests/base") as engine, pytest.raises(InputError, match="LM head"):
        RunningRows(engine.model, engine._arena)


def test_chunked_attention_is_refused(engine):
    model = tiny_llama()
    model.config.attention_chunk_size = 8
    with pytest.raises(InputError, match=r"chunked attention.*Engine\.generate"):
        RunningRows(model, engine._arena)
