"""`export_mixture`: the weighted sum of LoRA adapters as one, for bare PEFT and for servers that read its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_folders import CONFIG, SEAL, WEIGHTS, bottleneck, lora, trained
from conftest import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from adapterhub.adapter import (
    Adapter,
    BaseSignature,
    HeadTensors,
    content_hash,
    describe_base,
    export_mixture,
    mixture_rank,
    read_adapter,
    seal,
)
from adapterhub.errors import IncompatibleAdapterError, InputError

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 2]])
LLAMA = {
    "small": lora(),
    "rooted": lora(r=6, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "o_proj", "down_proj"]),
    "patterns": lora(
        r=2,
        target_modules=["v_proj", "up_proj"],
        rank_pattern={"up_proj": 5},
        alpha_pattern={r"layers\.1\.self_attn\.v_proj": 7},
    ),
    "blocks": lora(r=3, layers_to_transform=[1]),
}
GPT2 = {
    "small": lora(target_modules=["c_attn"], fan_in_fan_out=True),
    "wide": lora(r=7, target_modules=["c_attn", "c_fc", "mlp.c_proj"], fan_in_fan_out=True),
}
BERT = {
    "small": lora(target_modules=["query"], task_type="FEATURE_EXTRACTION"),
    "wide": lora(r=5, target_modules=["query", "dense"], task_type=None),
}
T5 = {
    "small": lora(target_modules=["q", "v"], task_type="FEATURE_EXTRACTION"),
    "wide": lora(r=5, target_modules=["q", "wi", "wo"], task_type="FEATURE_EXTRACTION"),
}
KINDS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, object]]] = {
    "llama": (tiny_llama, LLAMA),
    "gpt2": (tiny_gpt2, GPT2),
    "bert": (tiny_bert, BERT),
    "t5": (tiny_t5, T5),
}
# vLLM's own reading of a key, and what its loader asks of a configuration.
VLLM_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(lora_A|lora_B)\.weight")


def make(kind: str, root: Path) -> tuple[BaseSignature, dict[str, Path]]:
    build, configs = KINDS[kind]
    base = describe_base(build(), f"tests/{kind}")
    folders = {}
    for seed, (name, config) in enumerate(configs.items()):
        folder = folders[name] = root / name
        trained(build(), config, seed).save_pretrained(folder)
        seal(folder, base)
    return base, folders


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    base, folders = make(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, base, folders


def parts_of(base: BaseSignature, folders: dict[str, Path], gates: Sequence[float]) -> list[tuple[Adapter, float]]:
    return [(read_adapter(folder, base), gate) for folder, gate in zip(folders.values(), gates, strict=False)]


def says(model: PreTrainedModel) -> torch.Tensor:
    decoder = {"decoder_input_ids": TOKENS[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(TOKENS, **decoder)[0]


def summed(kind: str, folders: dict[str, Path], gates: Sequence[float]) -> torch.Tensor:
    """A base with `Σ gate · ΔW` added to its weights, ΔW being PEFT's own."""
    build = KINDS[kind][0]
    model = build()
    weights = dict(model.named_parameters())
    for folder, gate in zip(folders.values(), gates, strict=False):
        tuned = PeftModel.from_pretrained(build(), folder)
        for name, layer in tuned.base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight") and "default" in getattr(layer, "lora_A", {}):
                weights[f"{name}.weight"].data += gate * layer.get_delta_weight("default")
    return says(model)


