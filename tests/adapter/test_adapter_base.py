"""The base's signature: the same for every way to hold the same weights, another for other weights."""

from __future__ import annotations

import time

import pytest
import torch
from adapter_folders import lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_mamba, tiny_t5
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Model,
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


def test_the_modules_of_an_encoder_decoder_and_of_a_state_space_model(t5, mamba):
    signature = describe_base(t5)
    # Two blocks of 4 + 2 linears in the encoder and of 8 + 2 in the decoder, and the head, once.
    assert len(signature.modules) == 2 * 6 + 2 * 10 + 1
    assert signature.modules["lm_head"] == (32, 96)
    assert signature.modules["decoder.block.1.layer.1.EncDecAttention.k"] == (32, 32)
    assert (signature.prefix, signature.hidden_size) == ("", 32)
    signature = describe_base(mamba)
    assert signature.prefix == "backbone"
    assert signature.hidden_size == 32
    assert signature.modules == {
        f"layers.{block}.mixer.{name}": shape
        for block in range(2)
        for name, shape in {"in_proj": (32, 128), "x_proj": (64, 12), "dt_proj": (4, 64), "out_proj": (64, 32)}.items()
    } | {"lm_head": (32, 96)}


def test_embeddings_are_the_tables_that_are_looked_up_by_token(llama, gpt2, bert, t5, mamba):
    names = {
        name: list(describe_base(model).embeddings)
        for name, model in {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5, "mamba": mamba}.items()
    }
    assert names == {
        "llama": ["embed_tokens"],
        "gpt2": ["wte"],
        "bert": ["embeddings.word_embeddings"],
        "t5": ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
        "mamba": ["embeddings"],
    }
    assert describe_base(t5).embeddings["shared"] == (96, 32)


def test_norms_have_their_width_and_whether_they_have_a_bias(llama, gpt2, bert, t5, mamba):
    norms = [describe_base(model).norms for model in (llama, gpt2, bert, t5, mamba)]
    assert [len(found) for found in norms] == [5, 5, 5, 12, 3]
    assert norms[0]["layers.1.post_attention_layernorm"] == (32, False)
    assert norms[1]["ln_f"] == (32, True)
    assert norms[2]["embeddings.LayerNorm"] == (32, True)
    assert norms[3]["decoder.block.0.layer.2.layer_norm"] == (32, False)
    assert norms[4]["norm_f"] == (32, False)


def test_a_norm_over_groups_or_batches_and_a_gated_one_are_not_norms():
    class FancyRMSNormGated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

    model = tiny_llama()
    for name, module in {
        "batch": nn.BatchNorm1d(32),
        "group": nn.GroupNorm(2, 32),
        "plain": nn.LayerNorm(32, elementwise_affine=False),
        "table": nn.LayerNorm((4, 8)),
        "gated": FancyRMSNormGated(),
    }.items():
        model.model.add_module(name, module)
    assert describe_base(model).norms == describe_base(tiny_llama()).norms


def test_biases_are_named(llama, bert, mamba):
    assert describe_base(llama).biases == frozenset()
    assert {"pooler.dense", "embeddings.LayerNorm"} < describe_base(bert).biases
    assert describe_base(mamba).biases == {
        f"layers.{block}.mixer.{name}" for block in range(2) for name in ("dt_proj", "conv1d")
    }


def test_signatures_of_equal_models_are_equal():
    one, two = describe_base(tiny_llama()), describe_base(tiny_llama())
    assert one == two
    assert hash(one) == hash(two)
    assert one != describe_base(tiny_llama(seed=1))
    assert one != describe_base(tiny_llama().model)


def test_a_t5_with_and_without_its_head_agree():
    model = tiny_t5()
    other = T5Model(model.config)
    other.load_state_dict(model.state_dict(), strict=False)
    one, two = describe_base(model), describe_base(other)
    assert one.fingerprint == two.fingerprint
    assert one.norms == two.norms
    assert {*two.modules, "lm_head"} == set(one.modules)


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


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert, tiny_t5, tiny_mamba])
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
    prints |= {describe_base(make(seed)).fingerprint for make in (tiny_t5, tiny_mamba) for seed in range(2)}
    assert len(prints) == 9


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
