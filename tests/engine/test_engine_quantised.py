"""A quantised base with adapters in float on top: quantised output plus float delta, and base rows untouched."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_llama
from engine_peft import METHODS, draw, methods, quiet
from engine_reference import answer
from peft import PeftModel, get_peft_model
from rounded_linear import Int8Linear, imported, int8_config
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from adapterhub.adapter import describe_base, read_adapter, seal
from adapterhub.engine import Engine
from adapterhub.errors import IncompatibleAdapterError, InputError
from adapterhub.route import Route

MODEL_ID = "tests/llama"
WIDTH = 64  # a block of the 4-bit kernels
PLAIN = tuple(name for name in METHODS if not name.startswith("dora"))
DORA = tuple(name for name in METHODS if name.startswith("dora"))


def base() -> PreTrainedModel:
    return tiny_llama(hidden=WIDTH)


def with_linears(model: PreTrainedModel, make: Callable[[nn.Linear], nn.Linear]) -> PreTrainedModel:
    for name, module in list(model.base_model.named_modules()):
        if isinstance(module, nn.Linear):
            model.base_model.set_submodule(name, make(module))
    return model


def by_hand(folder):
    return with_linears(base(), Int8Linear)


def with_torchao(folder):
    """torchao's own way: weights are quantised in place."""
    config = int8_config()
    model = base()
    importlib.import_module("torchao.quantization").quantize_(model, config)
    return model


def through_transformers(folder):
    return loaded(folder, TorchAoConfig(int8_config()))


def with_8_bit(folder):
    imported("bitsandbytes")
    # With a threshold, one row's outliers decide how the columns of all rows are rounded: no row is alone then.
    return loaded(folder, BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0))


def with_4_bit(folder):
    imported("bitsandbytes")
    return loaded(folder, BitsAndBytesConfig(load_in_4bit=True))


QUANTISED: dict[str, Callable[..., PreTrainedModel]] = {
    "by-hand": by_hand,
    "torchao": with_torchao,
    "torchao-transformers": through_transformers,
    "bitsandbytes-8": with_8_bit,
    "bitsandbytes-4": with_4_bit,
}


def loaded(folder, config) -> PreTrainedModel:
    """A base quantised by transformers, or a skip where its kernels do not run on this machine."""
    options = {"quantization_config": config, "dtype": torch.float32}
    try:
        trial = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        with torch.no_grad():
            trial(input_ids=torch.tensor([[2, 3]]))
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"{type(config).__name__} cannot run here: {str(error).splitlines()[0]}")
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()  # one that never ran: PEFT needs that


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The float base's folder and its signature."""
    folder = tmp_path_factory.mktemp("base")
    base().save_pretrained(folder)
    return folder, describe_base(base(), MODEL_ID)


@pytest.fixture(scope="module")
def folders(saved, tmp_path_factory):
    """An adapter of every method, of ranks 1 to 17, sealed to the float base."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(METHODS):
        with quiet():
            model = get_peft_model(base(), methods("llama", (1 + 2 * seed) % 18)[name], autocast_adapter_dtype=False)
            draw(model, seed)
            model.save_pretrained(root / name, save_embedding_layers=False)
        seal(root / name, saved[1])
    return {name: root / name for name in METHODS}


@pytest.fixture(scope="module")
def adapters(saved, folders):
    return {name: read_adapter(folder, saved[1]) for name, folder in folders.items()}


@pytest.fixture(scope="module", params=QUANTISED)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def quantised(kind, saved) -> PreTrainedModel:
    """The reference: a quantised base that no engine holds."""
    return QUANTISED[kind](saved[0])


@pytest.fixture(scope="module")
def engine(kind, saved, folders, quantised):
    with Engine(QUANTISED[kind](saved[0]), base=saved[1]) as engine:
        for name, folder in folders.items():
            engine.add(name, folder)
        yield engine


def batch(rows: int, tokens: int = 7):
    ids = torch.randint(2, 96, (rows, tokens), generator=torch.Generator().manual_seed(rows))
    return ids, torch.ones_like(ids)


def noise(kind: str) -> float:
    """What float32's last bit becomes: 4-bit kernels round their input to bfloat16, at times to its other neighbour."""
    return 5e-4 if kind == "bitsandbytes-4" else 2e-5


def test_the_base_is_quantised(quantised):
    """Or the other tests would compare a float base with itself."""
    linears = [m for m in quantised.base_model.modules() if isinstance(m, nn.Linear)]
    assert linears
    assert all(type(m.weight.data) is not torch.Tensor or not m.weight.is_floating_point() for m in linears)
    ids, _ = batch(1)
    with torch.no_grad():
        change = quantised(input_ids=ids).logits - base()(input_ids=ids).logits
    assert 1e-4 < change.abs().max() < 0.5


