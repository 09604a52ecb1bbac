"""Normalisations that `modules_to_save` names: read whole, held against the base, kept by every tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_folders import (
    CONFIG,
    WEIGHTS,
    bottleneck,
    edit_config,
    edit_tensors,
    faults_of,
    ia3,
    ln_tuning,
    lora,
    trained,
    unsealed,
)
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_mamba, tiny_t5
from peft import LoHaConfig
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertForSequenceClassification, LlamaForSequenceClassification

from adapterhub.adapter import (
    adapter_similarity,
    convert_to_lora,
    dequantise,
    describe_base,
    export_mixture,
    quantise,
    read_adapter,
    seal,
    truncate_rank,
)
from adapterhub.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # PEFT's, of an RMS norm

ROOT = "base_model.model.model."
KINDS = {
    "llama": (tiny_llama, lora(modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"])),
    "gpt2": (tiny_gpt2, lora(target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_1", "ln_2", "ln_f"])),
    "bert": (tiny_bert, lora(target_modules=["query"], task_type="FEATURE_EXTRACTION", modules_to_save=["LayerNorm"])),
    "t5": (tiny_t5, lora(target_modules=["q"], task_type="SEQ_2_SEQ_LM", modules_to_save=["layer_norm"])),
    "mamba": (tiny_mamba, lora(target_modules=["x_proj"], modules_to_save=["norm", "norm_f"])),
}


def made(model, config, folder: Path):
    """What PEFT makes of a configuration, sealed to the model's own base; the base."""
    base = describe_base(model, "acme/tiny")
    trained(model, config).save_pretrained(folder, save_embedding_layers=False)
    seal(folder, base)
    return base


def norms_in(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in load_file(folder / WEIGHTS).items() if "lora_" not in key}


