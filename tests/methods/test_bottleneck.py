"""The bottleneck as a PEFT method: what it computes, and that PEFT's own operations work on it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch.nn import functional
from transformers import AutoConfig, AutoModel, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from adapterhub.errors import InputError
from adapterhub.methods import BottleneckConfig, BottleneckModel, register
from adapterhub.methods._layer import BottleneckLayer

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}
IDS = torch.tensor([[2, 5, 9, 7], [3, 8, 4, 6], [11, 12, 13, 14]])


def output(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def layers(model) -> list[BottleneckLayer]:
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def shake(model, adapter: str = "default", seed: int = 7) -> None:
    """Give an adapter random weights, biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers(model):
            for part in (layer.bottleneck_down[adapter], layer.bottleneck_up[adapter]):
                for parameter in part.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def adapted(kind: str = "llama", adapter: str = "default", seed: int = 7, **options) -> PeftModel:
    model = get_peft_model(MODELS[kind](), BottleneckConfig(r=4, **options), adapter_name=adapter).eval()
    shake(model, adapter, seed)
    return model


def file_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(("kind", "count"), [("llama", 4), ("gpt2", 4), ("bert", 4)])
def test_a_new_adapter_is_the_identity_at_both_positions_of_every_block(kind, count):
    base = MODELS[kind]()
    expected = output(base)
    model = get_peft_model(base, BottleneckConfig(r=4)).eval()
    assert len(layers(model)) == count
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_the_layer_computes_its_formula(kind, activation):
    model = adapted(kind, activation=activation, scaling=0.7)
    act = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}[activation]
    for layer in layers(model):
        x = torch.randn(2, 3, layer.in_features)
        y = layer.base_layer(x)
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        hidden = act(y @ down.weight.T + down.bias)
        expected = y + 0.7 * (hidden @ up.weight.T + up.bias)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_the_delta_is_not_linear(activation):
    layer = layers(adapted(activation=activation))[0]
    with torch.no_grad():
        layer.bottleneck_down["default"].bias.zero_()
        layer.bottleneck_up["default"].bias.zero_()
    x = torch.randn(16, layer.out_features)
    f = lambda value: layer.delta("default", value)  # noqa: E731
    assert not torch.allclose(f(-x), -f(x), atol=1e-3)
    if activation != "relu":  # without biases relu is positively homogeneous
        assert not torch.allclose(f(2 * x), 2 * f(x), atol=1e-3)