def close(mine: torch.Tensor, other: torch.Tensor) -> None:
    assert float((mine - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("gates", [(0.6, 0.4, 1.0, 0.25), (1.5, -0.75, 0.3, -1.0)])
def test_bare_peft_gives_the_weighted_sum(world, gates: tuple[float, ...], tmp_path: Path) -> None:
    kind, base, folders = world
    parts = parts_of(base, folders, gates)
    assert export_mixture(parts, base, tmp_path / "mix") == content_hash(tmp_path / "mix")
    loaded = PeftModel.from_pretrained(KINDS[kind][0](), tmp_path / "mix").eval()
    close(says(loaded.base_model.model), summed(kind, folders, gates))


def test_each_adapter_alone_stays_what_it_is(world, tmp_path: Path) -> None:
    kind, base, folders = world
    for name, folder in folders.items():
        adapter = read_adapter(folder, base)
        export_mixture([(adapter, 1.0)], base, tmp_path / name)
        again = read_adapter(tmp_path / name, base)
        assert again.modules.keys() == adapter.modules.keys()
        for module, low in adapter.modules.items():
            other = again.modules[module]
            assert torch.equal(other.down[: low.rank], low.down)
            assert torch.equal(other.up[: low.rank], low.up)
            assert not other.down[low.rank :].any()
        loaded = PeftModel.from_pretrained(KINDS[kind][0](), tmp_path / name).eval()
        own = PeftModel.from_pretrained(KINDS[kind][0](), folder).eval()
        close(says(loaded.base_model.model), says(own.base_model.model))


def test_the_files_are_what_servers_expect(world, tmp_path: Path) -> None:
    kind, base, folders = world
    parts = parts_of(base, folders, (0.5,) * len(folders))
    export_mixture(parts, base, tmp_path / "mix")
    fields = json.loads((tmp_path / "mix" / CONFIG).read_text())
    rank = mixture_rank(parts)
    wanted = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "fan_in_fan_out": kind == "gpt2"}
    assert wanted.items() <= fields.items()
    for option in ("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"):
        assert not fields[option], option
    assert fields["base_model_name_or_path"] == f"tests/{kind}"
    linear = {name for name, module in KINDS[kind][0]().named_modules() if hasattr(module, "weight")}
    seen = set()
    for key, value in load_file(tmp_path / "mix" / WEIGHTS).items():
        found = VLLM_KEY.fullmatch(key)
        assert found is not None, key
        assert value.dtype == torch.float32
        assert value.shape[0 if "lora_A" in key else 1] == rank  # no rank_pattern is read there
        seen.add(found["module"])
    assert seen <= linear
    assert sorted(seen) == fields["target_modules"]
    assert {path.name for path in (tmp_path / "mix").iterdir()} == {CONFIG, WEIGHTS, SEAL}
    assert (tmp_path / "mix").stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / "mix").iterdir())


def test_the_rank_is_the_largest_sum_at_a_module(tmp_path: Path) -> None:
    base, folders = make("llama", tmp_path)
    parts = parts_of(base, folders, (1.0, 1.0, 1.0, 1.0))
    # q_proj: 4 + 6 and, in the second block, 3 more.
    assert mixture_rank(parts) == 13
    assert mixture_rank([(parts[0][0], 1.0), (parts[2][0], 0.0)]) == 4
    export_mixture(parts, base, tmp_path / "padded", rank=16)
    export_mixture(parts, base, tmp_path / "exact")
    padded, exact = (read_adapter(tmp_path / name, base) for name in ("padded", "exact"))
    assert (padded.rank, exact.rank) == (16, 13)
    assert all(torch.equal(padded.modules[name].up[:13], low.up) for name, low in exact.modules.items())
    with pytest.raises(InputError, match="`rank` should be at least 13"):
        export_mixture(parts, base, tmp_path / "narrow", rank=8)


def test_the_same_mixture_has_the_same_bytes(tmp_path: Path) -> None:
    base, folders = make("llama", tmp_path)
    parts = parts_of(base, folders, (0.5, 0.25, 1.0, 2.0))
    first = export_mixture(parts, base, tmp_path / "first")
    assert export_mixture(parts, base, tmp_path / "second") == first
    assert export_mixture([(a, 2 * g) for a, g in parts], base, tmp_path / "third") != first


def test_an_embedding_is_mixed_as_well(tmp_path: Path) -> None:
    base = describe_base(tiny_llama(), "tests/llama")
    config = lora(target_modules=["embed_tokens", "q_proj"])
    for name, seed in (("one", 1), ("two", 2)):
        trained(tiny_llama(), config, seed).save_pretrained(tmp_path / name, save_embedding_layers=False)
        seal(tmp_path / name, base)
    folders = {name: tmp_path / name for name in ("one", "two")}
    export_mixture(parts_of(base, folders, (0.75, -0.5)), base, tmp_path / "mix")
    model = tiny_llama()
    for name, gate in (("one", 0.75), ("two", -0.5)):
        for module, low in read_adapter(folders[name], base).modules.items():
            product = low.up.T @ low.down
            weight = model.model.get_submodule(module).weight
            weight.data += gate * (product.T if low.reads == "tokens" else product)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "mix").eval()
    close(says(loaded.base_model.model), says(model))


