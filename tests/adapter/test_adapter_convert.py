"""`convert_to_lora`: PEFT's own conversion, sealed, measured against the adapter that it replaces."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
from adapter_folders import CONFIG, WEIGHTS, bottleneck, edit_config, edit_tensors, lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from peft import LoHaConfig, LoKrConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import BertForSequenceClassification, PreTrainedModel

from adapterhub.adapter import content_hash, convert_to_lora, describe_base, read_adapter
from adapterhub.errors import IncompatibleAdapterError, InputError, IntegrityError

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 2]])
TARGETS = ["q_proj", "down_proj"]
FULL = 32  # the rank of the tiny models' largest ΔW
# Every method of PEFT 0.21 whose layers say that they become LoRA.
CONVERTIBLE: Mapping[str, PeftConfig] = {
    "LOHA": LoHaConfig(r=3, target_modules=TARGETS),
    "LOKR": LoKrConfig(r=3, target_modules=TARGETS),
    "MISS": peft.MissConfig(r=4, target_modules=TARGETS),
    "VERA": peft.VeraConfig(r=8, target_modules=TARGETS),
    "VBLORA": peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=16, topk=2, target_modules=TARGETS),
    "FOURIERFT": peft.FourierFTConfig(n_frequency=30, target_modules=TARGETS),
    "WAVEFT": peft.WaveFTConfig(n_frequency=30, target_modules=TARGETS),
    "C3A": peft.C3AConfig(block_size=16, target_modules=TARGETS),
    "DELORA": peft.DeloraConfig(r=4, target_modules=TARGETS),
    "GRALORA": peft.GraloraConfig(r=4, gralora_k=2, target_modules=TARGETS),
    "RANDLORA": peft.RandLoraConfig(r=4, target_modules=TARGETS),
    "TINYLORA": peft.TinyLoraConfig(r=2, target_modules=TARGETS),
}


def saved(model: PreTrainedModel, config: PeftConfig, folder: Path) -> PeftModel:
    tuned = trained(model, config)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return tuned


def says(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def deltas(model: PeftModel) -> dict[str, torch.Tensor]:
    """ΔW of every layer as PEFT knows it."""
    return {
        name: layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer")
    }


@pytest.mark.parametrize("method", CONVERTIBLE)
def test_at_full_rank_nothing_is_lost_and_the_base_is_left_alone(method: str, tmp_path: Path) -> None:
    tuned = saved(tiny_llama(), CONVERTIBLE[method], tmp_path / "old")
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [value.requires_grad for value in model.parameters()]
    made = convert_to_lora(tmp_path / "old", model, tmp_path / "new", rank=FULL, model_id="tests/llama")
    assert made.method == method
    assert made.error < 1e-4
    assert made.rank == (4 if method == "MISS" else FULL)
    assert made.sha256 == content_hash(tmp_path / "new")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [value.requires_grad for value in model.parameters()] == flags
    assert not any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in model.modules())
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path / "new").eval()
    base, old, new = says(tiny_llama()), says(tuned.base_model.model), says(again.base_model.model)
    assert distance(new, old) < min(1e-3, distance(base, old) / 10)
    adapter = read_adapter(tmp_path / "new", describe_base(model, "tests/llama"))
    assert adapter.method == "LORA"
    assert len(adapter.modules) == 4


@pytest.mark.parametrize("rank", [1, 4, 0.5, 0.999])
def test_the_loss_is_the_distance_of_the_matrices(rank: int | float, tmp_path: Path) -> None:
    tuned = saved(tiny_llama(), LoHaConfig(r=3, target_modules=TARGETS), tmp_path / "old")
    made = convert_to_lora(tmp_path / "old", tiny_llama(), tmp_path / "new", rank=rank, model_id="tests/llama")
    new = PeftModel.from_pretrained(tiny_llama(), tmp_path / "new")
    old, now = deltas(tuned), deltas(new)
    lost = sum(float((old[name] - now[name]).square().sum()) for name in old)
    assert made.error == pytest.approx((lost / sum(float(value.square().sum()) for value in old.values())) ** 0.5, 1e-4)
    if isinstance(rank, int):
        assert made.rank == rank
        assert made.error > 0.05
    else:
        assert made.error <= (1 - rank) ** 0.5 + 1e-6


def test_more_rank_loses_less(tmp_path: Path) -> None:
    saved(tiny_llama(), LoKrConfig(r=3, target_modules=TARGETS), tmp_path / "old")
    errors = [
        convert_to_lora(tmp_path / "old", tiny_llama(), tmp_path / str(rank), rank=rank, model_id="").error
        for rank in (1, 2, 4, 8, 16, FULL)
    ]
    assert all(less < more + 1e-6 for more, less in pairwise(errors))
    assert errors[0] > 0.5 > 1e-5 > errors[-1]


@pytest.mark.parametrize(
    "config",
    [
        peft.VeraConfig(r=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=16, topk=2, target_modules=["c_attn"], fan_in_fan_out=True),
    ],
    ids=["vera", "vblora"],
)
def test_conv1d(config: PeftConfig, tmp_path: Path) -> None:
    tuned = saved(tiny_gpt2(), config, tmp_path / "old")
    made = convert_to_lora(tmp_path / "old", tiny_gpt2(), tmp_path / "new", rank=FULL, model_id="tests/gpt2")
    assert made.error < 1e-4
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["fan_in_fan_out"] is True
    again = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "new").eval()
    old = says(tuned.base_model.model)
    assert distance(says(again.base_model.model), old) < 1e-4 < distance(says(tiny_gpt2()), old)


def test_excluded_modules_and_chosen_blocks_stay_as_they_are(tmp_path: Path) -> None:
    options = {"exclude_modules": ["model.layers.1.mlp.down_proj"], "layers_to_transform": [1]}
    saved(tiny_llama(), LoHaConfig(r=3, target_modules=TARGETS, **options), tmp_path / "old")
    assert convert_to_lora(tmp_path / "old", tiny_llama(), tmp_path / "new", rank=FULL, model_id="").error < 1e-4
    adapter = read_adapter(tmp_path / "new", describe_base(tiny_llama(), ""))
    assert list(adapter.modules) == ["layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("with_head", [True, False], ids=["under a head", "bare"])
def test_a_head_is_kept(with_head: bool, tmp_path: Path) -> None:
    def build() -> PreTrainedModel:
        config = tiny_bert().config
        config.num_labels = 3
        model = BertForSequenceClassification(config).eval()
        model.bert.load_state_dict(tiny_bert().state_dict())
        return model

    tuned = saved(build(), LoHaConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"), tmp_path / "old")
    model = build() if with_head else tiny_bert()
    convert_to_lora(tmp_path / "old", model, tmp_path / "new", rank=FULL, model_id="tests/bert")
    again = PeftModel.from_pretrained(build(), tmp_path / "new").eval()
    with torch.no_grad():
        assert torch.allclose(again(TOKENS).logits, tuned(TOKENS).logits, atol=1e-4)
    head = read_adapter(tmp_path / "new", describe_base(tiny_bert(), "tests/bert")).head
    assert head is not None
    assert head.kind == "sequence"
    assert torch.equal(head.weight, tuned.base_model.model.classifier.modules_to_save["default"].weight)


def test_a_base_that_is_in_use_is_copied_without_its_hooks(loha: Path, tmp_path: Path) -> None:
    model = tiny_llama()
    lock = threading.Lock()  # which no copy can be made of
    model.model.register_forward_hook(partial(in_use, lock))
    model.model.layers[0].self_attn.q_proj.forward = partial(in_use, lock)
    made = convert_to_lora(loha, model, tmp_path / "new", rank=FULL, model_id="")
    assert made.error < 1e-4
    assert model.model._forward_hooks
    assert "forward" in vars(model.model.layers[0].self_attn.q_proj)


def in_use(lock: threading.Lock, *_: object) -> None:
    """Stands for what an engine puts into a base."""


REFUSED: Mapping[str, PeftConfig] = {
    "BOTTLENECK": bottleneck(),
    "IA3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "OFT": peft.OFTConfig(oft_block_size=8, target_modules=TARGETS),
    "LN_TUNING": peft.LNTuningConfig(target_modules=["norm"]),
    "ADALORA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=TARGETS),
    "PROMPT_TUNING": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("method", REFUSED)
def test_what_adds_no_matrix_is_refused(method: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")
        get_peft_model(tiny_llama(), REFUSED[method]).save_pretrained(tmp_path / "old")
    with pytest.raises(InputError, match=f"Found {method} in"):
        convert_to_lora(tmp_path / "old", tiny_llama(), tmp_path / "new", rank=4)
    assert not (tmp_path / "new").exists()


def test_lora_needs_no_conversion(tmp_path: Path) -> None:
    saved(tiny_llama(), lora(), tmp_path / "old")
    with pytest.raises(InputError, match="a LoRA adapter needs no conversion"):
        convert_to_lora(tmp_path / "old", tiny_llama(), tmp_path / "new", rank=4)


@pytest.fixture
def loha(tmp_path: Path) -> Path:
    saved(tiny_llama(), LoHaConfig(r=3, target_modules=TARGETS), tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, True, float("nan")])
def test_ranks_out_of_bounds(rank: int | float, loha: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`rank` should be"):
        convert_to_lora(loha, tiny_llama(), tmp_path / "new", rank=rank)


def test_a_rank_above_the_weights(loha: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="33 is larger"):
        convert_to_lora(loha, tiny_llama(), tmp_path / "new", rank=33)


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    keys = sorted(tensors)
    del tensors[keys[0]]
    tensors[keys[1]] = tensors[keys[1]][:1].clone()
    tensors[keys[2]][0, 0] = float("nan")
    tensors["base_model.model.model.layers.9.q_proj.hada_w1_a"] = torch.ones(2, 2)


def test_every_fault_of_a_file_is_told(loha: Path, tmp_path: Path) -> None:
    keys = []
    edit_tensors(loha, lambda tensors: (keys.extend(sorted(tensors)), spoil(tensors)))
    with pytest.raises(IncompatibleAdapterError) as error:
        convert_to_lora(loha, tiny_llama(), tmp_path / "new", rank=4, model_id="tests/llama")
    assert len(error.value.faults) == 4
    said = str(error.value)
    assert f"{keys[0]}: missing" in said
    assert f"{keys[1]} should have shape" in said
    assert f"{keys[2]} holds NaN" in said
    assert "layers.9.q_proj.hada_w1_a: unexpected for LOHA" in said
    assert not (tmp_path / "new").exists()


def test_files_that_are_damaged_or_pickled(loha: Path, tmp_path: Path) -> None:
    data = (loha / WEIGHTS).read_bytes()
    (loha / WEIGHTS).write_bytes(data[:-9])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        convert_to_lora(loha, tiny_llama(), tmp_path / "new", rank=4)
    (loha / WEIGHTS).rename(loha / "adapter_model.bin")
    with pytest.raises(IntegrityError, match="pickle"):
        convert_to_lora(loha, tiny_llama(), tmp_path / "new", rank=4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "MAGIC"}, "`peft_type` should be a method of PEFT"),
        ({"r": -4}, "does not fit|should be a configuration"),
        ({"target_modules": ["nowhere"]}, "nowhere"),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_configurations_that_are_wrong(changes: dict[str, object], said: str, loha: Path, tmp_path: Path) -> None:
    edit_config(loha, **changes)
    with pytest.raises((InputError, IncompatibleAdapterError), match=said):
        convert_to_lora(loha, tiny_llama(), tmp_path / "new", rank=4)
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