@pytest.mark.parametrize("name", PLAIN)
def test_a_method_is_the_quantised_output_and_the_float_delta(kind, engine, quantised, adapters, name):
    ids, mask = batch(3)
    found = engine.forward(ids, mask, [Route.to(name), Route(), Route((name,), (-0.5,))])
    for row, route in ((0, Route.to(name)), (2, Route((name,), (-0.5,)))):
        expected = answer(quantised, adapters, route, ids[row])
        torch.testing.assert_close(found[row], expected, atol=noise(kind), rtol=0)
        assert not torch.allclose(expected, answer(quantised, {}, Route(), ids[row]), atol=1e-3)


@pytest.mark.parametrize("name", DORA)
def test_dora_takes_the_norm_of_the_quantised_weight(kind, engine, saved, folders, name):
    """PEFT's 4-bit norms are of weights before their kernel rounds them to bfloat16, ours of what it multiplies by."""
    ids, mask = batch(2)
    model = QUANTISED[kind](saved[0])
    if kind == "by-hand":
        model = with_linears(model, Int8Linear.restored)
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")
        model = PeftModel.from_pretrained(model, folders[name], autocast_adapter_dtype=False)
        expected = model.eval()(input_ids=ids).logits
    found = torch.stack(engine.forward(ids, mask, [Route.to(name)] * 2))
    base = torch.stack(engine.forward(ids, mask, [Route()] * 2))
    tolerance = 0.02 if kind == "bitsandbytes-4" else 2e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert (expected - base).abs().max() > 10 * tolerance


def test_a_mixture_of_every_method_in_one_batch(kind, engine, quantised, adapters):
    ids, mask = batch(7)
    routes = [Route((one, other), (0.75, -0.5)) for one, other in zip(PLAIN[:6], PLAIN[7:], strict=True)] + [Route()]
    for row, found in enumerate(engine.forward(ids, mask, routes)):
        torch.testing.assert_close(found, answer(quantised, adapters, routes[row], ids[row]), atol=noise(kind), rtol=0)


@pytest.mark.parametrize("plan", ["dense", "packed", "segment"])
def test_base_rows_are_the_quantised_base_exactly(engine, plan):
    ids, mask = batch(4)
    with torch.no_grad():
        bare = engine.model(input_ids=ids, attention_mask=mask).logits
    with engine.planned([Route.to("lora"), Route(), Route.to("ia3"), Route()], plan=plan):
        found = engine.model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(found[1::2], bare[1::2])
    assert not torch.allclose(found[::2], bare[::2], atol=1e-3)


def test_it_generates_what_its_rows_generate_alone(engine):
    ids, mask = batch(4, tokens=5)
    routes = [Route.to("lora"), Route(), Route.to("bottleneck"), Route(("norms", "ia3"), (1.0, 0.5))]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = engine.generate(ids, mask, routes, **options).sequences
    for row, route in enumerate(routes):
        alone = engine.generate(ids[row : row + 1], mask[row : row + 1], [route], **options).sequences
        assert torch.equal(together[row], alone[0])


def test_no_weight_of_the_base_changes(kind, saved, folders):
    model = QUANTISED[kind](saved[0])
    ids, mask = batch(2)
    with torch.no_grad():
        before = model(input_ids=ids).logits
    with Engine(model, base=saved[1]) as engine:
        for name, folder in folders.items():
            engine.add(name, folder)
            engine.forward(ids, mask, [Route.to(name), Route()])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_its_signature_has_the_float_base_modules_but_another_fingerprint(quantised, saved):
    found = describe_base(quantised, MODEL_ID)
    assert found.modules == saved[1].modules
    assert found.norms == saved[1].norms
    assert found.fingerprint != saved[1].fingerprint
    assert describe_base(quantised, MODEL_ID).fingerprint == found.fingerprint


def test_an_adapter_of_the_float_base_is_refused_without_its_signature(kind, saved, folders):
    ids, mask = batch(1)
    with Engine(QUANTISED[kind](saved[0]), model_id=MODEL_ID) as engine:
        engine.add("lora", folders["lora"])
        with pytest.raises(IncompatibleAdapterError, match=r"quantised.*`base=`"):
            engine.forward(ids, mask, [Route.to("lora")])


def test_a_cache_is_not_shared_with_the_float_base(kind, saved, folders, adapters, tmp_path):
    """What is folded into DoRA depends on the weights as they are, not on those that the adapter was sealed to."""
    ids, mask = batch(1)
    named = {"folder": folders["dora"], "sha256": adapters["dora"].sha256}
    with Engine(base(), model_id=MODEL_ID, cache=tmp_path) as engine:
        engine.add("dora", **named)
        engine.forward(ids, mask, [Route.to("dora")])
    assert any(path.is_file() for path in tmp_path.rglob("*"))
    answers = []
    for cache in (tmp_path, None):
        with Engine(QUANTISED[kind](saved[0]), base=saved[1], cache=cache) as engine:
            engine.add("dora", **named)
            answers.append(engine.forward(ids, mask, [Route.to("dora")])[0])
            assert not engine.stats.packed_loads
    assert torch.equal(*answers)


def test_quantised_weights_are_not_merged_into(engine):
    with pytest.raises(InputError, match="quantised"):
        engine.merge(Route.to("lora"))
