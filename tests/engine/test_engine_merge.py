"""`merged`: a plain model that answers as the route does, and that is saved and loaded as any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import tiny_llama
from engine_peft import BASES, METHODS, lora, make_adapters, make_methods, reference, save
from engine_reference import answer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from adapterhub.adapter import Adapter, LowRank, describe_base, read_adapter
from adapterhub.engine._arena import Arena
from adapterhub.engine._backbone import Backbone
from adapterhub.engine._delta import Delta, Folded, fold
from adapterhub.engine._merge import merged
from adapterhub.errors import InputError
from adapterhub.route import Route

TOKENS = torch.tensor([5, 17, 40, 3, 88, 2])
DECODED = torch.tensor([0, 9, 31])
# Those that add nothing but matrices and vectors to plain weights; Llama and T5 have no bias for `lora-bias` to go to.
LINEAR = tuple(name for name in METHODS if not name.startswith("bottleneck"))
GATES = (0.75, -0.5, 1.0, 0.25)


def linear(kind: str) -> list[str]:
    return [name for name in LINEAR if name != "lora-bias" or kind in {"gpt2", "bert"}]


def lookup(model: PreTrainedModel, name: str) -> nn.Module:
    return model.lm_head if name == "lm_head" else model.base_model.get_submodule(name)


def read(kind: str, folders: Mapping[str, Path]) -> dict[str, Adapter]:
    base = describe_base(BASES[kind](), f"tests/{kind}")
    return {name: read_adapter(folder, base) for name, folder in folders.items()}


def merge(model: PreTrainedModel, adapters: Mapping[str, Adapter], route: Route) -> PreTrainedModel:
    def find(name: str) -> nn.Module:
        return lookup(model, name)

    return merged(model, route, {name: fold(adapters[name], find) for name in route.adapters}, find)


def says(model: PreTrainedModel) -> torch.Tensor:
    return answer(model, {}, Route(), TOKENS, DECODED if model.config.is_encoder_decoder else None)


def close(mine: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert mine.shape == other.shape
    assert float((mine.double() - other.double()).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def hooks(model: PreTrainedModel) -> list[str]:
    return [name for name, m in model.named_modules() if m._forward_hooks or "forward" in vars(m)]


def storages(values: Iterable[torch.Tensor]) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in values}


@pytest.fixture(scope="module", params=BASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Path]]:
    kind = request.param
    return kind, make_methods(kind, tmp_path_factory.mktemp(kind), linear(kind))


def test_one_adapter_of_each_method_equals_peft(world: tuple[str, dict[str, Path]]) -> None:
    kind, folders = world
    adapters = read(kind, folders)
    base = says(BASES[kind]())
    for name, folder in folders.items():
        plain = says(merge(BASES[kind](), adapters, Route.to(name)))
        close(plain, says(reference(kind, folder).base_model.model))
        assert float((plain - base).abs().max()) > 1e-3, name


def test_a_weighted_sum_of_methods_equals_the_formula(world: tuple[str, dict[str, Path]]) -> None:
    kind, folders = world
    adapters = read(kind, folders)
    names = list(folders)
    decoded = DECODED if kind == "t5" else None
    for start in range(len(names)):
        chosen = tuple((names * 2)[start : start + 4])
        route = Route(chosen, GATES)
        model = BASES[kind]()
        plain = merge(model, adapters, route)
        close(says(plain), answer(model, adapters, route, TOKENS, decoded))
        assert hooks(plain) == []


def test_what_is_saved_is_what_was_merged(world: tuple[str, dict[str, Path]], tmp_path: Path) -> None:
    kind, folders = world
    model = BASES[kind]()
    plain = merge(model, read(kind, folders), Route(tuple(folders), (0.25,) * len(folders)))
    plain.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert torch.equal(says(again.eval()), says(plain))


def test_the_base_and_its_engine_are_left_alone(tmp_path: Path) -> None:
    folders = make_methods("gpt2", tmp_path, linear("gpt2"))
    adapters, model = read("gpt2", folders), BASES["gpt2"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = Backbone(model)
    arena = Arena(backbone.module, 256)
    folded = {name: fold(adapter, backbone.module) for name, adapter in adapters.items()}
    for name, delta in folded.items():
        arena.place(name, delta)
    route = Route(tuple(folders), tuple(0.1 * n - 0.3 for n in range(len(folders))))
    patched = hooks(model)
    assert len(patched) > 10
    plan = arena.plan([route])
    with arena.running(plan):
        unmerged = says(model)
        plain = merged(model, route, folded, backbone.module)
        assert torch.equal(says(model), unmerged)
        close(says(plain), unmerged)
    assert hooks(model) == patched
    assert hooks(plain) == []
    assert not plain.training
    assert storages(model.state_dict().values()).isdisjoint(storages(plain.state_dict().values()))
    arena.close()
    backbone.close()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_empty_route_is_a_copy_of_the_base() -> None:
    model = BASES["gpt2"]()
    plain = merge(model, {}, Route())
    assert torch.equal(says(plain), says(model))
    assert plain.lm_head.weight is plain.transformer.wte.weight
    assert plain.config.tie_word_embeddings


def tied_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny_llama().config.to_dict(), "tie_word_embeddings": True})
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("place", ["embed_tokens", "lm_head"])
def test_shared_weights_of_which_one_side_changes_are_separated(place: str, tmp_path: Path) -> None:
    model = tied_llama()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.manual_seed(1)
    down, up = (
        torch.randn(3, 96 if place == "embed_tokens" else 32),
        torch.randn(3, 32 if place == "embed_tokens" else 96),
    )
    low = LowRank(down, up * 0.1, "tokens" if place == "embed_tokens" else "input")
    adapter = Adapter("here", "LORA", "", "", "", modules={place: low})
    plain = merge(model, {"a": adapter}, Route.to("a"))
    close(says(plain), answer(model, {"a": adapter}, Route.to("a"), TOKENS))
    other = plain.lm_head if place == "embed_tokens" else plain.model.embed_tokens
    assert torch.equal(other.weight, model.lm_head.weight)
    assert not plain.config.tie_word_embeddings
    assert model.config.tie_word_embeddings
    plain.save_pretrained(tmp_path)
    assert torch.equal(says(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), says(plain))


def test_a_model_that_answers_otherwise_when_separated_is_refused() -> None:
    config = UMT5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = UMT5ForConditionalGeneration(config).eval()
    assert model.lm_head.weight is model.shared.weight
    low = LowRank(torch.ones(1, 32), torch.ones(1, 96))
    with pytest.raises(InputError, match="UMT5ForConditionalGeneration, which answers otherwise"):
        merge(model, {"a": Adapter("here", "LORA", "", "", "", modules={"lm_head": low})}, Route.to("a"))


def test_an_input_gain_and_a_low_rank_at_one_module() -> None:
    model = tiny_llama()
    torch.manual_seed(2)
    low = LowRank(torch.randn(4, 64) * 0.2, torch.randn(4, 32) * 0.2)
    both = {
        "scaled": make_scaled("layers.0.mlp.down_proj", 64),
        "lora": Adapter("here", "LORA", "", "", "", modules={"layers.0.mlp.down_proj": low}),
    }
    route = Route(("scaled", "lora"), (0.5, -1.5))
    close(says(merge(model, both, route)), answer(model, both, route, TOKENS))


def make_scaled(place: str, width: int) -> Adapter:
    from adapterhub.adapter import Scaling

    return Adapter("here", "IA3", "", "", "", scalings={place: Scaling(1 + torch.randn(width) * 0.3, "input")})


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "a", lora("llama", ["q_proj", "down_proj"], 4), 3)
    model = tiny_llama()
    adapters = read("llama", {"a": folder})
    exact = merge(model, adapters, Route.to("a"))
    rounded = merge(tiny_llama().bfloat16().float(), adapters, Route.to("a")).bfloat16()
    plain = merge(tiny_llama().bfloat16(), adapters, Route.to("a"))
    assert plain.dtype == torch.bfloat16
    assert all(torch.equal(value, rounded.state_dict()[name]) for name, value in plain.state_dict().items())
    close(says(plain), says(exact), 5e-2)


def test_what_does_not_merge_is_listed(tmp_path: Path) -> None:
    folders = make_adapters("llama", tmp_path)
    folders["biased"] = save("llama", tmp_path / "biased", lora("llama", ["q_proj"], 2, lora_bias=True), 9)
    names = ("small", "neck", "sequence", "biased")
    with pytest.raises(InputError) as error:
        merge(tiny_llama(), read("llama", folders), Route(names, (1.0,) * 4))
    said = str(error.value)
    assert "neck: a bottleneck (gelu) at layers.0.mlp.down_proj and 3 more modules" in said
    assert "sequence: a head of its own" in said
    assert "layers.0.self_attn.q_proj: no bias of its own" in said
    assert "small" not in said


def test_quantised_weights_and_strange_modules_are_refused() -> None:
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), False)
    low = LowRank(torch.ones(1, 32), torch.ones(1, 32))
    deltas = {place: Delta(low) for place in ("layers.0.self_attn.q_proj", "norm")}
    with pytest.raises(InputError) as error:
        merged(model, Route.to("a"), {"a": Folded("", deltas)}, lambda name: lookup(model, name))
    assert "layers.0.self_attn.q_proj: quantised weights" in str(error.value)
    assert "norm: LlamaRMSNorm, which is no linear module" in str(error.value)
