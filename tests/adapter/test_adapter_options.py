"""What a configuration may ask for: each option that is not supported is refused by name, and each method too."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from adapter_folders import WEIGHTS, bottleneck, edit_tensors, faults_of, ia3, ln_tuning, lora, trained, unsealed
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_mamba, tiny_t5
from peft import LoHaConfig, OFTConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import BartConfig, BartModel

from adapterhub.adapter import describe_base, read_adapter
from adapterhub.adapter._supported import CONVERTIBLE, METHODS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape.*lora_B.bias.*"),
    pytest.mark.filterwarnings("ignore:.*embedding layers found in `target_modules`.*"),
]

ROOT = "base_model.model.model."


@pytest.fixture(scope="module")
def base():
    return describe_base(tiny_llama(), "acme/tiny")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trained(tiny_llama(), lora()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """An adapter that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "adapter")


def refusals(model, config, folder, **options) -> list[str]:
    """The faults of what PEFT makes of a configuration, against the model's own base."""
    base = describe_base(model, "acme/tiny")
    trained(model, config).save_pretrained(folder, **options)
    return faults_of(unsealed(folder), base, adopt=True)


# Options of any method


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"target_parameters": ["x"]},
            "`target_parameters` is not supported. Found ['x']. Supported options of LORA: ",
        ),
        ({"layer_replication": [[0, 2]]}, "`layer_replication` is not supported"),
        ({"trainable_token_indices": [1]}, "`trainable_token_indices` is not supported"),
        ({"alora_invocation_tokens": [1]}, "`alora_invocation_tokens` is not supported"),
        ({"ensure_weight_tying": True}, "`ensure_weight_tying` is not supported"),
        ({"option_of_next_year": 3}, "`option_of_next_year` is not supported"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` 'pissa' is not supported"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: `embed_tokens` is not supported"),
        ({"modules_to_save": ["score"]}, "modules_to_save: `score` is not supported"),
        ({"modules_to_save": "score"}, "`modules_to_save` should be a list of module names"),
        ({"task_type": "QUESTION_ANS"}, "task_type should be one of"),
        ({"task_type": ["SEQ_CLS"]}, "task_type should be one of"),
        ({"r": "4"}, "`r` should be a whole number"),
        ({"r": True}, "`r` should be a whole number"),
        ({"lora_alpha": float("inf")}, "`lora_alpha` should be a finite number"),
        ({"rank_pattern": {"q_proj": 0}}, "`rank_pattern['q_proj']` should be a whole number"),
        ({"rank_pattern": {"(?i)q_proj": 2}}, "`rank_pattern` should be a regular expression"),
        ({"rank_pattern": {"(": 2}}, "`rank_pattern` should be a regular expression"),
        ({"alpha_pattern": {"q_proj": "8"}}, "`alpha_pattern['q_proj']` should be a finite number"),
        ({"alpha_pattern": ["q_proj"]}, "`alpha_pattern` should be an object"),
        ({"use_rslora": "false"}, "`use_rslora` should be one of False, True. Found 'false'"),
        ({"use_dora": "yes"}, "`use_dora` should be one of False, True. Found 'yes'"),
        ({"lora_bias": None}, "`lora_bias` should be one of False, True. Found None"),
        ({"bias": "some"}, "`bias` should be one of none, lora_only, all. Found 'some'"),
        ({"use_dora": True, "lora_bias": True}, "`lora_bias` together with `use_dora` is not supported"),
        ({"target_modules": "(q_proj"}, "`target_modules` should be a regular expression"),
        ({"target_modules": [1]}, "`target_modules` should be a list of module names"),
        ({"target_modules": None}, "`target_modules` should name at least one module"),
        ({"exclude_modules": 1}, "`exclude_modules` should be a list of module names"),
        ({"layers_to_transform": "1"}, "`layers_to_transform` should be a list of whole numbers"),
        ({"layers_to_transform": [0, 1], "layers_pattern": "("}, "`layers_pattern` should be a regular expression"),
        ({"layers_pattern": 3}, "`layers_pattern` should be a list of names"),
    ],
)
def test_options_are_refused_by_name(changes, fault, folder, base):
    assert any(fault in found for found in faults_of(unsealed(folder, **changes), base, adopt=True))


def test_options_and_keys_are_refused_together(folder, base):
    faults = faults_of(unsealed(folder, use_qalora=True, layer_replication=[[0, 1]], r=8), base, adopt=True)
    assert len(faults) == 2 + 8


def test_a_configuration_is_looked_at_anew_although_the_file_is_known(folder, base):
    """Headers, configurations and bases that were seen are remembered together, and only together."""
    unsealed(folder)
    first = read_adapter(folder, base, adopt=True)
    assert faults_of(unsealed(folder, r=8), base, adopt=True)
    twice = read_adapter(unsealed(folder, r=4, lora_alpha=16), base, adopt=True)
    name = "layers.0.self_attn.q_proj"
    torch.testing.assert_close(twice.modules[name].up, 2 * first.modules[name].up)
    assert faults_of(folder, describe_base(tiny_llama(layers=3), "acme/tiny"), adopt=True)
    assert read_adapter(folder, base, adopt=True).modules.keys() == first.modules.keys()


def test_adapters_of_one_shape_are_held_against_the_base_once(tmp_path, base, monkeypatch):
    asked = []

    def counted(rule, name):
        asked.append(name)
        return check_target_module_exists(rule, name)

    monkeypatch.setattr("adapterhub.adapter._config.check_target_module_exists", counted)
    read = []
    for seed in range(3):
        trained(tiny_llama(), lora(target_modules=["k_proj", "up_proj"], r=3), seed).save_pretrained(tmp_path)
        read.append(read_adapter(unsealed(tmp_path), base, adopt=True))
        assert len(asked) == len(base.modules) + len(base.embeddings)
    name = "layers.0.self_attn.k_proj"
    assert not torch.equal(read[0].modules[name].down, read[1].modules[name].down)
    assert len({adapter.sha256 for adapter in read}) == 3


@pytest.mark.parametrize("kind", ["remembered", "large", "unaligned", "mixed"])
def test_a_file_is_read_the_same_in_every_way(kind, folder, base, monkeypatch):
    expected = read_adapter(unsealed(folder), base, adopt=True)
    name = "layers.1.self_attn.q_proj"
    if kind == "large":
        monkeypatch.setattr("adapterhub.adapter._tensors._REMEMBERED", 0)
    elif kind == "unaligned":
        data = (folder / WEIGHTS).read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        (folder / WEIGHTS).write_bytes((begin - 8 + 3).to_bytes(8, "little") + data[8:begin] + b"   " + data[begin:])
    elif kind == "mixed":
        edit_tensors(folder, lambda tensors: tensors.update({f"{ROOT}{name}.lora_B.weight": torch.ones(32, 4).half()}))
    found = read_adapter(folder, base, adopt=True)
    for module, part in expected.modules.items():
        assert torch.equal(found.modules[module].down, part.down)
        up = torch.full((4, 32), 2.0) if kind == "mixed" and module == name else part.up
        assert torch.equal(found.modules[module].up, up)


# LoRA's biases, DoRA, embeddings


def test_lora_only_where_the_base_has_biases_is_refused_in_one_line(tmp_path):
    config = lora(target_modules=["query"], bias="lora_only", task_type="FEATURE_EXTRACTION")
    (fault,) = refusals(tiny_bert(), config, tmp_path)
    assert fault == (
        "`bias` 'lora_only' is not supported, since it changes 2 biases of the base, as "
        "encoder.layer.0.attention.self.query.bias. Train with `lora_bias=True` instead."
    )


def test_all_biases_are_refused_in_one_line(tmp_path):
    (fault,) = refusals(tiny_gpt2(), lora(target_modules=["c_attn"], bias="all", fan_in_fan_out=True), tmp_path)
    assert fault.startswith(
        "`bias` 'all' is not supported, since it changes 13 biases of the base, as h.0.attn.c_attn."
    )


@pytest.mark.parametrize(("option", "part"), [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")])
def test_tensors_of_an_option_are_wanted_with_it_and_unexpected_without(option, part, tmp_path):
    model = tiny_gpt2()
    base = describe_base(model, "acme/tiny")
    config = lora(target_modules=["c_attn"], fan_in_fan_out=True, **{option: True})
    trained(model, config).save_pretrained(tmp_path)
    assert faults_of(unsealed(tmp_path, **{option: False}), base, adopt=True) == [
        f"h.{block}.attn.c_attn: {part} unexpected, since the configuration asks for lora_A, lora_B there."
        for block in range(2)
    ]
    unsealed(tmp_path, **{option: True})
    key = f"base_model.model.transformer.h.0.attn.c_attn.{part}"
    edit_tensors(tmp_path, lambda tensors: tensors.update({key: torch.ones(95)}))
    assert faults_of(tmp_path, base, adopt=True) == [f"h.0.attn.c_attn: {part} should have shape (96,). Found (95,)."]
    edit_tensors(tmp_path, lambda tensors: tensors.update({key: torch.full((96,), float("nan"))}))
    assert faults_of(tmp_path, base, adopt=True) == [f"h.0.attn.c_attn: {part} holds NaN or infinity."]
    edit_tensors(tmp_path, lambda tensors: tensors.pop(key))
    assert faults_of(tmp_path, base, adopt=True) == [f"h.0.attn.c_attn: {part} missing."]


def test_dora_at_an_embedding_is_refused(tmp_path):
    config = lora(target_modules=["embed_tokens", "q_proj"], use_dora=True)
    (fault,) = refusals(tiny_llama(), config, tmp_path, save_embedding_layers=False)
    assert fault.startswith("embed_tokens: `use_dora` is not supported at an embedding.")


def test_lora_bias_at_an_embedding_is_refused(base, tmp_path):
    trained(tiny_llama(), lora(target_modules=["embed_tokens"])).save_pretrained(tmp_path, save_embedding_layers=False)
    (fault,) = faults_of(unsealed(tmp_path, lora_bias=True), base, adopt=True)
    assert fault.startswith("embed_tokens: `lora_bias` is not supported at an embedding.")


def test_factors_of_an_embedding_are_checked(base, tmp_path):
    trained(tiny_llama(), lora(target_modules=["embed_tokens"])).save_pretrained(tmp_path, save_embedding_layers=False)
    unsealed(tmp_path)
    root = "base_model.model.model.embed_tokens."

    def change(tensors):
        tensors[f"{root}lora_embedding_A"] = torch.ones(4, 95)
        tensors[f"{root}lora_embedding_B"] = torch.ones(32, 4).double()
        tensors[f"{root}lora_A.weight"] = torch.ones(4, 96)

    edit_tensors(tmp_path, change)
    assert faults_of(tmp_path, base, adopt=True) == [
        "embed_tokens: lora_embedding_A should have shape (4, 96). Found (4, 95).",
        "embed_tokens: lora_embedding_B should be F32, F16 or BF16. Found F64.",
        "embed_tokens: lora_A unexpected, since the configuration asks for lora_embedding_A, lora_embedding_B there.",
    ]


@pytest.mark.parametrize("name", ["wpe", "position_embeddings", "token_type_embeddings"])
def test_a_table_that_is_not_looked_up_by_token_is_refused(name, tmp_path):
    model, others = (tiny_gpt2(), ["c_attn"]) if name == "wpe" else (tiny_bert(), ["query"])
    config = lora(target_modules=[name, *others], fan_in_fan_out=name == "wpe", task_type=None)
    (fault,) = refusals(model, config, tmp_path, save_embedding_layers=False)
    assert fault.startswith(f"{'' if name == 'wpe' else 'embeddings.'}{name}: the base has no such linear module or ")


def test_a_table_that_is_scaled_is_refused(tmp_path):
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes |= {"vocab_size": 96, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    model = BartModel(BartConfig(max_position_embeddings=64, **sizes)).eval()
    config = lora(target_modules=["shared", "embed_tokens", "q_proj"], task_type=None)
    faults = refusals(model, config, tmp_path, save_embedding_layers=False)
    assert faults
    assert all("the base has no such linear module or token embedding" in fault for fault in faults)


# Bottleneck, IA³, layer-norm tuning


@pytest.mark.parametrize("change", [{"activation": "tanh"}, {"scaling": "1"}, {"r": 0}])
def test_options_of_a_bottleneck_are_checked(change, base, tmp_path):
    trained(tiny_llama(), bottleneck()).save_pretrained(tmp_path)
    (fault,) = faults_of(unsealed(tmp_path, **change), base, adopt=True)
    assert fault.startswith(f"`{next(iter(change))}` should be")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"feedforward_modules": None}, "`feedforward_modules` should be a list of module names, empty where"),
        ({"feedforward_modules": 3}, "`feedforward_modules` should be a list of module names. Found 3."),
        ({"feedforward_modules": "("}, "`feedforward_modules` should be a regular expression"),
        ({"feedforward_modules": ["o_proj"]}, "`feedforward_modules` should be among the `target_modules`."),
        ({"fan_in_fan_out": 2}, "`fan_in_fan_out` should be one of False, True"),
        ({"layers_to_transform": [1]}, "`layers_to_transform` is not supported. Found [1]. Supported options of IA3: "),
        ({"r": 4}, "`r` is not supported"),
    ],
)
def test_options_of_ia3_are_checked(changes, fault, base, tmp_path):
    trained(tiny_llama(), ia3()).save_pretrained(tmp_path)
    (found,) = faults_of(unsealed(tmp_path, **changes), base, adopt=True)
    assert found.startswith(fault)


def test_factors_of_the_other_side_are_refused(base, tmp_path):
    trained(tiny_llama(), ia3()).save_pretrained(tmp_path)
    assert faults_of(unsealed(tmp_path, feedforward_modules=[]), base, adopt=True) == [
        f"layers.{block}.mlp.down_proj: ia3_l should have shape (32, 1). Found (1, 64)." for block in range(2)
    ]


def test_options_of_layer_norm_tuning_are_checked(base, tmp_path):
    trained(tiny_llama(), ln_tuning()).save_pretrained(tmp_path)
    (fault,) = faults_of(unsealed(tmp_path, bias="all"), base, adopt=True)
    assert fault.startswith("`bias` is not supported. Found 'all'. Supported options of LN_TUNING: exclude_modules, ")


# Tensors of each method: missing, unexpected, misshapen, of another kind, not finite

METHOD_CASES = {
    "ia3": (ia3(target_modules=["k_proj"], feedforward_modules=[]), "self_attn.k_proj", "ia3_l", "ia3_l", (16, 1)),
    "ln": (
        ln_tuning(target_modules=["input_layernorm"]),
        "input_layernorm",
        "ln_tuning_layers.weight",
        "ln_tuning_layers.weight",
        (32,),
    ),
    "bottleneck": (
        bottleneck(target_modules=["o_proj"]),
        "self_attn.o_proj",
        "bottleneck_up.weight",
        "bottleneck_up",
        (32, 4),
    ),
}


@pytest.mark.parametrize("case", METHOD_CASES)
def test_the_tensors_of_each_method_are_checked(case, base, tmp_path):
    config, module, part, label, shape = METHOD_CASES[case]
    trained(tiny_llama(), config).save_pretrained(tmp_path)
    unsealed(tmp_path)
    first, second = (f"layers.{block}.{module}" for block in range(2))
    key, other = (f"base_model.model.model.{name}.{part}" for name in (first, second))

    def after(change) -> list[str]:
        edit_tensors(tmp_path, change)
        return faults_of(tmp_path, base, adopt=True)

    bad = torch.full(shape, float("inf"))
    assert after(lambda t: t.update({key: bad})) == [f"{first}: {label} holds NaN or infinity."]
    assert after(lambda t: t.update({key: torch.ones(shape).double()})) == [
        f"{first}: {label} should be F32, F16 or BF16. Found F64."
    ]
    assert after(lambda t: t.update({key: torch.ones(3, 1)})) == [
        f"{first}: {label} should have shape {shape}. Found (3, 1)."
    ]
    moved = key.replace(module, "mlp.act_fn")
    faults = after(lambda t: t.update({moved: t.pop(key), "stranger": torch.ones(1)}))
    site = "normalisation" if case == "ln" else "linear module"
    assert f"layers.0.mlp.act_fn: the base has no such {site}. Found {label} (3, 1)." in faults
    assert "stranger: unexpected, since PEFT's keys begin with base_model.model." in faults
    assert any(fault.startswith(f"{first}: ") and "missing" in fault for fault in faults)
    assert len(faults) == 3
    assert len(after(lambda t: t.update({other: t[other].half()}))) == 3


def test_a_bias_where_the_base_has_none_is_unexpected(base, tmp_path):
    trained(tiny_llama(), ln_tuning(target_modules=["norm"])).save_pretrained(tmp_path)
    root = "base_model.model.model.norm.ln_tuning_layers"
    edit_tensors(unsealed(tmp_path), lambda tensors: tensors.update({f"{root}.bias": torch.ones(32)}))
    assert faults_of(tmp_path, base, adopt=True) == [
        "norm: ln_tuning_layers.bias unexpected, since the configuration asks for ln_tuning_layers.weight there."
    ]


def test_a_bias_that_the_base_has_is_wanted(tmp_path):
    model = tiny_gpt2()
    base = describe_base(model, "acme/tiny")
    trained(model, ln_tuning(target_modules=["ln_f"])).save_pretrained(tmp_path)
    key = "base_model.model.transformer.ln_f.ln_tuning_layers.bias"
    edit_tensors(unsealed(tmp_path), lambda tensors: tensors.pop(key))
    assert faults_of(tmp_path, base, adopt=True) == ["ln_f: ln_tuning_layers.bias missing."]


def test_layer_norm_tuning_of_linear_modules_is_refused(base, tmp_path):
    trained(tiny_llama(), ln_tuning(target_modules=["q_proj", "norm"])).save_pretrained(tmp_path)
    faults = faults_of(unsealed(tmp_path), base, adopt=True)
    assert [fault.partition(". Found")[0] for fault in faults] == [
        f"layers.{block}.self_attn.q_proj: the base has no such normalisation" for block in range(2)
    ]


@pytest.mark.parametrize("make", [tiny_t5, tiny_mamba, tiny_bert])
def test_an_adapter_of_one_architecture_does_not_fit_another(make, base, tmp_path):
    model = make()
    target = {"t5": "layer_norm", "mamba": "norm", "bert": "LayerNorm"}[model.config.model_type]
    trained(model, ln_tuning(target_modules=[target], task_type=None)).save_pretrained(tmp_path)
    faults = faults_of(unsealed(tmp_path), base, adopt=True)
    assert any("the base has no such normalisation" in fault for fault in faults)


# Methods


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        ("LORRA", "Did you mean `LORA`?"),
        ("LOHA", "PEFT can turn it into LORA: convert it with `adapterhub convert FOLDER OUT`."),
        ("VERA", "PEFT can turn it into LORA: convert it with `adapterhub convert FOLDER OUT`."),
        ("PREFIX_TUNING", "PEFT cannot convert it into one of them. Train the task again with one of them."),
        ("ADALORA", "PEFT cannot convert it into one of them. Train the task again with one of them."),
        ("OFT", "PEFT cannot convert it into one of them. Train the task again with one of them."),
        (None, None),
        (["LORA"], None),
    ],
)
def test_a_method_that_is_not_read_is_refused_with_what_can_be_done(found, advice, folder, base):
    (fault,) = faults_of(unsealed(folder, peft_type=found), base, adopt=True)
    start = f"peft_type should be one of BOTTLENECK, IA3, LN_TUNING, LORA. Found {found!r}."
    assert fault == (start if advice is None else f"{start} {advice}")


# What these need beside `target_modules` on a model this small.
NEEDS = {
    "ADALORA": {"total_step": 10},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 30},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HRA": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"r": 0, "oft_block_size": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "TINYLORA": {"r": 2},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 30},
}


@pytest.mark.parametrize("method", sorted(str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_what_can_be_converted_is_what_peft_says(method):
    """A contract: a newer PEFT that converts more, or less, shows here."""
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    if "target_modules" not in kind.__dataclass_fields__ or method == "ADAPTION_PROMPT":
        assert method not in CONVERTIBLE
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_llama(), kind(target_modules=["q_proj"], **NEEDS.get(method, {})))
        assert model.supports_lora_conversion() == (method in CONVERTIBLE or method == "LORA")


def test_every_convertible_method_is_one_of_pefts():
    assert {str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING} >= CONVERTIBLE
    assert not CONVERTIBLE & METHODS.keys()


@pytest.mark.parametrize(
    "config", [LoHaConfig(r=2, target_modules=["q_proj"]), OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"])]
)
def test_a_real_folder_of_another_method_is_refused(config, base, tmp_path):
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    (fault,) = faults_of(unsealed(tmp_path), base, adopt=True)
    assert f"Found '{config.peft_type.value}'." in fault