def test_twice_the_input_is_not_twice_the_delta():
    layer = layers(adapted())[0]
    x = torch.randn(16, layer.out_features)
    assert not torch.allclose(layer.delta("default", 2 * x), 2 * layer.delta("default", x), atol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_disabled_equals_the_base_bitwise(kind):
    model = adapted(kind)
    expected = output(MODELS[kind]())
    assert not torch.equal(output(model), expected)
    with model.disable_adapter():
        assert torch.equal(output(model), expected)
    assert not torch.equal(output(model), expected)
    assert torch.equal(output(model.unload()), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_save_and_load_give_the_same_outputs_and_the_same_file(kind, tmp_path):
    model = adapted(kind)
    model.save_pretrained(tmp_path / "one")
    loaded = PeftModel.from_pretrained(MODELS[kind](), tmp_path / "one").eval()
    assert torch.equal(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "two")
    assert file_hash(tmp_path / "two") == file_hash(tmp_path / "one")


def test_loading_under_another_name_and_saving_gives_the_same_file(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path / "one")
    other = adapted(seed=1)
    result = other.load_adapter(tmp_path / "one", adapter_name="s000017")
    assert not result.missing_keys
    assert not result.unexpected_keys
    other.set_adapter("s000017")
    assert torch.equal(output(other), output(model))
    other.save_pretrained(tmp_path / "two", selected_adapters=["s000017"])
    assert file_hash(tmp_path / "two" / "s000017") == file_hash(tmp_path / "one")


def test_low_memory_loading_and_the_configuration_alone(tmp_path):
    model = adapted(scaling=0.5, activation="gelu")
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, BottleneckConfig)
    assert (config.r, config.scaling, config.activation) == (4, 0.5, "gelu")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(output(loaded), output(model))


def test_transformers_own_integration_loads_and_deletes(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    plain = tiny_llama()
    before = output(plain)
    plain.load_adapter(str(tmp_path))
    assert torch.equal(output(plain.eval()), output(model))
    plain.disable_adapters()
    assert torch.equal(output(plain), before)


def test_set_and_delete_leave_nothing_behind():
    model = adapted()
    first = output(model)
    model.add_adapter("other", BottleneckConfig(r=2))
    shake(model, "other", seed=3)
    assert torch.equal(output(model), first)
    model.set_adapter("other")
    second = output(model)
    assert not torch.equal(second, first)
    model.delete_adapter("default")
    assert torch.equal(output(model), second)
    for layer in layers(model):
        assert layer._all_available_adapter_names() == ["other"]


def test_two_active_adapters_add_up():
    model = adapted()
    model.add_adapter("other", BottleneckConfig(r=2))
    shake(model, "other", seed=3)
    model.base_model.set_adapter(["default", "other"], inference_mode=True)
    layer = layers(model)[0]
    x = torch.randn(2, 3, layer.in_features)
    y = layer.base_layer(x)
    torch.testing.assert_close(layer(x), y + layer.delta("default", y) + layer.delta("other", y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_training_moves_the_active_adapter_and_nothing_else(kind):
    model = adapted(kind)
    model.add_adapter("other", BottleneckConfig(r=2))
    model.set_adapter("other")
    shake(model, "other", seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS)[0].square().mean().backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".other." in name}
    assert len(moved) == 16


def test_a_mixed_batch_equals_row_by_row():
    model = adapted()
    model.add_adapter("other", BottleneckConfig(r=2, activation="gelu"))
    shake(model, "other", seed=3)
    names = ["other", "__base__", "default"]
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=names)[0]
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                expected = output(model)[row]
        else:
            model.set_adapter(name)
            expected = output(model)[row]
        torch.testing.assert_close(mixed[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("beams", "sequences"), [(1, 1), (2, 1), (2, 2)])
def test_a_mixed_batch_generates_with_beams(beams, sequences):
    model = adapted()
    model.add_adapter("other", BottleneckConfig(r=2))
    shake(model, "other", seed=3)
    names = ["other", "__base__", "default"]
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "num_return_sequences": sequences}
    mixed = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=names, **settings)
    for row, name in enumerate(names):
        one, mask = IDS[row : row + 1], torch.ones(1, IDS.shape[1], dtype=torch.long)
        alone = model.generate(input_ids=one, attention_mask=mask, adapter_names=[name], **settings)
        found = mixed[row * sequences : (row + 1) * sequences, : alone.shape[1]]
        assert torch.equal(found, alone)


def test_an_encoder_decoder_generates_a_mixed_batch_with_beams():
    torch.manual_seed(0)
    config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = get_peft_model(T5ForConditionalGeneration(config), BottleneckConfig(r=4, target_modules=["o", "wo"])).eval()
    shake(model)
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    mixed = model.generate(input_ids=IDS, adapter_names=["default", "__base__", "default"], **settings)
    with model.disable_adapter():
        base = model.generate(input_ids=IDS, **settings)
    adapted_rows = model.generate(input_ids=IDS, **settings)
    assert torch.equal(mixed[1], base[1])
    assert torch.equal(mixed[[0, 2]], adapted_rows[[0, 2]])
    assert not torch.equal(mixed, base)


def test_a_failed_mixed_call_leaves_no_hooks():
    model = adapted()
    expected = output(model)
    with pytest.raises(InputError, match=r"3 rows"):
        model(input_ids=IDS, adapter_names=["__base__"])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(output(model), expected)


def test_a_mixed_call_is_refused_in_training_and_for_unknown_names():
    model = adapted(adapter="grammar")
    with pytest.raises(InputError, match="Did you mean `grammar`"):
        model(input_ids=IDS, adapter_names=["gramar"] * 3)
    model.train()
    with pytest.raises(InputError, match="training mode"):
        model(input_ids=IDS, adapter_names=["grammar"] * 3)


def test_heads_are_saved_beside_the_adapter(tmp_path):
    def classifier():
        torch.manual_seed(0)
        return BertForSequenceClassification(tiny_bert().config).eval()

    model = get_peft_model(classifier(), BottleneckConfig(r=4, task_type="SEQ_CLS")).eval()
    shake(model)
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(classifier(), tmp_path).eval()
    assert torch.equal(output(loaded), output(model))
    loaded.load_adapter(tmp_path, adapter_name="other")
    loaded.base_model.model.classifier.modules_to_save["other"].weight.data.zero_()
    with torch.no_grad():
        mixed = loaded(input_ids=IDS, adapter_names=["default", "other", "default"]).logits
    assert torch.allclose(mixed[[0, 2]], output(model)[[0, 2]], atol=1e-6)
    assert not torch.allclose(mixed[1], output(model)[1], atol=1e-3)


def test_bfloat16_and_gradient_checkpointing():
    base = tiny_llama().to(torch.bfloat16)
    model = get_peft_model(base, BottleneckConfig(r=4), autocast_adapter_dtype=False)
    shake(model)
    assert output(model).dtype == torch.bfloat16
    assert layers(model)[0].bottleneck_down["default"].weight.dtype == torch.bfloat16
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    model(input_ids=IDS)[0].float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_status_and_report_name_the_method():
    model = adapted()
    status = model.get_model_status()
    assert status.peft_types == {"default": "BOTTLENECK"}
    assert model.base_model.supports_lora_conversion() is False


def test_merging_is_refused_by_name():
    model = adapted()
    with pytest.raises(InputError, match="not linear"):
        model.merge_and_unload()


def test_registering_twice_changes_nothing():
    maps = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    before = [dict(mapping) for mapping in maps]
    register()
    assert [dict(mapping) for mapping in maps] == before
    assert PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"] is BottleneckModel  # type: ignore[index]


def test_a_bad_configuration_names_all_its_faults():
    with pytest.raises(InputError) as caught:
        BottleneckConfig(r=0, activation="rleu", scaling=float("nan"))
    message = str(caught.value)
    assert "`r` should be a whole number" in message
    assert "Did you mean `relu`?" in message
    assert "`scaling` should be a finite number" in message


def test_only_linear_modules_are_adapted():
    with pytest.raises(InputError, match="Found Embedding"):
        get_peft_model(tiny_llama(), BottleneckConfig(r=2, target_modules=["embed_tokens"]))


@pytest.mark.parametrize("kind", sorted(BottleneckModel.target_module_mapping))
def test_default_targets_are_two_to_a_block(kind):
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **small)
    with torch.device("meta"):
        model = get_peft_model(AutoModel.from_config(config), BottleneckConfig(r=2), low_cpu_mem_usage=True)
    assert len(layers(model)) == 4
