"""Continuous batching: every row's tokens are those of `generate` for it alone, whatever joins and leaves."""

from __future__ import annotations

import random
import time

import pytest
import torch
from conftest import tiny_llama
from engine_batching import alone, letter_tokenizer, prompts
from engine_peft import BASES, engine_of, make_adapters
from transformers import (
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from adapterhub.engine import Engine
from adapterhub.route import Route

ROUTES = [
    Route(),
    Route.to("small"),
    Route.to("wide"),
    Route.to("neck"),
    Route(("wide", "neck", "small"), (0.4, 0.5, -0.3)),
    Route(("pattern", "neck-relu"), (1.0, 0.5)),
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def engine(request, tmp_path_factory):
    adapters = make_adapters(request.param, tmp_path_factory.mktemp(request.param))
    with engine_of(request.param, adapters) as engine:
        yield engine


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return make_adapters("llama", tmp_path_factory.mktemp("batching"))


@pytest.fixture(scope="module")
def llama(adapters):
    with engine_of("llama", adapters) as engine:
        yield engine


def greedy(rng):
    return {"max_new_tokens": rng.randint(1, 20), "do_sample": False}


def processed(rng):
    """Options that need processors, greedy or sampled."""
    options = {"max_new_tokens": rng.randint(2, 16), "do_sample": rng.random() < 0.7}
    extras = {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 2,
        "eos_token_id": [1, *range(40, 60)],
        "suppress_tokens": [5, 6, 7],
    }
    options |= {name: extras[name] for name in rng.sample(sorted(extras), 2)}
    if options["do_sample"]:
        options |= {"temperature": 1.5, "top_k": rng.choice([0, 9]), "top_p": rng.choice([0.8, 1.0]), "min_p": 0.001}
        options["seed"] = rng.randrange(1000)
    return options


def run(engine, jobs, rng, **options):
    """Submit at random moments, so that rows join and leave while others decode."""
    with engine.batcher(**options) as batcher:
        generations = []
        for ids, route, how in jobs:
            generations.append(batcher.submit(ids, route, **how))
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.02)
    return [generation.result(0) for generation in generations]


def check(engine, rng, how, *, routes=ROUTES, rows=10, **options):
    jobs = [(ids, rng.choice(routes), how(rng)) for ids in prompts(rng, rows)]
    options = {"max_rows": rng.choice([1, 2, 4, 16]), "prefill_tokens": rng.choice([16, 2048]), **options}
    found = run(engine, jobs, rng, **options)
    for tokens, (ids, route, how) in zip(found, jobs, strict=True):
        assert tokens == alone(engine, ids, route, **how)
    return found


@pytest.mark.parametrize("schedule", range(8))
def test_greedy_rows_equal_generate_whatever_joins_and_leaves(engine, schedule):
    found = check(engine, random.Random(schedule), greedy)
    assert len({len(tokens) for tokens in found}) > 2  # they left at different steps


@pytest.mark.parametrize("schedule", range(4))
def test_processors_and_sampling_equal_generate(engine, schedule):
    check(engine, random.Random(100 + schedule), processed)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", range(40))
def test_many_more_schedules(engine, schedule):
    rng = random.Random(1000 + schedule)
    check(engine, rng, lambda rng: (greedy if rng.random() < 0.6 else processed)(rng), rows=16)


@pytest.mark.parametrize("ranks", [11, 13])
def test_rows_equal_generate_while_adapters_are_evicted(adapters, ranks):
    """The arena holds one large adapter or a few, so that rows wait for ranks and adapters come and go."""
    rng = random.Random(ranks)
    routes = [Route(), Route.to("small"), Route.to("wide"), Route.to("neck"), Route(("small", "wide"), (1.0, 0.5))]
    with engine_of("llama", adapters, arena_ranks=ranks) as engine:
        check(engine, rng, greedy, routes=routes, rows=24, max_rows=4)
        assert engine.stats.evictions > 3


def sliding():
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=6)
    return MistralForCausalLM(config)


def hybrid():
    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv"]
    config = Lfm2Config(**SIZES, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, layer_types=kinds)
    return Lfm2ForCausalLM(config)


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


@pytest.mark.parametrize("make", [sliding, hybrid, BASES["mamba"]], ids=["sliding window", "hybrid", "mamba"])
def test_rows_join_caches_of_windows_and_of_recurrent_states(make):
    rng = random.Random(3)
    with Engine(make(), model_id="tests/base") as engine:
        for _ in range(3):
            check(engine, rng, greedy, routes=[Route()], rows=8)


def test_rows_join_in_bfloat16():
    """Rounding differs with the batch, so only where the likeliest token is clear are tokens to be equal."""
    model = tiny_llama().to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 50
    rng = random.Random(0)
    jobs = [(ids, Route(), {"max_new_tokens": 6, "do_sample": False}) for ids in prompts(rng, 6)]
    with Engine(model, model_id="tests/llama") as engine:
        found = run(engine, jobs, rng)
        expected = [alone(engine, ids, route, **how) for ids, route, how in jobs]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 5