def test_an_lm_head_keeps_its_name(tmp_path: Path) -> None:
    base = describe_base(tiny_llama(), "tests/llama")
    trained(tiny_llama(), lora(target_modules=["lm_head", "q_proj"])).save_pretrained(
        tmp_path / "one", save_embedding_layers=False
    )
    seal(tmp_path / "one", base)
    export_mixture([(read_adapter(tmp_path / "one", base), 0.5)], base, tmp_path / "mix")
    assert "base_model.model.lm_head.lora_A.weight" in load_file(tmp_path / "mix" / WEIGHTS)


def test_what_is_no_plain_lora_is_refused_and_listed(tmp_path: Path) -> None:
    base, folders = make("llama", tmp_path)
    plain = read_adapter(folders["small"], base)
    trained(tiny_llama(), bottleneck()).save_pretrained(tmp_path / "neck")
    seal(tmp_path / "neck", base)
    low = next(iter(plain.modules.values()))
    module = next(iter(plain.modules))
    parts = [
        (read_adapter(tmp_path / "neck", base), 1.0),
        (replace(plain, source="headed", head=HeadTensors("sequence", torch.ones(2, 32))), 1.0),
        (replace(plain, source="dora", modules={module: replace(low, magnitude=torch.ones(32))}), 1.0),
        (replace(plain, source="biased", modules={module: replace(low, up_bias=torch.ones(32))}), 1.0),
        (replace(plain, source="adopted", fingerprint=""), 1.0),
        (replace(plain, source="other", base_model="tests/other"), 1.0),
        (replace(plain, source="endless"), float("inf")),
        (plain, 1.0),
    ]
    with pytest.raises(InputError) as error:
        export_mixture(parts, base, tmp_path / "mix")
    said = str(error.value)
    for fault in (
        "neck: its method BOTTLENECK",
        "headed: its head",
        f"dora: DoRA's magnitude at {module}",
        f"biased: a bias at {module}",
        "adopted: its base tests/llama, not sealed",
        "other: its base tests/other",
        "endless: its gate inf",
    ):
        assert fault in said, fault
    assert str(folders["small"]) not in said
    assert not (tmp_path / "mix").exists()


@pytest.mark.parametrize("gates", [(), (0.0, 0.0)])
def test_a_mixture_of_nothing_is_refused(gates: tuple[float, ...], tmp_path: Path) -> None:
    base, folders = make("llama", tmp_path)
    with pytest.raises(InputError, match="no adapter with a gate other than 0"):
        export_mixture(parts_of(base, folders, gates), base, tmp_path / "mix")


def test_nothing_is_overwritten_and_nothing_is_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, folders = make("llama", tmp_path)
    parts = parts_of(base, folders, (1.0, 1.0))
    there = sorted(path.name for path in tmp_path.iterdir())
    for target in (folders["small"], folders["small"] / CONFIG):
        before = content_hash(folders["small"])
        with pytest.raises(InputError, match="new folder"):
            export_mixture(parts, base, target)
        assert content_hash(folders["small"]) == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub.adapter._write.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        export_mixture(parts, base, tmp_path / "mix")
    assert sorted(path.name for path in tmp_path.iterdir()) == there


def test_a_module_that_the_base_lacks_is_told_by_its_parts(tmp_path: Path) -> None:
    base, folders = make("llama", tmp_path)
    plain = read_adapter(folders["small"], base)
    strange = replace(plain, source="strange", modules={"layers.7.q_proj": next(iter(plain.modules.values()))})
    with pytest.raises(IncompatibleAdapterError, match=r"0.5 strange(.|\n)*layers.7.q_proj"):
        export_mixture([(strange, 0.5)], base, tmp_path / "mix")
    assert not (tmp_path / "mix").exists()