@pytest.mark.parametrize("kind", KINDS)
def test_every_normalisation_is_read_with_its_values(kind, tmp_path):
    build, config = KINDS[kind]
    base = made(build(), config, tmp_path)
    adapter = read_adapter(tmp_path, base)
    assert adapter.method == "LORA"
    assert adapter.norms.keys() == base.norms.keys()
    assert adapter.modules
    assert adapter.head is None
    stored = norms_in(tmp_path)
    prefix = f"base_model.model.{base.prefix}." if base.prefix and kind != "bert" else "base_model.model."
    for name, norm in adapter.norms.items():
        assert torch.equal(norm.weight, stored.pop(f"{prefix}{name}.weight"))
        assert (norm.bias is None) == (not base.norms[name][1])
        if norm.bias is not None:
            assert torch.equal(norm.bias, stored.pop(f"{prefix}{name}.bias"))
    assert not stored


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_weight_and_bias_of_each_and_nothing_else(kind, tmp_path):
    build, config = KINDS[kind]
    base = made(build(), config, tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        bytes_of = {key: file.get_tensor(key).nbytes for key in file.keys() if "lora_" not in key}  # noqa: SIM118
    width, count = 32, len(base.norms)
    each = 2 if kind in {"gpt2", "bert"} else 1  # an RMS norm has no bias
    assert sum(bytes_of.values()) == each * width * count * 4
    assert read_adapter(tmp_path, base).nbytes >= each * width * count * 4


def test_peft_takes_the_last_letters_of_a_name(tmp_path):
    """`norm` is all five of a Llama's, not the last one alone."""
    base = made(tiny_llama(), lora(modules_to_save=["norm"]), tmp_path / "all")
    assert read_adapter(tmp_path / "all", base).norms.keys() == base.norms.keys()
    made(tiny_llama(), lora(modules_to_save=["model.norm", "1.input_layernorm"]), tmp_path / "two")
    assert set(read_adapter(tmp_path / "two", base).norms) == {"norm", "layers.1.input_layernorm"}


def test_an_adapter_of_any_method_has_them(tmp_path):
    saved = {"modules_to_save": ["input_layernorm"]}
    configs = {"ia3": ia3(**saved), "bottleneck": bottleneck(**saved)}
    configs["tuning"] = ln_tuning(target_modules=["post_attention_layernorm"], **saved)
    for name, config in configs.items():
        base = made(tiny_llama(), config, tmp_path / name)
        adapter = read_adapter(tmp_path / name, base)
        assert {f"layers.{block}.input_layernorm" for block in range(2)} <= set(adapter.norms)
        assert len(adapter.norms) == (4 if name == "tuning" else 2)


@pytest.mark.parametrize(("build", "head"), [(LlamaForSequenceClassification, "score"),
                                             (BertForSequenceClassification, "classifier")])  # fmt: skip
def test_a_head_and_normalisations_in_one_list(build, head, tmp_path):
    plain = tiny_llama() if head == "score" else tiny_bert()
    plain.config.num_labels = 3
    torch.manual_seed(0)
    model = build(plain.config)
    norms = ["norm"] if head == "score" else ["LayerNorm"]
    targets = ["q_proj"] if head == "score" else ["query"]
    base = made(model, lora(task_type="SEQ_CLS", target_modules=targets, modules_to_save=norms), tmp_path)
    adapter = read_adapter(tmp_path, base)
    assert adapter.head.weight.shape == (3, 32)
    assert adapter.norms.keys() == base.norms.keys()
    saved = json.loads((tmp_path / CONFIG).read_text())["modules_to_save"]
    assert set(saved) == {"classifier", "score", *norms}


def test_a_normalisation_outside_the_backbone_is_refused(tmp_path):
    """BERT's language-model head has one of its own, which `LayerNorm` takes in as well."""
    model = BertForMaskedLM(tiny_bert().config)
    base = describe_base(model, "acme/tiny")
    config = lora(target_modules=["query"], task_type=None, modules_to_save=["LayerNorm"])
    trained(model, config).save_pretrained(tmp_path)
    faults = faults_of(unsealed(tmp_path), base, adopt=True)
    assert [fault.split(":")[0] for fault in faults] == [
        f"base_model.model.cls.predictions.transform.LayerNorm.{part}" for part in ("bias", "weight")
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("q_proj", "the weights of layers.0.self_attn.q_proj"),
        ("lm_head", "the weights of lm_head"),
        ("embed_tokens", "the weights of embed_tokens"),
        ("mlp", "no normalisation of that name"),
        ("score", "no normalisation of that name"),
        ("", "the weights of layers.0.self_attn.q_proj"),
    ],
)
def test_other_modules_are_refused_by_name(name, found, tmp_path):
    base = made(tiny_llama(), lora(target_modules=["down_proj"]), tmp_path)
    faults = faults_of(unsealed(tmp_path, modules_to_save=[name]), base, adopt=True)
    assert any(
        fault.startswith(f"modules_to_save: `{name}` is not supported. Found {found}. Supported: the base's norm")
        for fault in faults
    )


def test_the_tensors_are_checked(tmp_path):
    base = made(tiny_gpt2(), KINDS["gpt2"][1], tmp_path)
    unsealed(tmp_path)
    key = "base_model.model.transformer.ln_f"
    first = "base_model.model.transformer.h.0.ln_1"

    def after(change) -> list[str]:
        edit_tensors(tmp_path, change)
        return faults_of(tmp_path, base, adopt=True)

    bad = torch.full((32,), float("nan"))
    assert after(lambda t: t.update({f"{key}.bias": bad})) == ["ln_f: bias holds NaN or infinity."]
    assert after(lambda t: t.update({f"{key}.bias": torch.ones(31)})) == [
        "ln_f: bias should have shape (32,). Found (31,)."
    ]
    assert after(lambda t: t.update({f"{key}.bias": torch.ones(32).double()})) == [
        "ln_f: bias should be F32, F16 or BF16. Found F64."
    ]
    assert after(lambda t: t.pop(f"{key}.bias")) == ["ln_f: bias missing."]
    assert after(lambda t: t.pop(f"{key}.weight")) == ["ln_f: weight, bias missing, though `modules_to_save` names it."]
    strange = after(
        lambda t: t.update({f"{key}.scale": torch.ones(32), f"{first}.weight": t[f"{first}.weight"].half()})
    )
    assert len(strange) == 2
    assert strange[1].startswith(f"{key}.scale: unexpected for LORA")