def test_a_seed_draws_the_same_tokens_in_any_company(llama):
    rng = random.Random(5)
    ids = prompts(rng, 1)[0]
    how = {"max_new_tokens": 12, "do_sample": True, "temperature": 2.0, "top_k": 0, "seed": 7}
    lonely = run(llama, [(ids, ROUTES[2], how)], rng)[0]
    for _ in range(3):
        others = [(other, rng.choice(ROUTES), processed(rng)) for other in prompts(rng, 7)]
        at = rng.randrange(len(others))
        found = run(llama, [*others[:at], (ids, ROUTES[2], how), *others[at:]], rng)
        assert found[at] == lonely
    assert run(llama, [(ids, ROUTES[2], {**how, "seed": 8})], rng)[0] != lonely


def test_without_a_seed_torch_s_own_decides(llama):
    rng = random.Random(6)
    jobs = [(ids, Route(), {"max_new_tokens": 12, "do_sample": True, "top_k": 0}) for ids in prompts(rng, 4)]
    torch.manual_seed(3)
    first = run(llama, jobs, rng)
    second = run(llama, jobs, rng)
    torch.manual_seed(3)
    assert run(llama, jobs, rng) == first != second


def test_a_generation_config_and_the_base_s_own_are_followed(llama):
    ids = prompts(random.Random(8), 1)[0]
    config = GenerationConfig(max_new_tokens=9, do_sample=True, top_k=5, repetition_penalty=1.3, eos_token_id=1)
    expected = alone(llama, ids, ROUTES[1], generation_config=config, seed=1)
    with llama.batcher() as batcher:
        assert batcher.submit(ids, ROUTES[1], generation_config=config, seed=1).result(30) == expected
        own = llama.model.generation_config
        own.suppress_tokens = alone(llama, ids, Route(), max_new_tokens=1)
        try:
            found = batcher.submit(ids, Route(), max_new_tokens=5).result(30)
            assert found == alone(llama, ids, Route(), max_new_tokens=5)
            assert own.suppress_tokens[0] not in found
        finally:
            own.suppress_tokens = None


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
        {"num_beams": 2, "do_sample": True, "seed": 4},
        {"num_return_sequences": 2, "do_sample": True, "seed": 4},
        {"prompt_lookup_num_tokens": 2},
        {"guidance_scale": 1.5},
    ],
    ids=" ".join,
)
def test_what_one_step_a_row_cannot_do_is_run_by_generate(llama, how):
    rng = random.Random(9)
    ids, *others = prompts(rng, 5)
    with llama.batcher() as batcher:
        around = [batcher.submit(other, route, max_new_tokens=15) for other, route in zip(others, ROUTES, strict=False)]
        found = batcher.submit(ids, ROUTES[4], max_new_tokens=8, **how)
    assert found.result(0) == alone(llama, ids, ROUTES[4], max_new_tokens=8, **how)
    for other, route, generation in zip(others, ROUTES, around, strict=False):
        assert generation.result(0) == alone(llama, other, route, max_new_tokens=15)


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_end_a_row(llama, beams):
    tokenizer = letter_tokenizer()
    ids = prompts(random.Random(10), 1)[0]
    whole = alone(llama, ids, Route(), max_new_tokens=12)
    stop = tokenizer.decode(whole[3:6])[1:]
    how = {"stop_strings": stop, "tokenizer": tokenizer, "max_new_tokens": 12, "num_beams": beams}
    with llama.batcher() as batcher:
        generation = batcher.submit(ids, Route(), **how)
        other = batcher.submit(ids, Route(), max_new_tokens=12)
    assert generation.result(0) == alone(llama, ids, Route(), **how)
    assert generation.finish_reason == "stop"
    assert other.result(0) == whole
    if beams == 1:
        assert generation.result(0) == whole[: len(generation.result(0))]
        assert stop in tokenizer.decode(generation.result(0))


def test_each_row_says_why_it_ended(llama):
    ids = prompts(random.Random(11), 1)[0]
    whole = alone(llama, ids, Route(), max_new_tokens=10)
    first = whole.index(whole[5])
    with llama.batcher() as batcher:
        eos = batcher.submit(ids, Route(), max_new_tokens=10, eos_token_id=[95, whole[5]])
        length = batcher.submit(ids, Route(), max_new_tokens=10)
        late = batcher.submit(ids, Route(), max_new_tokens=10, max_time=-1.0)
    assert (eos.finish_reason, eos.result()) == ("eos", whole[: first + 1])
    assert (length.finish_reason, length.result()) == ("length", whole)
    assert (late.finish_reason, late.result()) == ("length", whole[:1])
    assert eos.done
