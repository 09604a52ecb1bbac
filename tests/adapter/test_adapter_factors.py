"""What is read is what PEFT computes: the factors' plain formula against each PEFT module's own difference."""

from __future__ import annotations

import pytest
import torch
from adapter_folders import bottleneck, edit_tensors, ia3, ln_tuning, lora, plain, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_mamba, tiny_t5
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
)

from adapterhub.adapter import Adapter, describe_base, read_adapter, seal

# PEFT says this of every normalisation that it wraps, of every tied embedding, and of every bias.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape.*lora_B.bias.*"),
]


def untied_gpt2():
    """GPT-2 whose head is a matrix of its own."""
    config = tiny_gpt2().config
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = type(tiny_gpt2())(config).eval()
    assert model.lm_head.weight is not model.transformer.wte.weight
    return model


def gemma():
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    model = GemmaForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.normal_(std=0.3)
    return model


FEATURES, SEQ2SEQ = {"task_type": "FEATURE_EXTRACTION"}, {"task_type": "SEQ_2_SEQ_LM"}
T5 = ["q", "v", "wo"]
MAMBA = ["in_proj", "x_proj", "dt_proj"]
C = {"fan_in_fan_out": True}
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
    "t5": (tiny_t5, lora(target_modules=T5, **SEQ2SEQ)),
    "t5-all": (tiny_t5, lora(target_modules="all-linear", **SEQ2SEQ)),
    "t5-head": (tiny_t5, lora(target_modules=["q", "lm_head"], **SEQ2SEQ)),
    "mamba": (tiny_mamba, lora(target_modules=MAMBA)),
    "bias-gpt2": (tiny_gpt2, lora(target_modules=["c_attn"], lora_bias=True, **C)),
    "bias-bert": (tiny_bert, lora(target_modules=["query"], lora_bias=True, use_rslora=True, **FEATURES)),
    "bias-mamba": (tiny_mamba, lora(target_modules=["dt_proj"], lora_bias=True)),
    "bias-none-to-train": (tiny_llama, lora(bias="all")),
    "bias-none-at-targets": (tiny_mamba, lora(target_modules=["in_proj"], bias="lora_only")),
    "dora": (tiny_llama, lora(use_dora=True, target_modules=["q_proj", "down_proj", "lm_head"])),
    "dora-rslora": (tiny_llama, lora(use_dora=True, use_rslora=True, rank_pattern={"q_proj": 2})),
    "dora-gpt2": (tiny_gpt2, lora(target_modules=["c_attn", "c_proj"], use_dora=True, **C)),
    "dora-bert": (tiny_bert, lora(target_modules=["query", "dense"], use_dora=True, **FEATURES)),
    "dora-t5": (tiny_t5, lora(target_modules=T5, use_dora=True, **SEQ2SEQ)),
    "dora-mamba": (tiny_mamba, lora(target_modules=MAMBA, use_dora=True)),
    "tokens": (tiny_llama, lora(target_modules=["q_proj", "embed_tokens"], alpha_pattern={"embed_tokens": 5})),
    "tokens-rslora": (
        tiny_llama,
        lora(target_modules=["embed_tokens"], rank_pattern={"embed_tokens": 2}, use_rslora=True),
    ),
    "tokens-gpt2": (tiny_gpt2, lora(target_modules=["wte", "c_attn"], **C)),
    "tokens-bert": (tiny_bert, lora(target_modules=["word_embeddings", "query"], **FEATURES)),
    "tokens-t5": (tiny_t5, lora(target_modules=["q", "shared", "embed_tokens"], **SEQ2SEQ)),
    "tokens-mamba": (tiny_mamba, lora(target_modules=["embeddings", "in_proj"])),
    "tied-head": (tiny_gpt2, lora(target_modules=["wte", "lm_head"])),
    "untied-head": (untied_gpt2, lora(target_modules=["wte", "lm_head"])),
    "bottleneck": (tiny_llama, bottleneck(scaling=0.3)),
    "bottleneck-gelu": (tiny_gpt2, bottleneck(activation="gelu", scaling=2)),
    "bottleneck-silu": (tiny_bert, bottleneck(activation="silu", task_type="FEATURE_EXTRACTION")),
    "bottleneck-t5": (tiny_t5, bottleneck(target_modules=["o", "wo"], **SEQ2SEQ)),
    "bottleneck-mamba": (tiny_mamba, bottleneck(target_modules=["out_proj"])),
    "ia3": (tiny_llama, ia3()),
    "ia3-all": (tiny_llama, ia3(target_modules="all-linear", feedforward_modules=r".*\.(gate|down)_proj")),
    "ia3-gpt2": (tiny_gpt2, ia3(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], **C)),
    "ia3-bert": (
        tiny_bert,
        ia3(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"], **FEATURES),
    ),
    "ia3-t5": (tiny_t5, ia3(target_modules=["k", "v", "wo"], feedforward_modules=["wo"], **SEQ2SEQ)),
    "ia3-mamba": (tiny_mamba, ia3(target_modules=[*MAMBA, "out_proj"], feedforward_modules=["out_proj"])),
    "ia3-head": (tiny_llama, ia3(target_modules=["k_proj", "lm_head"], feedforward_modules=["lm_head"])),
    "ia3-no-inputs": (tiny_llama, ia3(target_modules=["k_proj"], feedforward_modules=[])),
    # PEFT compares ends of names without a dot before them, so `proj` is every module of Llama's.
    "ia3-loose-ends": (tiny_llama, ia3(target_modules=r".*_proj", feedforward_modules=["o_proj", "p_proj"])),
    "ln": (tiny_llama, ln_tuning()),
    "ln-some": (tiny_llama, ln_tuning(target_modules=["norm", "input_layernorm"], exclude_modules=["model.norm"])),
    "ln-gpt2": (tiny_gpt2, ln_tuning(target_modules=["ln_1", "ln_2", "ln_f"])),
    "ln-bert": (tiny_bert, ln_tuning(target_modules=["LayerNorm"], **FEATURES)),
    "ln-t5": (tiny_t5, ln_tuning(**SEQ2SEQ)),
    "ln-mamba": (tiny_mamba, ln_tuning(target_modules=["norm", "norm_f"])),
    "ln-gemma": (gemma, ln_tuning(target_modules=r".*norm")),
}


