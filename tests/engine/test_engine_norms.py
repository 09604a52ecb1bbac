"""Normalisations stored beside another method's tensors: kept in the packed cache, merged, and gone without a trace."""

from __future__ import annotations

import pytest
import torch
from engine_peft import BASES, NORMS, engine_of, methods, reference, save, texts
from peft.tuners.lora import LoraLayer

from adapterhub.adapter import content_hash
from adapterhub.engine import Engine
from adapterhub.route import Route

BOTH = ("lora-norms", "bottleneck-norms")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(kind, tmp_path_factory):
    root = tmp_path_factory.mktemp(kind)
    return {name: save(kind, root / name, methods(kind, 5)[name], seed) for seed, name in enumerate(BOTH)}


def answers(engine: Engine, name: str) -> torch.Tensor:
    ids, mask = texts(2, 9)
    return torch.stack([row[-3:] for row in engine.forward(ids, mask, [Route.to(name), Route((name,), (-0.5,))])])


@pytest.mark.parametrize("name", BOTH)
def test_the_packed_cache_gives_the_same_bits(kind, folders, name, tmp_path):
    found, loads = [], []
    for _ in range(2):
        with Engine(BASES[kind](), model_id=f"tests/{kind}", cache=tmp_path) as engine:
            engine.add(name, folders[name], sha256=content_hash(folders[name]))
            found.append(answers(engine, name))
            loads.append(engine.stats.packed_loads)
    assert loads == [0, 1]
    assert torch.equal(*found)


def test_a_task_leaves_nothing_behind_for_the_next(kind, folders):
    with engine_of(kind, folders) as engine:
        first = answers(engine, "lora-norms")
        assert (answers(engine, "bottleneck-norms") - first).abs().max() > 0.01
        assert torch.equal(answers(engine, "lora-norms"), first)


def test_a_merged_normalisation_is_pefts_own(kind, folders):
    with engine_of(kind, folders) as engine:
        plain = engine.merge(Route.to("lora-norms"))
    peer = reference(kind, folders["lora-norms"]).merge_and_unload()
    base, changed = BASES[kind]().base_model, 0
    for name, value in peer.base_model.named_parameters():
        norm = name.split(".")[-2] in NORMS[kind]
        changed += norm and not torch.equal(value, base.get_parameter(name))
        # The base's value and then the difference to it: one rounding.
        mine = plain.base_model.get_parameter(name)
        torch.testing.assert_close(mine, value, rtol=0, atol=5e-7 if norm else 1e-5)
    assert changed == (5 if kind == "llama" else 10)


def test_half_of_an_adapter_is_half_of_each_of_its_parts(kind, folders):
    """Half its ΔW, and normalisations halfway from the base's to its own."""
    model, base = reference(kind, folders["lora-norms"]), BASES[kind]()
    ids, mask = texts(2, 9, side="right")
    with torch.no_grad():
        for name, parameter in model.base_model.model.named_parameters():
            if ".modules_to_save.default." in name:
                own = base.get_parameter(name.replace(".modules_to_save.default.", "."))
                parameter.copy_(own + 0.5 * (parameter - own))
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] *= 0.5
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    with engine_of(kind, folders) as engine:
        found = engine.forward(ids, mask, [Route(("lora-norms",), (0.5,))] * 2)
    for row, mine in enumerate(found):
        real = mask[row].bool()
        torch.testing.assert_close(mine[real], expected[row][real], atol=1e-5, rtol=0)
