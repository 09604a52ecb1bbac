"""Adapters as int8: read as what they are, close to what they were, refused where PEFT would read nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_folders import CONFIG, SEAL, WEIGHTS, bottleneck, edit_tensors, ia3, ln_tuning, lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from adapterhub.adapter import (
    Adapter,
    BaseSignature,
    content_hash,
    dequantise,
    describe_base,
    quantise,
    read_adapter,
    seal,
    sealed_stack,
    stored_tensors,
    truncate_rank,
    verified_hash,
)
from adapterhub.adapter._int8 import _rows
from adapterhub.engine import Engine
from adapterhub.errors import InputError, IntegrityError
from adapterhub.route import Route

pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 2], [9, 1, 64, 33, 20, 71]])
MASK = torch.ones_like(TOKENS)


def classifier() -> PreTrainedModel:
    config = tiny_llama().config
    config.num_labels = 3
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


CASES: dict[str, tuple[Callable[[], PreTrainedModel], object]] = {
    "lora": (tiny_llama, lora()),
    "dora": (tiny_llama, lora(use_dora=True)),
    "gpt2": (tiny_gpt2, lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "bert": (tiny_bert, lora(target_modules=["query"], task_type="FEATURE_EXTRACTION")),
    "bottleneck": (tiny_llama, bottleneck()),
    "ia3": (tiny_llama, ia3()),
    "head": (classifier, lora(task_type="SEQ_CLS")),
}


def saved(build: Callable[[], PreTrainedModel], config: object, folder: Path) -> BaseSignature:
    base = describe_base(build(), "tests/tiny")
    trained(build(), config).save_pretrained(folder)
    seal(folder, base)
    return base


def parts(adapter: Adapter) -> dict[str, torch.Tensor]:
    modules = {**adapter.modules, **adapter.scalings, **adapter.norms, "head": adapter.head}
    return {
        f"{name}.{field}": value
        for name, part in modules.items()
        if part is not None
        for field, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("name", CASES)
def test_an_int8_adapter_is_read_as_its_dequantised_values(name: str, tmp_path: Path) -> None:
    base = saved(*CASES[name], tmp_path / "whole")
    done = quantise(tmp_path / "whole", base, tmp_path / "small")
    back = dequantise(tmp_path / "small", base, tmp_path / "back")
    whole, small, plain = (read_adapter(tmp_path / folder, base) for folder in ("whole", "small", "back"))
    assert done.sha256 == content_hash(tmp_path / "small") == verified_hash(tmp_path / "small") == small.sha256
    assert len({whole.sha256, small.sha256, plain.sha256}) == 3
    assert parts(small).keys() == parts(whole).keys() == parts(plain).keys()
    for key, value in parts(small).items():
        assert torch.equal(value, parts(plain)[key]), key
        assert float((value - parts(whole)[key]).norm()) < 0.01 * float(parts(whole)[key].norm()), key
    assert 0 < done.error < 0.01
    assert back.error == 0
    tensors, written = stored_tensors(tmp_path / "small"), load_file(tmp_path / "back" / WEIGHTS)
    assert tensors.keys() == written.keys()
    assert all(torch.equal(tensors[key], value.float()) for key, value in written.items())
    stored = load_file(tmp_path / "small" / WEIGHTS)
    steps = {key for key, value in stored.items() if value.dtype == torch.int8}
    assert {f"{key}.scale" for key in steps} == {key for key in stored if key.endswith(".scale")}
    kept = {key: value for key, value in stored.items() if key not in steps and not key.endswith(".scale")}
    before = load_file(tmp_path / "whole" / WEIGHTS)
    assert all(torch.equal(value, before[key]) for key, value in kept.items())
    assert steps == {key for key, value in before.items() if value.dim() == 2 and "score" not in key}


@pytest.mark.parametrize("name", ["lora", "bert", "bottleneck", "head"])
def test_the_way_back_is_a_folder_of_peft(name: str, tmp_path: Path) -> None:
    build, _ = CASES[name]
    base = saved(*CASES[name], tmp_path / "whole")
    quantise(tmp_path / "whole", base, tmp_path / "small")
    dequantise(tmp_path / "small", base, tmp_path / "back")
    assert (tmp_path / "small" / CONFIG).read_bytes() == (tmp_path / "back" / CONFIG).read_bytes()
    fields = {f: json.loads((tmp_path / f / CONFIG).read_text()) for f in ("whole", "back")}
    assert fields["back"] == fields["whole"]
    with torch.no_grad():
        whole, back = (
            PeftModel.from_pretrained(build(), tmp_path / folder).eval()(TOKENS)[0] for folder in ("whole", "back")
        )
    assert not torch.equal(whole, back)
    # These random factors are larger than the base's weights, and their rows are short.
    assert float((back - whole).norm()) < 0.02 * float(whole.norm())
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(build(), tmp_path / "small")


def logits(engine: Engine, route: Route) -> torch.Tensor:
    return torch.stack(list(engine.forward(TOKENS, MASK, [route] * len(TOKENS))))


def test_the_engine_runs_it_as_it_is(tmp_path: Path) -> None:
    base = saved(*CASES["lora"], tmp_path / "whole")
    quantise(tmp_path / "whole", base, tmp_path / "small")
    dequantise(tmp_path / "small", base, tmp_path / "back")
    answers = {}
    with Engine(tiny_llama(), base=base) as engine:
        for name in ("whole", "small", "back"):
            engine.add(name, tmp_path / name)
            answers[name] = logits(engine, Route.to(name))
        bare = logits(engine, Route())
    assert torch.equal(answers["small"], answers["back"])
    moved, off = (answers["whole"] - bare).norm(), (answers["small"] - answers["whole"]).norm()
    assert float(moved) > 0.1 * float(bare.norm())  # else the adapter does nothing, and any file would do
    assert 0 < float(off) < 0.01 * float(answers["whole"].norm())


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    base = saved(*CASES["lora"], tmp_path / "whole")
    assert len({quantise(tmp_path / "whole", base, tmp_path / str(number)).sha256 for number in range(12)}) == 1


def test_the_file_is_about_a_quarter(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
    )

    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()

    base = saved(build, lora(r=16, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]), tmp_path / "whole")
    done = quantise(tmp_path / "whole", base, tmp_path / "small")
    assert (done.before, done.after) == tuple((tmp_path / f / WEIGHTS).stat().st_size for f in ("whole", "small"))
    assert 0.25 < done.after / done.before < 0.29


def test_ranks_are_cut_of_it_too_and_the_stack_stays(tmp_path: Path) -> None:
    base = saved(*CASES["lora"], tmp_path / "whole")
    seal(tmp_path / "whole", base, {"language": "0" * 64})
    quantise(tmp_path / "whole", base, tmp_path / "small")
    truncate_rank(tmp_path / "small", base, tmp_path / "cut", rank=2)
    dequantise(tmp_path / "small", base, tmp_path / "back")
    truncate_rank(tmp_path / "back", base, tmp_path / "same", rank=2)
    assert content_hash(tmp_path / "cut") == content_hash(tmp_path / "same")
    assert {value.dtype for value in load_file(tmp_path / "cut" / WEIGHTS).values()} == {torch.float32}
    assert {str(sealed_stack(tmp_path / folder)) for folder in ("small", "back", "cut")} == {
        str({"language": "0" * 64})
    }


def test_vectors_alone_have_nothing_to_quantise(tmp_path: Path) -> None:
    base = saved(tiny_llama, ln_tuning(), tmp_path / "norms")
    with pytest.raises(InputError, match="Found only vectors"):
        quantise(tmp_path / "norms", base, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_wrong_turns_are_refused(tmp_path: Path) -> None:
    base = saved(*CASES["lora"], tmp_path / "whole")
    quantise(tmp_path / "whole", base, tmp_path / "small")
    with pytest.raises(InputError, match="Found int8"):
        quantise(tmp_path / "small", base, tmp_path / "smaller")
    with pytest.raises(InputError, match="Found none"):
        dequantise(tmp_path / "whole", base, tmp_path / "back")
    with pytest.raises(InputError, match="new folder"):
        quantise(tmp_path / "whole", base, tmp_path / "small")
    assert not (tmp_path / "smaller").exists()
    assert not (tmp_path / "back").exists()


def test_a_spoiled_file_is_told(tmp_path: Path) -> None:
    base = saved(*CASES["lora"], tmp_path / "whole")
    small = tmp_path / "small"
    quantise(tmp_path / "whole", base, small)
    key = next(key for key in load_file(small / WEIGHTS) if key.endswith("q_proj.lora_A.weight"))

    def spoil(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        edit_tensors(small, change)
        (small / SEAL).unlink(missing_ok=True)

    edit_tensors(small, lambda tensors: tensors[f"{key}.scale"].mul_(2))
    for read in (lambda: read_adapter(small, base), lambda: stored_tensors(small)):
        with pytest.raises(IntegrityError, match="sha256"):
            read()
    spoil(lambda tensors: tensors[f"{key}.scale"].fill_(float("nan")))
    assert _seal_faults(small, base) == ["layers.0.self_attn.q_proj: lora_A holds NaN or infinity."]
    spoil(lambda tensors: tensors.update({f"{key}.scale": torch.ones(3)}))  # 3 rows do not divide 4 x 32 values
    assert any("lora_A should have shape (4, 32). Found (128,)" in fault for fault in _seal_faults(small, base))
    spoil(lambda tensors: tensors.pop(f"{key}.scale"))
    assert any("lora_A should have shape (4, 32). Found (128,)" in fault for fault in _seal_faults(small, base))
    spoil(lambda tensors: tensors.update({key: tensors[key].view(4, 32)}))
    assert any("lora_A should be F32, F16 or BF16. Found I8." in fault for fault in _seal_faults(small, base))
    with pytest.raises(InputError, match=r"q_proj\.lora_A\.weight"):
        stored_tensors(small)
    spoil(lambda tensors: tensors.update({key: tensors[key].flatten(), f"{key}.scale": torch.ones(8)}))
    assert any("lora_A should have shape (4, 32). Found (8, 16)" in fault for fault in _seal_faults(small, base))


def _seal_faults(folder: Path, base: BaseSignature) -> list[str]:
    with pytest.raises(ValueError, match="does not fit") as caught:
        seal(folder, base)
    return list(caught.value.faults)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 2**16),
    st.floats(-30, 30),
)
def test_rows_are_off_by_half_a_step(rows: int, columns: int, seed: int, power: float) -> None:
    value = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**power
    value[0] = 0
    steps, scale = _rows(value)
    largest = value.abs().amax(dim=1)
    assert int(steps.abs().max()) <= 127
    off = (steps * scale.float()[:, None] - value).abs().amax(dim=1)
    # bfloat16 has 8 bits: the scale is at most a 128th too large.
    assert torch.all(off <= largest / 127 * (0.5 + 1 / 128) + 1e-40)
    assert not steps[0].any()
