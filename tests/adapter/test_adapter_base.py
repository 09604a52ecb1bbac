"""The base's signature: the same for every way to hold the same weights, another for other weights."""

from __future__ import annotations

import time

import pytest
import torch
from adapter_folders import lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from adapterhub.adapter import describe_base
from adapterhub.errors import InputError


def test_modules_are_named_from_the_backbone(llama, gpt2, bert):
    signature = describe_base(llama)
    assert signature.prefix == "model"
    assert signature.hidden_size == 32
    assert len(signature.modules) == 15
    assert signature.modules["layers.1.mlp.down_proj"] == (64, 32)
    assert signature.modules["lm_head"] == (32, 96)
    assert describe_base(gpt2).modules["h.0.attn.c_attn"] == (32, 96)
    assert describe_base(bert).modules["encoder.layer.1.output.dense"] == (64, 32)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert])
@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_the_head_on_top_does_not_matter(make, auto):
    model = make()
    other = auto.from_config(model.config)
    other.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    one, two, bare = describe_base(model), describe_base(other), describe_base(model.base_model)
    assert one.fingerprint == two.fingerprint == bare.fingerprint
    assert one.prefix == two.prefix == bare.prefix
    kept = {name: shape for name, shape in one.modules.items() if name != "lm_head" and not name.startswith("pooler.")}
    assert kept == {n: s for n, s in two.modules.items() if not n.startswith("pooler.")}


def test_berts_language_model_and_its_bare_model_agree():
    model = tiny_bert()
    other = BertForMaskedLM(model.config)
    other.bert.load_state_dict(model.state_dict(), strict=False)
    assert describe_base(other).fingerprint == describe_base(model).fingerprint


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert])
def test_the_dtype_does_not_matter(make, tmp_path):
    model = make()
    expected = describe_base(model).fingerprint
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert describe_base(type(model).from_pretrained(tmp_path, dtype=dtype)).fingerprint == expected


def test_a_saved_base_has_its_id_and_an_explicit_one_wins(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert describe_base(model).model_id == str(tmp_path)
    assert describe_base(model, "acme/tiny").model_id == "acme/tiny"


def test_other_weights_or_shapes_have_another_fingerprint():
    prints = {describe_base(tiny_llama(seed)).fingerprint for seed in range(3)}
    prints |= {describe_base(tiny_llama(layers=3)).fingerprint, describe_base(tiny_gpt2()).fingerprint}
    assert len(prints) == 5


def test_a_change_in_any_one_tensor_shows():
    expected = describe_base(tiny_llama()).fingerprint
    for name, _ in tiny_llama().model.named_parameters():
        model = tiny_llama()
        with torch.no_grad():
            model.model.get_parameter(name).add_(0.5)
        assert describe_base(model).fingerprint != expected, name


def test_a_model_with_adapters_or_without_weights_is_refused():
    with pytest.raises(InputError, match="unload"):
        describe_base(trained(tiny_llama(), lora()).base_model.model)
    with torch.device("meta"):
        empty = LlamaModel(tiny_llama().config)
    with pytest.raises(InputError, match="meta device"):
        describe_base(empty)


def test_many_layers_are_described_fast():
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=24,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaModel(config)
    describe_base(model)
    start = time.process_time()
    describe_base(model)
    assert time.process_time() - start < 0.5
