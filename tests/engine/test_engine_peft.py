"""The engine's main test: it equals PEFT, for every sort of adapter on every sort of base."""

from __future__ import annotations

import pytest
import torch
from engine_peft import (
    BASES,
    MLP,
    SEQUENCE,
    engine_of,
    lora,
    make_adapters,
    model_for,
    reference,
    save,
    texts,
)
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from adapterhub.route import Route

KINDS = tuple(BASES)
CLASSIFYING = tuple(SEQUENCE)
GENERATORS = tuple(kind for kind in BASES if kind != "bert")
GENERATING = ("small", "wide", "pattern", "neck", "neck-relu")
HEADS = ("sequence", "tokens", "tokens-norms", "sequence-neck")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def adapters(kind, tmp_path_factory):
    return make_adapters(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def engine(kind, adapters):
    with engine_of(kind, adapters) as engine:
        yield engine


def positions(kind, mask):
    """Positions as generation counts them; a decoder's plain forward counts padding too. Some bases count none."""
    return {} if kind in {"bert", "t5", "mamba"} else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def peft_answer(kind, model, ids, mask):
    """PEFT's answer for a batch: logits, or hidden states of a bare encoder."""
    decoder = {"decoder_input_ids": torch.zeros(len(ids), 1, dtype=torch.long)} if kind == "t5" else {}
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, **positions(kind, mask), **decoder)
    return output.logits if "logits" in output else output.last_hidden_state


def ours(kind, engine, ids, mask, routes, name):
    return (
        engine.hidden(ids, mask, routes) if kind == "bert" and name in GENERATING else engine.forward(ids, mask, routes)
    )


def assert_same(mine, peers, mask, per_token, tolerance=1e-5):
    for row, (mine_row, peer_row) in enumerate(zip(mine, peers, strict=True)):
        # An encoder-decoder answers at its decoder's tokens, of which there is no padding here.
        real = mask[row].bool() if per_token and len(mine_row) == len(mask[row]) else slice(None)
        torch.testing.assert_close(mine_row[real], peer_row[real], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", GENERATING)
def test_each_adapter_alone_equals_peft(kind, adapters, engine, name):
    ids, mask = texts(4, 12, side="right")
    mine = ours(kind, engine, ids, mask, [Route.to(name)] * 4, name)
    assert_same(mine, peft_answer(kind, reference(kind, adapters[name]), ids, mask), mask, per_token=True)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", CLASSIFYING, indirect=True, scope="module")
def test_each_adapter_with_a_head_equals_peft(kind, adapters, engine, name):
    ids, mask = texts(4, 12, side="right")
    mine = engine.forward(ids, mask, [Route.to(name)] * 4)
    peers = peft_answer(kind, reference(kind, adapters[name]), ids, mask)
    assert_same(mine, peers, mask, per_token=name.startswith("tokens"))


def test_one_batch_of_many_routes_equals_peft_row_by_row(kind, adapters, engine):
    names = [name for name in adapters if kind != "bert" or name not in GENERATING]
    ids, mask = texts(len(names), 12, seed=3, side="right")
    mine = engine.forward(ids, mask, [Route.to(name) for name in names])
    for row, name in enumerate(names):
        peer = peft_answer(kind, reference(kind, adapters[name]), ids[row : row + 1], mask[row : row + 1])
        assert_same(mine[row : row + 1], peer, mask[row : row + 1], per_token=not name.startswith("sequence"))


def test_a_gate_scales_what_peft_scales(kind, adapters, engine):
    ids, mask = texts(2, 9, side="right")
    model = reference(kind, adapters["wide"])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= -0.7
    mine = ours(kind, engine, ids, mask, [Route(("wide",), (-0.7,))] * 2, "wide")
    assert_same(mine, peft_answer(kind, model, ids, mask), mask, per_token=True)


def test_weighted_sums_equal_pefts_exact_combination(kind, tmp_path):
    ranks = {"a": 3, "b": 8, "c": 4}
    folders = {
        name: save(kind, tmp_path / name, lora(kind, MLP[kind], rank), seed=rank) for name, rank in ranks.items()
    }
    weights = (0.5, 0.3, 0.9)
    model = PeftModel.from_pretrained(model_for(kind), folders["a"], adapter_name="one", autocast_adapter_dtype=False)
    model.load_adapter(folders["b"], "two", autocast_adapter_dtype=False)
    model.load_adapter(folders["c"], "three", autocast_adapter_dtype=False)
    model.add_weighted_adapter(["one", "two", "three"], list(weights), "sum", combination_type="cat")
    model.set_adapter("sum")
    ids, mask = texts(3, 11, side="right")
    with engine_of(kind, folders) as engine:
        mine = ours(kind, engine, ids, mask, [Route(("a", "b", "c"), weights)] * 3, "small")
    assert_same(mine, peft_answer(kind, model.eval(), ids, mask), mask, per_token=True)


@pytest.mark.parametrize("name", ["sequence", "sequence-neck", "tokens"])
@pytest.mark.parametrize("kind", CLASSIFYING, indirect=True, scope="module")
def test_left_and_right_padding_answer_alike(kind, engine, name):
    left, right = texts(4, 12), texts(4, 12, side="right")
    tokens = torch.randint(2, 96, (4, 12), generator=torch.Generator().manual_seed(9))
    for ids, mask in (left, right):
        for row in range(4):
            ids[row][mask[row].bool()] = tokens[row, : int(mask[row].sum())]
    routes = [Route.to(name)] * 4
    mine, peers = engine.forward(*left, routes), engine.forward(*right, routes)
    if name == "tokens":
        mine, peers = (
            [row[real.bool()] for row, real in zip(a, m, strict=True)] for a, m in ((mine, left[1]), (peers, right[1]))
        )
    for one, other in zip(mine, peers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", CLASSIFYING, indirect=True, scope="module")
def test_sequence_answers_do_not_depend_on_the_padding(kind, adapters, engine):
    ids, mask = texts(3, 12)
    mine = engine.forward(ids, mask, [Route.to("sequence")] * 3)
    model = reference(kind, adapters["sequence"])
    for row in range(3):
        alone = ids[row][mask[row].bool()][None]
        peer = peft_answer(kind, model, alone, torch.ones_like(alone))
        assert_same(mine[row : row + 1], peer, mask, per_token=False)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}],
    ids=["greedy", "beams", "beams-returned"],
)
@pytest.mark.parametrize("generating", GENERATORS)
def test_generation_equals_peft(decoders, generating, name, options):
    adapters, engine = decoders[generating]
    ids, mask = texts(3, 8)
    mine = engine.generate(ids, mask, [Route.to(name)] * 3, max_new_tokens=6, min_new_tokens=6, **options)
    with torch.no_grad():
        peer = reference(generating, adapters[name]).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, **options
        )
    assert mine.sequences.tolist() == peer.tolist()


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    made = {kind: make_adapters(kind, tmp_path_factory.mktemp(f"generate-{kind}")) for kind in GENERATORS}
    return {kind: (adapters, engine_of(kind, adapters)) for kind, adapters in made.items()}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("generating", GENERATORS)
