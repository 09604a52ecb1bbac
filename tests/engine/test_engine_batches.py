"""Properties of batches: rows do not disturb one another, nothing stays behind, the base is never written."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch
from engine_peft import BASES, engine_of, make_adapters, texts
from transformers import BertForMaskedLM

from adapterhub.engine import Engine
from adapterhub.route import Route

GENERATING = ("small", "wide", "neck", "neck-relu")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return make_adapters("llama", tmp_path_factory.mktemp("batches"))


@pytest.fixture(scope="module")
def engine(adapters):
    with engine_of("llama", adapters) as engine:
        yield engine


def weights_hash(model):
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


MIXED = [
    Route(),
    Route.to("sequence"),
    Route(("wide", "neck", "small"), (0.4, 0.5, -0.3)),
    Route.to("tokens"),
    Route(("small", "sequence"), (1.0, 0.5)),
    Route(("sequence", "wide"), (0.7, 0.2)),
]


def assert_equal_rows(mine, others, tolerance=1e-6):
    assert len(mine) == len(others)
    for row, other in zip(mine, others, strict=True):
        torch.testing.assert_close(row, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_empty_route_equals_the_bare_base(kind):
    ids, mask = texts(4, 10, side="right")
    model = BASES[kind]()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        generated = model.generate(input_ids=ids[:1], attention_mask=mask[:1], max_new_tokens=8)
    with engine_of(kind, {}) as engine:
        assert all(torch.equal(a, b) for a, b in zip(engine.forward(ids, mask, [Route()] * 4), expected, strict=True))
        mine = engine.generate(ids[:1], mask[:1], [Route()], max_new_tokens=8).sequences
    assert mine.tolist() == generated.tolist()


def test_an_empty_route_equals_a_bare_encoder():
    ids, mask = texts(4, 10, side="right")
    model = BASES["bert"]()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    with engine_of("bert", {}) as engine:
        assert_equal_rows(engine.hidden(ids, mask, [Route()] * 4), expected, 0)


def test_base_rows_beside_adapted_rows_equal_the_base(engine):
    ids, mask = texts(4, 10)
    routes = [Route(), Route.to("wide"), Route(), Route(("neck", "small"), (1.0, 2.0))]
    mixed, bare = engine.forward(ids, mask, routes), engine.forward(ids, mask, [Route()] * 4)
    assert_equal_rows([mixed[0], mixed[2]], [bare[0], bare[2]])


def test_a_masked_language_model_answers_base_rows(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BASES["bert"]().config).eval()
    ids, mask = texts(2, 9, side="right")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    with Engine(model, model_id="tests/mlm") as engine:
        assert_equal_rows(engine.forward(ids, mask, [Route()] * 2), expected, 0)


def test_each_row_of_a_mixed_batch_is_as_if_alone(engine):
    ids, mask = texts(len(MIXED), 11)
    together = engine.forward(ids, mask, MIXED)
    assert [tuple(row.shape) for row in together] == [(11, 96), (3,), (11, 96), (11, 3), (11, 96), (3,)]
    for row, route in enumerate(MIXED):
        alone = engine.forward(ids[row : row + 1], mask[row : row + 1], [route])[0]
        real = mask[row].bool() if alone.ndim == 2 else slice(None)
        torch.testing.assert_close(together[row][real], alone[real], atol=1e-5, rtol=0)


def test_permuting_the_batch_permutes_the_answers(engine):
    ids, mask = texts(len(MIXED), 11)
    order = [3, 5, 0, 4, 1, 2]
    plain = engine.forward(ids, mask, MIXED)
    permuted = engine.forward(ids[order], mask[order], [MIXED[row] for row in order])
    assert_equal_rows(permuted, [plain[row] for row in order], 1e-5)


def test_an_adapter_that_no_row_uses_changes_nothing(adapters):
    ids, mask = texts(2, 9)
    routes = [Route.to("small"), Route(("neck", "wide"), (0.5, 0.5))]
    with engine_of("llama", adapters) as engine:
        before = engine.forward(ids, mask, routes)
        for name in ("tokens", "neck-relu", "sequence", "pattern"):
            engine.load(name)
        assert all(torch.equal(a, b) for a, b in zip(engine.forward(ids, mask, routes), before, strict=True))


def test_evicting_and_reloading_changes_nothing(adapters):
    ids, mask = texts(2, 9)
    routes = [Route.to("small"), Route(("neck", "wide"), (0.5, 0.5))]
    with engine_of("llama", adapters) as engine:
        before = engine.forward(ids, mask, routes)
        engine.evict("wide")
        engine.evict("small")
        assert engine.loaded == ("neck",)
        engine.load("tokens")  # takes the place of one of them
        assert_equal_rows(engine.forward(ids, mask, routes), before)


def test_a_small_arena_answers_like_a_large_one(adapters):
    ids, mask = texts(2, 9)
    with engine_of("llama", adapters, arena_ranks=16) as small, engine_of("llama", adapters) as large:
        for first, second in [("small", "wide"), ("neck", "pattern"), ("wide", "sequence"), ("tokens", "small")]:
            routes = [Route.to(first), Route((second, first), (0.3, 0.8))]
            assert_equal_rows(small.forward(ids, mask, routes), large.forward(ids, mask, routes))
        assert len(small.loaded) < len(large.loaded)


def test_the_base_is_never_written_and_closing_gives_it_back(adapters):
    model = BASES["llama"]()
    before = weights_hash(model)
    names = [name for name, _ in model.named_modules()]
    ids, mask = texts(len(MIXED), 11)
    with Engine(model, model_id="tests/llama") as engine:
        for name, folder in adapters.items():
            engine.add(name, folder)
        engine.forward(ids, mask, MIXED)
        engine.generate(ids, mask, [Route.to("wide")] * len(MIXED), max_new_tokens=3, num_beams=2)
        assert weights_hash(model) == before
        with torch.no_grad():  # outside the engine's calls the base is itself
            assert torch.equal(model(ids).logits, BASES["llama"]()(ids).logits)
    assert weights_hash(model) == before
    assert [name for name, _ in model.named_modules()] == names
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("call", "options"), [("forward", {}), ("hidden", {}), ("generate", {"max_new_tokens": 3, "num_beams": 2})]
)
def test_an_exception_inside_a_pass_leaves_no_plan_behind(adapters, call, options):
    with engine_of("llama", adapters) as engine:
        ids, mask = texts(2, 9)
        before = engine.forward(ids, mask, [Route()] * 2)
        model = engine._backbone.model

        def fail(*_):
            raise ValueError("inside")

        handle = model.model.layers[1].register_forward_hook(fail)
        with pytest.raises(ValueError, match="inside"):
            getattr(engine, call)(ids, mask, [Route.to("wide")] * 2, **options)
        handle.remove()
        assert engine._arena.current is None
        with torch.no_grad():
            assert torch.equal(model(ids).logits, BASES["llama"]()(ids).logits)
        assert_equal_rows(engine.forward(ids, mask, [Route()] * 2), before, 0)


def test_sampling_is_reproducible_under_a_seed(engine):
    ids, mask = texts(3, 8)
    routes = [Route.to("wide"), Route(), Route(("neck", "small"), (0.5, 0.5))]

    def sample(seed):
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "max_new_tokens": 8, "min_new_tokens": 8}
        return engine.generate(ids, mask, routes, **options).sequences.tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert len(sample(3)) == 6


def test_generation_does_not_depend_on_the_padding_side(engine):
    tokens = torch.randint(2, 96, (2, 8), generator=torch.Generator().manual_seed(4))
    left_ids, left_mask = tokens.clone(), torch.ones_like(tokens)
    left_ids[1], left_mask[1] = tokens[1].roll(3), torch.tensor([0] * 3 + [1] * 5)
    right_ids, right_mask = tokens.clone(), torch.ones_like(tokens)
    right_mask[1] = torch.tensor([1] * 5 + [0] * 3)
    routes = [Route.to("wide"), Route.to("neck")]
    new = [
        engine.generate(ids, mask, routes, max_new_tokens=5).sequences[:, 8:].tolist()
        for ids, mask in ((left_ids, left_mask), (right_ids, right_mask))
    ]
    assert new[0] == new[1]


def test_generation_reports_scores(engine):
    ids, mask = texts(2, 8)
    output = engine.generate(ids, mask, [Route.to("wide")] * 2, max_new_tokens=4, num_beams=2, output_scores=True)
    assert output.sequences.shape[0] == output.sequences_scores.shape[0] == 2


def test_threads_do_not_disturb_each_other(adapters):
    """Four threads, two engines of their own bases and two calls at once on each."""
    ids, mask = texts(2, 9)
    engines = [engine_of("llama", adapters, arena_ranks=16) for _ in range(2)]
    routes = [[Route.to(name), Route()] for name in GENERATING]
    expected = [engines[0].forward(ids, mask, route) for route in routes]
    wrong = []

    def work(index):
        for step in range(12):
            pick = (index + step) % len(routes)
            found = engines[index % 2].forward(ids, mask, routes[pick])
            if any((a - b).abs().max() > 1e-5 for a, b in zip(found, expected[pick], strict=True)):
                wrong.append((index, step))

    run(work, 4)
    assert wrong == []


def test_two_engines_on_one_base_do_not_disturb_each_other(adapters):
    ids, mask = texts(2, 9)
    model = BASES["llama"]()
    engines = [Engine(model, model_id="tests/llama") for _ in range(2)]
    names = ("wide", "neck")
    for engine in engines:
        for name in names:
            engine.add(name, adapters[name])
    expected = [engine.forward(ids, mask, [Route.to(name)] * 2) for engine, name in zip(engines, names, strict=True)]
    wrong = []

    def work(index):
        for step in range(12):
            found = engines[index].forward(ids, mask, [Route.to(names[index])] * 2)
            if any((a - b).abs().max() > 1e-5 for a, b in zip(found, expected[index], strict=True)):
                wrong.append((index, step))

    run(work, 2)
    assert wrong == []


def run(work, count):
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_base_in_half_precision_stays_close(adapters):
    ids, mask = texts(3, 9)
    routes = [Route.to("wide"), Route.to("sequence"), Route(("neck", "small"), (0.5, 0.5))]
    with engine_of("llama", adapters) as full:
        expected = full.forward(ids, mask, routes)
    with Engine(BASES["llama"]().bfloat16(), model_id="tests/llama") as half:
        for name, folder in adapters.items():
            half.add(name, folder)
        for mine, peer in zip(half.forward(ids, mask, routes), expected, strict=True):
            assert mine.dtype == torch.bfloat16
            assert (mine.float() - peer).abs().max() < 0.1