def test_a_bias_that_the_base_has_not_is_unexpected(tmp_path):
    base = made(tiny_llama(), lora(modules_to_save=["model.norm"]), tmp_path)
    edit_tensors(unsealed(tmp_path), lambda t: t.update({f"{ROOT}norm.bias": torch.ones(32)}))
    assert faults_of(tmp_path, base, adopt=True) == [
        "norm: bias unexpected, since the configuration asks for weight there."
    ]


def test_tensors_that_the_configuration_does_not_name_are_unexpected(tmp_path):
    base = made(tiny_llama(), lora(modules_to_save=["model.norm"]), tmp_path)
    (fault,) = faults_of(unsealed(tmp_path, modules_to_save=None), base, adopt=True)
    assert fault.startswith(f"{ROOT}norm.weight: unexpected for LORA")


def test_a_two_layer_adapter_does_not_fit_three_layers(tmp_path):
    made(tiny_llama(), lora(layers_to_transform=[0, 1], modules_to_save=["norm"]), tmp_path)
    faults = faults_of(unsealed(tmp_path), describe_base(tiny_llama(layers=3), "acme/tiny"), adopt=True)
    assert faults == [
        f"layers.2.{name}: weight missing, though `modules_to_save` names it."
        for name in ("input_layernorm", "post_attention_layernorm")
    ]


# What the tools do


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "adapter"


@pytest.fixture
def base(folder):
    return made(tiny_llama(), lora(modules_to_save=["norm"]), folder)


def test_int8_leaves_them_as_they_are(folder, base, tmp_path):
    quantise(folder, base, tmp_path / "int8")
    small = read_adapter(tmp_path / "int8", base)
    for name, norm in read_adapter(folder, base).norms.items():
        assert torch.equal(norm.weight, small.norms[name].weight)
    dequantise(tmp_path / "int8", base, tmp_path / "back")
    assert {k: v.tolist() for k, v in norms_in(tmp_path / "back").items()} == {
        k: v.tolist() for k, v in norms_in(folder).items()
    }


def test_truncation_leaves_them_as_they_are(folder, base, tmp_path):
    truncate_rank(folder, base, tmp_path / "cut", rank=2)
    cut = read_adapter(tmp_path / "cut", base)
    assert cut.rank == 2
    for name, norm in read_adapter(folder, base).norms.items():
        assert torch.equal(norm.weight, cut.norms[name].weight)


def test_similarity_is_that_of_the_factors(folder, base, tmp_path):
    made(tiny_llama(), lora(), tmp_path / "bare")
    edit_tensors(
        tmp_path / "bare", lambda t: t.update({k: v for k, v in load_file(folder / WEIGHTS).items() if k in t})
    )
    seal(tmp_path / "bare", base)
    both = [read_adapter(place, base) for place in (folder, tmp_path / "bare")]
    assert adapter_similarity(both)[0, 1] == pytest.approx(1.0)


def test_a_mixture_refuses_them(folder, base, tmp_path):
    with pytest.raises(InputError, match=r"its normalisation at layers\.0\.input_layernorm and 4 more modules"):
        export_mixture([(read_adapter(folder, base), 1.0)], base, tmp_path / "mix")


def test_conversion_keeps_them(tmp_path):
    config = LoHaConfig(r=2, alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=["norm"])
    trained(tiny_llama(), config).save_pretrained(tmp_path / "loha")
    edit_config(tmp_path / "loha", base_model_name_or_path="acme/tiny")
    convert_to_lora(tmp_path / "loha", tiny_llama(), tmp_path / "lora", rank=4, model_id="acme/tiny")
    base = describe_base(tiny_llama(), "acme/tiny")
    adapter = read_adapter(tmp_path / "lora", base)
    stored = {k: v for k, v in load_file(tmp_path / "loha" / WEIGHTS).items() if "hada" not in k}
    assert len(stored) == len(adapter.norms) == 5
    for name, norm in adapter.norms.items():
        assert torch.equal(norm.weight, stored[f"{ROOT}{name}.weight"])