def test_a_mixed_batch_generates_what_peft_generates_row_by_row(decoders, generating, options):
    adapters, engine = decoders[generating]
    routes = [Route.to(name) for name in GENERATING] + [Route()]
    ids, mask = texts(len(routes), 8, seed=5)
    mine = engine.generate(ids, mask, routes, max_new_tokens=6, min_new_tokens=6, **options).sequences
    mine = mine.view(len(routes), -1, mine.shape[1])
    for row, route in enumerate(routes):
        model = reference(generating, adapters[route.adapters[0]]) if route.adapters else model_for(generating)
        with torch.no_grad():
            peer = model.generate(
                input_ids=ids[row : row + 1],
                attention_mask=mask[row : row + 1],
                max_new_tokens=6,
                min_new_tokens=6,
                **options,
            )
        assert mine[row].tolist() == peer.tolist()


@pytest.mark.parametrize("generating", GENERATORS)
def test_one_prompt_is_continued_differently_by_each_route(decoders, generating):
    routes = [Route.to(name) for name in GENERATING] + [Route()]
    ids, mask = (tensor.expand(len(routes), -1) for tensor in texts(1, 8))
    new = decoders[generating][1].generate(ids, mask, routes, max_new_tokens=8, min_new_tokens=8).sequences[:, 8:]
    assert len(set(map(tuple, new.tolist()))) >= 4  # a random GPT-2 likes to repeat one token


def test_an_adapter_on_the_lm_head_equals_peft(tmp_path):
    folder = save("llama", tmp_path / "head", lora("llama", ["q_proj", "lm_head"], 4), seed=0)
    ids, mask = texts(3, 9)
    with engine_of("llama", {"head": folder}) as engine:
        mine = engine.forward(ids, mask, [Route.to("head")] * 3)
        tokens = engine.generate(ids, mask, [Route.to("head")] * 3, max_new_tokens=5, num_beams=2).sequences
    model = reference("llama", folder)
    assert_same(mine, peft_answer("llama", model, ids, mask), mask, per_token=True)
    with torch.no_grad():
        peer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, num_beams=2)
    assert tokens.tolist() == peer.tolist()
