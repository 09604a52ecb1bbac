"""What is read is what PEFT computes: the factors' plain formula against each PEFT module's own difference."""

from __future__ import annotations

import pytest
import torch
from adapter_folders import bottleneck, edit_tensors, lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from adapterhub.adapter import Adapter, LowRank, describe_base, read_adapter, seal

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
CASES = {
    "lora": (tiny_llama, lora()),
    "all-linear": (tiny_llama, lora(target_modules="all-linear")),
    "lm-head": (tiny_llama, lora(target_modules=["q_proj", "lm_head"])),
    "regex": (tiny_llama, lora(target_modules=r"model\.layers\.1\..*_proj")),
    "excluded": (tiny_llama, lora(target_modules=["q_proj", "v_proj"], exclude_modules=["layers.0.self_attn.q_proj"])),
    "one-layer": (tiny_llama, lora(layers_to_transform=[1], layers_pattern="layers")),
    "rslora": (tiny_llama, lora(use_rslora=True)),
    "patterns": (
        tiny_llama,
        lora(rank_pattern={"q_proj": 2, "model.layers.1.self_attn.v_proj": 6}, alpha_pattern={r"layers\.0\..*": 3}),
    ),
    "patterns-rslora": (tiny_llama, lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5})),
    "gpt2": (tiny_gpt2, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "bert": (tiny_bert, lora(target_modules=["query", "dense"], task_type="FEATURE_EXTRACTION")),
    "no-task": (tiny_llama, lora(task_type=None)),
    "bottleneck": (tiny_llama, bottleneck(scaling=0.3)),
    "bottleneck-gelu": (tiny_gpt2, bottleneck(activation="gelu", scaling=2)),
    "bottleneck-silu": (tiny_bert, bottleneck(activation="silu", task_type="FEATURE_EXTRACTION")),
}


