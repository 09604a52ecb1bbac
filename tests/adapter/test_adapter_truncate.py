"""`truncate_rank` against the singular values of the whole ΔW, which it never forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_folders import CONFIG, SEAL, WEIGHTS, bottleneck, edit_tensors, ia3, lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from adapterhub.adapter import (
    Adapter,
    BaseSignature,
    LowRank,
    content_hash,
    describe_base,
    read_adapter,
    seal,
    sealed_stack,
    truncate_rank,
)
from adapterhub.adapter._truncate import _cut, _distance
from adapterhub.errors import InputError, IntegrityError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape.*lora_B.bias.*"),
    pytest.mark.filterwarnings("ignore:.*targeted layer of type Linear has no bias.*"),
]

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 2]])
CASES: dict[str, tuple[Callable[[], PreTrainedModel], object]] = {
    "llama": (tiny_llama, lora(r=6)),
    "rooted": (tiny_llama, lora(r=6, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "o_proj", "down_proj"])),
    "patterns": (
        tiny_llama,
        lora(r=5, target_modules=["v_proj", "up_proj"], rank_pattern={"up_proj": 8}, alpha_pattern={"v_proj": 7}),
    ),
    "lm-head": (tiny_llama, lora(r=5, target_modules=["q_proj", "lm_head"])),
    "biased": (tiny_llama, lora(r=5, lora_bias=True)),
    "gpt2": (tiny_gpt2, lora(r=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    "bert": (tiny_bert, lora(r=5, target_modules=["query", "dense"], task_type="FEATURE_EXTRACTION")),
    "t5": (tiny_t5, lora(r=5, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")),
    "embedding": (tiny_llama, lora(r=5, target_modules=["embed_tokens", "q_proj"])),
    "over-wide": (tiny_llama, lora(r=40)),  # more ranks than the modules are wide
}


def saved(build: Callable[[], PreTrainedModel], config: object, folder: Path) -> BaseSignature:
    base = describe_base(build(), "tests/tiny")
    # PEFT would add the whole table beside the factors at it.
    trained(build(), config).save_pretrained(folder, save_embedding_layers=False)
    seal(folder, base)
    return base


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: low.up.double().T @ low.down.double() for name, low in adapter.modules.items()}


def cut_delta(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """The reference: the whole matrix, its best approximation, and the tail's mass."""
    left, singular, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :rank] * singular[:rank] @ right[:rank], float(singular[rank:].norm())


@pytest.mark.parametrize("name", CASES)
def test_truncation_is_the_best_approximation_and_says_what_it_loses(name: str, tmp_path: Path) -> None:
    base = saved(*CASES[name], tmp_path / "whole")
    before = read_adapter(tmp_path / "whole", base)
    done = truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=3)
    after = read_adapter(tmp_path / "cut", base, sha256=done.sha256)
    old, new = deltas(before), deltas(after)
    assert old.keys() == new.keys()
    assert len(done.modules) == len(old)
    lost = {key.removeprefix(f"{base.prefix}.") if base.prefix else key: loss for key, loss in done.modules.items()}
    for key, delta in old.items():
        wanted, tail = cut_delta(delta, 3)
        size = float(delta.norm())
        assert after.modules[key].rank == 3
        assert torch.allclose(new[key], wanted, rtol=0, atol=1e-5 * size)
        assert float((delta - new[key]).norm()) == pytest.approx(tail, rel=1e-4, abs=1e-6 * size)
        loss = lost.get(key) or done.modules[key]
        assert loss.lost == pytest.approx(float((delta - new[key]).norm()), rel=1e-6, abs=1e-9 * size)
        assert (loss.rank, loss.before) == (3, before.modules[key].rank)
        assert loss.norm == pytest.approx(size, rel=1e-6)
        if before.modules[key].up_bias is not None:
            assert torch.equal(after.modules[key].up_bias, before.modules[key].up_bias)
    total = sum(float((old[key] - new[key]).square().sum()) for key in old)
    assert done.error == pytest.approx((total / sum(float(d.square().sum()) for d in old.values())) ** 0.5, rel=1e-6)
    assert done.after < done.before
    assert (done.before, done.after) == tuple((tmp_path / f / WEIGHTS).stat().st_size for f in ("whole", "cut"))
    assert done.rank == 3


@pytest.mark.parametrize("name", ["llama", "patterns", "gpt2", "bert", "biased"])
def test_bare_peft_reads_what_was_cut(name: str, tmp_path: Path) -> None:
    build, _ = CASES[name]
    base = saved(*CASES[name], tmp_path / "whole")
    truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=0.9)
    config = json.loads((tmp_path / "cut" / CONFIG).read_text())
    assert config["rank_pattern"].keys() == config["alpha_pattern"].keys()
    cut = read_adapter(tmp_path / "cut", base)
    model = build()
    modules = {name: dict(model.base_model.named_modules()).get(name) for name in cut.modules}
    with torch.no_grad():
        for key, low in cut.modules.items():  # the reference: the base with ΔW written into its weights
            delta = low.up.T @ low.down
            modules[key].weight += delta if modules[key].weight.shape == delta.shape else delta.T
            if low.up_bias is not None:
                modules[key].bias = torch.nn.Parameter(low.up_bias)  # these modules have none of their own
        wanted = model(TOKENS)[0]
        found = PeftModel.from_pretrained(build(), tmp_path / "cut").eval()(TOKENS)[0]
    assert torch.allclose(found, wanted, atol=2e-5)