def read_back(model: PreTrainedModel, config, folder) -> tuple[Adapter, torch.nn.Module]:
    base = describe_base(model)
    peft = trained(model, config)
    # Otherwise PEFT adds copies of the embeddings where `lm_head` is a target.
    peft.save_pretrained(folder, save_embedding_layers=False)
    seal(folder, base)
    return read_adapter(folder, base), peft


def an_input(module: nn.Module) -> torch.Tensor:
    if isinstance(module, nn.Embedding):
        return torch.randint(module.num_embeddings, (3, 5))
    is_conv1d = type(module).__name__ == "Conv1D"
    return torch.randn(3, 5, module.weight.shape[0] if is_conv1d else module.weight.shape[-1])


def parts_of(adapter: Adapter) -> dict[str, object]:
    return {**adapter.modules, **adapter.scalings, **adapter.norms}


def assert_equal_modules(adapter: Adapter, peft, prefix: str) -> None:
    """Each PEFT module, on the same input, gives what the formula gives with the base's module."""
    named = {name: m for name, m in peft.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    parts = parts_of(adapter)
    assert {name.removeprefix(f"{prefix}.") for name in named} == set(parts)
    for name, module in named.items():
        part = parts[name.removeprefix(f"{prefix}.")]
        assert all(value.dtype == torch.float32 for value in vars(part).values() if isinstance(value, torch.Tensor))
        base = module.get_base_layer()
        x = an_input(base)
        with torch.no_grad():
            expected = module(x)
            assert not torch.allclose(expected, base(x), atol=1e-2)
            torch.testing.assert_close(plain(part, base, x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_factors_compute_what_peft_computes(case, tmp_path):
    make, config = CASES[case]
    model = make()
    adapter, peft = read_back(model, config, tmp_path)
    assert adapter.head is None
    assert adapter.method == config.peft_type.value
    assert_equal_modules(adapter, peft, model.base_model_prefix)
    assert adapter.nbytes == sum(v.nbytes for p in parts_of(adapter).values() for v in tensors_of(p))


def tensors_of(part) -> list[torch.Tensor]:
    return [value for value in vars(part).values() if isinstance(value, torch.Tensor)]


def test_conv1d_factors_have_rank_rows(tmp_path):
    adapter, _ = read_back(tiny_gpt2(), lora(target_modules=["c_attn"], fan_in_fan_out=True), tmp_path)
    factors = adapter.modules["h.0.attn.c_attn"]
    assert factors.down.shape == (4, 32)
    assert factors.up.shape == (4, 96)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
@pytest.mark.parametrize("method", ["lora", "bottleneck", "ia3", "ln_tuning"])
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
    config = {
        "lora": lora(target_modules=targets, task_type=task),
        "bottleneck": bottleneck(task_type=task),
        "ia3": ia3(target_modules=targets, feedforward_modules=[], task_type=task),
        "ln_tuning": ln_tuning(target_modules=r".*(norm|LayerNorm)", task_type=task),
    }[method]
    peft = trained(model, config)
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