def plain(factors: LowRank, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The formula of LowRank's docstring."""
    z = x if factors.reads == "input" else y
    hidden = z @ factors.down.T
    if factors.bias is not None:
        hidden = hidden + factors.bias
    added = ACTIVATIONS[factors.activation](hidden) @ factors.up
    return added if factors.up_bias is None else added + factors.up_bias


def read_back(model: PreTrainedModel, config, folder) -> tuple[Adapter, torch.nn.Module]:
    base = describe_base(model)
    peft = trained(model, config)
    # Otherwise PEFT adds copies of the embeddings where `lm_head` is a target.
    peft.save_pretrained(folder, save_embedding_layers=False)
    seal(folder, base)
    return read_adapter(folder, base), peft


def assert_equal_modules(adapter: Adapter, peft, prefix: str) -> None:
    named = {name: m for name, m in peft.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    assert {name.removeprefix(f"{prefix}.") for name in named} == set(adapter.modules)
    for name, module in named.items():
        factors = adapter.modules[name.removeprefix(f"{prefix}.")]
        assert factors.down.dtype == factors.up.dtype == torch.float32
        assert factors.rank == factors.up.shape[0]
        base = module.get_base_layer()
        d_in = base.in_features if hasattr(base, "in_features") else base.weight.shape[0]
        x = torch.randn(3, 5, d_in)
        with torch.no_grad():
            y = base(x)
            torch.testing.assert_close(plain(factors, x, y), module(x) - y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_factors_compute_what_peft_computes(case, tmp_path):
    make, config = CASES[case]
    model = make()
    adapter, peft = read_back(model, config, tmp_path)
    assert adapter.head is None
    assert adapter.method == config.peft_type.value
    assert_equal_modules(adapter, peft, model.base_model_prefix)


def test_conv1d_factors_have_rank_rows(tmp_path):
    adapter, _ = read_back(tiny_gpt2(), lora(target_modules=["c_attn"], fan_in_fan_out=True), tmp_path)
    factors = adapter.modules["h.0.attn.c_attn"]
    assert factors.down.shape == (4, 32)
    assert factors.up.shape == (4, 96)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
@pytest.mark.parametrize(("task", "kind"), [("SEQ_CLS", "sequence"), ("TOKEN_CLS", "token")])
def test_an_adapter_trained_with_a_head_brings_it_to_the_bare_base(make, method, task, kind, tmp_path):
    plain_model = make()
    auto = AutoModelForSequenceClassification if kind == "sequence" else AutoModelForTokenClassification
    config = plain_model.config
    config.num_labels = 3
    torch.manual_seed(5)
    model = auto.from_config(config).eval()
    backbone = plain_model.base_model
    # BERT's token classifier has no pooler.
    assert not model.base_model.load_state_dict(backbone.state_dict(), strict=False).missing_keys
    targets = ["q_proj", "v_proj"] if make is tiny_llama else ["query", "dense"]
    peft = trained(
        model, lora(target_modules=targets, task_type=task) if method == "lora" else bottleneck(task_type=task)
    )
    peft.save_pretrained(tmp_path)
    seal(tmp_path, describe_base(plain_model))
    for base in (plain_model, backbone):
        adapter = read_adapter(tmp_path, describe_base(base))
        assert adapter.head is not None
        assert adapter.head.kind == kind
        trained_head = next(m for n, m in peft.named_modules() if n.endswith("modules_to_save.default"))
        assert torch.equal(adapter.head.weight, trained_head.weight)
        if trained_head.bias is None:
            assert adapter.head.bias is None
        else:
            assert torch.equal(adapter.head.bias, trained_head.bias)
        assert_equal_modules(adapter, peft, plain_model.base_model_prefix)


def test_an_adapter_trained_on_the_bare_backbone_fits_the_model_with_a_head(tmp_path):
    model = tiny_llama()
    base = describe_base(model)
    config = lora(target_modules=r"layers\.\d\.self_attn\.[qv]_proj", task_type="FEATURE_EXTRACTION")
    peft = trained(model.model, config)
    peft.save_pretrained(tmp_path)
    seal(tmp_path, base)
    assert_equal_modules(read_adapter(tmp_path, base), peft, "model")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_as_float32(dtype, tmp_path):
    base = describe_base(tiny_llama())
    trained(tiny_llama(), lora(lora_alpha=3)).save_pretrained(tmp_path)
    seal(tmp_path, base)
    exact = read_adapter(tmp_path, base)
    edit_tensors(tmp_path, lambda tensors: tensors.update({key: value.to(dtype) for key, value in tensors.items()}))
    seal(tmp_path, base)
    half = read_adapter(tmp_path, base)
    for name, factors in half.modules.items():
        assert torch.equal(factors.down, exact.modules[name].down.to(dtype).float())
        expected = (exact.modules[name].up / 0.75).to(dtype).float() * 0.75
        torch.testing.assert_close(factors.up, expected, rtol=1e-2, atol=1e-6)
        assert factors.up.dtype == torch.float32


def test_reading_twice_gives_the_same_and_independent_tensors(tmp_path):
    adapter, _ = read_back(tiny_llama(), lora(), tmp_path)
    again = read_adapter(tmp_path, describe_base(tiny_llama()))
    name = "layers.0.self_attn.q_proj"
    assert torch.equal(adapter.modules[name].up, again.modules[name].up)
    again.modules[name].up.zero_()
    assert adapter.modules[name].up.abs().sum() > 0
    assert (again.sha256, again.source) == (adapter.sha256, adapter.source)


def test_the_canonical_configuration_does_not_depend_on_the_order_of_sets(tmp_path):
    model = tiny_llama()
    adapter, _ = read_back(model, lora(target_modules=["v_proj", "q_proj", "o_proj"]), tmp_path)
    assert adapter.meta["target_modules"] == ["o_proj", "q_proj", "v_proj"]
    assert adapter.meta["lora_alpha"] == 8
    assert "peft_version" not in adapter.meta
    assert "base_model_name_or_path" not in adapter.meta
