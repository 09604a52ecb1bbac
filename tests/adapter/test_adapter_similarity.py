"""`adapter_similarity` against the cosine of the whole ΔW, which it never forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_folders import bottleneck, lora, trained
from conftest import tiny_gpt2, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.adapter import Adapter, LowRank, adapter_similarity, describe_base, read_adapter, seal
from adapterhub.errors import InputError

SHAPES = {"layers.0.q": (7, 5), "layers.0.up": (4, 9), "lm_head": (6, 6)}  # (d_in, d_out)


def adapter(seed: int, ranks: dict[str, int]) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LowRank(
            torch.randn(rank, SHAPES[name][0], generator=generator),
            torch.randn(rank, SHAPES[name][1], generator=generator),
        )
        for name, rank in ranks.items()
    }
    return Adapter(f"adapter-{seed}", "LORA", "tests/base", "f", "0", modules=modules)


def vector(one: Adapter) -> torch.Tensor:
    """The reference: every ΔW written out, a missing one as zeros."""
    parts = []
    for name, (d_in, d_out) in SHAPES.items():
        low = one.modules.get(name)
        delta = torch.zeros(d_out, d_in).double() if low is None else low.up.double().T @ low.down.double()
        parts.append(delta.flatten())
    return torch.cat(parts)


def cosines(adapters: list[Adapter]) -> np.ndarray:
    vectors = torch.stack([vector(one) for one in adapters])
    units = vectors / vectors.norm(dim=1, keepdim=True)
    return (units @ units.T).numpy()


RANKS = st.lists(
    st.dictionaries(st.sampled_from(sorted(SHAPES)), st.integers(1, 5), min_size=1), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=60)
@given(RANKS, st.integers(0, 2**16))
def test_it_is_the_cosine_of_what_is_added_to_the_weights(ranks: list[dict[str, int]], seed: int) -> None:
    adapters = [adapter(seed + place, each) for place, each in enumerate(ranks)]
    assert np.allclose(adapter_similarity(adapters), cosines(adapters), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(RANKS, st.integers(0, 2**16))
def test_it_does_not_see_the_factoring(ranks: list[dict[str, int]], seed: int) -> None:
    adapters = [adapter(seed + place, each) for place, each in enumerate(ranks)]
    turned = []
    for place, one in enumerate(adapters):
        generator = torch.Generator().manual_seed(seed + 100 + place)
        modules = {}
        for name, low in one.modules.items():
            # Far from orthogonal, yet invertible: B R and R⁻¹ A.
            turn = torch.randn(low.rank, low.rank, generator=generator).double() + 4 * torch.eye(low.rank)
            down = torch.linalg.solve(turn, low.down.double())
            modules[name] = LowRank(down, turn.T @ low.up.double())
        turned.append(Adapter(one.source, "LORA", "tests/base", "f", "0", modules=modules))
    wanted = adapter_similarity(adapters)
    assert np.allclose(adapter_similarity(turned), wanted, atol=1e-6)
    assert np.allclose(adapter_similarity([*turned, *adapters])[: len(turned), len(turned) :], wanted, atol=1e-6)


def test_scale_does_not_matter_and_sign_does() -> None:
    one = adapter(0, {"layers.0.q": 3, "lm_head": 2})
    opposite = {name: LowRank(low.down, -7 * low.up) for name, low in one.modules.items()}
    found = adapter_similarity([one, Adapter("other", "LORA", "tests/base", "f", "0", modules=opposite)])
    assert np.allclose(found, [[1, -1], [-1, 1]])


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_adapters_from_disk(build, tmp_path: Path) -> None:
    base = describe_base(build(), "tests/tiny")
    targets = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if build is tiny_gpt2 else {}
    found = []
    for seed, rank in enumerate((2, 4, 8)):
        trained(build(), lora(r=rank, **targets), seed).save_pretrained(tmp_path / str(seed))
        seal(tmp_path / str(seed), base)
        found.append(read_adapter(tmp_path / str(seed), base))
    vectors = torch.stack([torch.cat([(m.up.T @ m.down).flatten() for m in one.modules.values()]) for one in found])
    wanted = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    assert np.allclose(adapter_similarity(found), wanted.numpy(), atol=1e-5)


def test_what_cannot_be_compared_is_listed(tmp_path: Path) -> None:
    base = describe_base(tiny_llama(), "tests/tiny")
    other = describe_base(tiny_llama(seed=1), "tests/other")
    found = []
    for name, config, one in (
        ("plain", lora(), base),
        ("dora", lora(use_dora=True), base),
        ("narrow", bottleneck(), base),
        ("elsewhere", lora(), other),
    ):
        trained(tiny_llama(), config).save_pretrained(tmp_path / name)
        seal(tmp_path / name, one)
        found.append(read_adapter(tmp_path / name, one))
    with pytest.raises(InputError) as caught:
        adapter_similarity(found)
    for said in ("dora: DoRA's magnitude", "narrow: its method BOTTLENECK", "elsewhere: its base tests/other"):
        assert said in str(caught.value)
    assert "plain:" not in str(caught.value)
    with pytest.raises(InputError, match="Found:\n  none"):
        adapter_similarity([])
    still = {"lm_head": LowRank(torch.ones(2, 6), torch.zeros(2, 6))}
    with pytest.raises(InputError, match="fresh"):
        adapter_similarity([adapter(0, {"lm_head": 2}), Adapter("fresh", "LORA", "tests/base", "f", "0", still)])