def test_energy_keeps_the_fewest_ranks_that_hold_it(tmp_path: Path) -> None:
    base = saved(tiny_llama, lora(r=8, target_modules=["q_proj", "v_proj", "up_proj"]), tmp_path / "whole")
    before = deltas(read_adapter(tmp_path / "whole", base))
    for share in (0.3, 0.8, 0.99):
        out = tmp_path / f"cut-{share}"
        done = truncate_rank(tmp_path / "whole", base, out, rank=share)
        for key, low in read_adapter(out, base).modules.items():
            energy = torch.linalg.svdvals(before[key]).square()
            kept = energy.cumsum(0) / energy.sum()
            wanted = int((kept < share).sum()) + 1
            assert low.rank == wanted, (share, key)
        assert done.error**2 <= 1 - share + 1e-6
    assert len({loss.rank for loss in done.modules.values()}) > 1  # else the ranks' pattern is not tested


def test_all_the_energy_drops_only_ranks_that_do_nothing(tmp_path: Path) -> None:
    base = saved(tiny_llama, lora(r=8), tmp_path / "whole")

    def double(tensors: dict[str, torch.Tensor]) -> None:
        for key, value in tensors.items():
            if "lora_A" in key:
                value[4:] = value[:4]  # rank 4 in the shape of rank 8
            if "layers.1." in key and "lora_B" in key:
                value.zero_()

    edit_tensors(tmp_path / "whole", double)
    seal(tmp_path / "whole", base)
    done = truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=1.0)
    assert {loss.rank for name, loss in done.modules.items() if "layers.0." in name} == {4}
    assert {(loss.rank, loss.norm, loss.lost) for name, loss in done.modules.items() if "layers.1." in name} == {
        (1, 0, 0)
    }
    assert done.error < 1e-6


def test_a_head_and_the_dtype_and_the_stack_stay(tmp_path: Path) -> None:
    config = tiny_llama().config
    config.num_labels = 3
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    base = describe_base(model, "tests/tiny")
    trained(model, lora(r=6, task_type="SEQ_CLS")).save_pretrained(tmp_path / "whole")
    edit_tensors(tmp_path / "whole", lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    seal(tmp_path / "whole", base, {"language": "0" * 64})
    truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=2)
    old, new = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "cut" / WEIGHTS)
    heads = [key for key in old if "score" in key]
    assert heads
    assert all(torch.equal(old[key], new[key]) for key in heads)
    assert {value.dtype for value in new.values()} == {torch.bfloat16}
    assert sealed_stack(tmp_path / "cut") == {"language": "0" * 64}


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    base = saved(tiny_llama, lora(r=6), tmp_path / "whole")
    first = truncate_rank(tmp_path / "whole", base, tmp_path / "a", rank=2)
    again = truncate_rank(tmp_path / "whole", base, tmp_path / "b", rank=2)
    assert first.sha256 == again.sha256 == content_hash(tmp_path / "b")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lora(use_dora=True), "DoRA's magnitude"),
        (bottleneck(), "BOTTLENECK"),
        (ia3(), "IA3"),
    ],
)
def test_what_is_not_plain_lora_is_refused(config: object, said: str, tmp_path: Path) -> None:
    base = saved(tiny_llama, config, tmp_path / "whole")
    with pytest.raises(InputError, match=said):
        truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=1)
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, True, "4", float("nan"), 4, 9])
def test_a_rank_out_of_bounds_is_refused(rank: object, tmp_path: Path) -> None:
    base = saved(tiny_llama, lora(r=4), tmp_path / "whole")
    with pytest.raises(InputError, match="`rank` should be"):
        truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=rank)
    assert not (tmp_path / "cut").exists()


def test_an_unsealed_or_spoiled_folder_is_refused(tmp_path: Path) -> None:
    base = saved(tiny_llama, lora(r=4), tmp_path / "whole")
    (tmp_path / "whole" / SEAL).rename(tmp_path / "seal")
    with pytest.raises(IntegrityError, match="is missing"):
        truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=2)
    (tmp_path / "seal").rename(tmp_path / "whole" / SEAL)
    edit_tensors(tmp_path / "whole", lambda tensors: next(iter(tensors.values())).add_(1))
    with pytest.raises(IntegrityError, match="sha256"):
        truncate_rank(tmp_path / "whole", base, tmp_path / "cut", rank=2)
    with pytest.raises(InputError, match="new folder"):
        truncate_rank(tmp_path / "whole", base, tmp_path / "whole", rank=2)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 2**16),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.one_of(st.integers(1, 6), st.floats(0.05, 1.0)),
)
def test_the_tail_is_what_is_lost(shape: tuple[int, int, int], seed: int, size: float, rank: int | float) -> None:
    generator = torch.Generator().manual_seed(seed)
    r, d_in, d_out = shape
    low = LowRank(torch.randn(r, d_in, generator=generator) * size, torch.randn(r, d_out, generator=generator), "input")
    down, up, singular = _cut(low, rank)
    delta = low.up.double().T @ low.down.double()
    whole = torch.linalg.svdvals(delta)
    kept = len(down)
    assert torch.allclose(singular[: len(whole)], whole[: len(singular)], rtol=1e-7, atol=1e-9 * float(whole[0]))
    tail = float(whole[kept:].norm())
    lost = float((delta - up.T @ down).norm())
    assert lost == pytest.approx(tail, rel=1e-6, abs=1e-9 * float(whole[0]))
    assert _distance(low, down, up) == pytest.approx(lost, rel=1e-6, abs=1e-9 * float(whole[0]))
