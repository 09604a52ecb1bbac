"""`convert`, `mix` and `merge`: adapters made into plain LoRA folders, and into a plain model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_world import Command, fails, files
from model_hub import BASE_ID, random_adapter
from peft import LoHaConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub.adapter import content_hash, describe_base, read_adapter
from adapterhub.model import load_base
from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)

TOKENS = torch.tensor([[5, 7, 4, 3, 8, 2]])


@pytest.fixture
def two(shop: Path, tmp_path: Path) -> Path:
    """A registry with two generating tasks on one base."""
    tasks = Registry(shop)
    folder = random_adapter(shop / "_base", "words/colour", tmp_path / "second", 17)
    tasks.add(replace(tasks["words/colour"], name="words/shape", adapter=None, sha256=None), folder)
    return shop


@pytest.fixture
def loha(world: Path, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    tuned = get_peft_model(load_base(world / "_base")[0], LoHaConfig(r=2, target_modules=["q_proj"]))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(tmp_path / "loha")
    return tmp_path / "loha"


def test_a_mixture_is_the_sum_in_bare_peft(cli: Command, two: Path, tmp_path: Path) -> None:
    done = cli("mix", "words/colour=0.75", "words/shape=-0.5", "--out", "mixed", "-r", two)
    assert (done.code, done.out) == (0, "mixed\n"), done
    assert "vllm serve" in done.err
    assert "--max-lora-rank 8 " in done.err
    model = summed(two, {str(two / "words/colour/v1"): 0.75, str(two / "words/shape/v1"): -0.5})
    loaded = PeftModel.from_pretrained(load_base(two / "_base")[0], tmp_path / "mixed").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, model(TOKENS).logits, atol=1e-5)


@pytest.fixture
def standing(two: Path, tmp_path: Path) -> Path:
    """`words/shape` stands on the group's adapter, which has a newer version by now."""
    tasks = Registry(two)
    card = replace(tasks["words/colour"], name="words", adapter=None, sha256=None)
    group = tasks.add(card, random_adapter(two / "_base", "words/colour", tmp_path / "group", 23))
    child = random_adapter(two / "_base", "words/colour", tmp_path / "child", 29)
    seal = json.loads((child / "adapterhub.json").read_text())
    seal |= {"format": 2, "stack": [{"task": "words", "sha256": group.sha256}]}
    (child / "adapterhub.json").write_text(json.dumps(seal))
    tasks.add(replace(card, name="words/shape", stack=("words",)), child, replace=True)
    tasks.add(card, random_adapter(two / "_base", "words/colour", tmp_path / "newer", 31), replace=True)
    return two


def summed(place: Path, parts: dict[str, float]) -> torch.nn.Module:
    """The base with a sum of PEFT folders in its weights, by the plain formula."""
    model = load_base(place / "_base")[0]
    signature = describe_base(model, BASE_ID)
    for folder, gate in parts.items():
        for module, low in read_adapter(Path(folder), signature).modules.items():
            model.base_model.get_submodule(module).weight.data += gate * low.up.T @ low.down
    return model


def test_a_mixture_has_what_its_tasks_stand_on(cli: Command, standing: Path, tmp_path: Path) -> None:
    done = cli("mix", "words/shape=0.5", "words/colour=0.25", "--out", "mixed", "-r", standing)
    assert done.code == 0, done
    parts = {"words/v1": 0.5, "words/shape/v2": 0.5, "words/colour/v1": 0.25}
    model = summed(standing, {str(standing / folder): gate for folder, gate in parts.items()})
    loaded = PeftModel.from_pretrained(load_base(standing / "_base")[0], tmp_path / "mixed").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, model(TOKENS).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("words/colour",), {"words/colour/v1": 1.0}),
        (("words/shape",), {"words/v1": 1.0, "words/shape/v2": 1.0}),
        (("words/shape=0.5", "words/colour=0.25"), {"words/v1": 0.5, "words/shape/v2": 0.5, "words/colour/v1": 0.25}),
    ],
)
def test_a_merged_model_is_a_plain_one(
    cli: Command, standing: Path, tmp_path: Path, parts: tuple[str, ...], expected: dict[str, float]
) -> None:
    done = cli("merge", *parts, "--out", "made/plain", "-r", standing)
    assert (done.code, done.out) == (0, "made/plain\n"), done
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made/plain", dtype=torch.float32).eval()
    model = summed(standing, {str(standing / folder): gate for folder, gate in expected.items()})
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, model(TOKENS).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "made/plain")("one two")["input_ids"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["plain"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("words/colour", "words/mood"), "Found words/mood: classification. Leave them out."),
        (("words/color",), "Did you mean `words/colour`?"),
        (("words/bare",), "Found none for words/bare"),
        (("words/colour=x",), "Found words/colour=x"),
    ],
)
def test_what_is_not_merged(cli: Command, two: Path, tmp_path: Path, parts: tuple[str, ...], said: str) -> None:
    tasks = Registry(two)
    tasks.add(replace(tasks["words/colour"], name="words/bare", adapter=None, sha256=None))
    fails(cli("merge", *parts, "--out", "plain", "-r", two), said)
    assert not list(tmp_path.glob("*plain*"))
    (tmp_path / "plain").mkdir()
    fails(cli("merge", "words/colour", "--out", "plain", "-r", two), "new folder")


def test_a_mixture_in_json(cli: Command, two: Path, tmp_path: Path) -> None:
    done = cli("mix", "words/colour=1", "words/shape=2.5", "-o", "mixed", "--rank", "16", "-r", two, "--json")
    assert done.code == 0, done
    assert json.loads(done.out) == {
        "folder": "mixed",
        "sha256": content_hash(tmp_path / "mixed"),
        "base": str(two / "_base"),
        "rank": 16,
        "adapters": [{"name": "words/colour", "gate": 1.0}, {"name": "words/shape", "gate": 2.5}],
    }


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("words/colour", "words/shape=x", "=1"), "Found words/colour, words/shape=x, =1."),
        (("words/colour=1", "words/colour=2"), "names an adapter once"),
        (("words/color=1",), "Did you mean `words/colour`?"),
        (("words/colour=nan",), "finite"),
        (("words/colour=0",), "no adapter with a gate other than 0"),
        (("words/colour=1", "words/mood=1"), "its head"),
        (("words/bare=1",), "Found none for words/bare"),
    ],
)
def test_what_is_no_mixture(cli: Command, two: Path, tmp_path: Path, parts: tuple[str, ...], said: str) -> None:
    tasks = Registry(two)
    tasks.add(replace(tasks["words/colour"], name="words/bare", adapter=None, sha256=None))
    before = files(two)
    fails(cli("mix", *parts, "--out", "mixed", "-r", two), said)
    assert not (tmp_path / "mixed").exists()
    assert files(two) == before


def test_a_mixture_overwrites_nothing(cli: Command, two: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    fails(cli("mix", "words/colour=1", "--out", "mixed", "-r", two), "new folder")
    assert not list((tmp_path / "mixed").iterdir())


def test_a_converted_adapter_is_registered(cli: Command, shop: Path, loha: Path, tmp_path: Path) -> None:
    done = cli("convert", loha, "plain", "--base", shop / "_base", "--rank", "4")
    assert (done.code, done.out) == (0, "plain\n"), done
    assert "LOHA as LoRA of rank 4: 0.00% of ΔW is lost" in done.err
    assert "Next: adapterhub add" in done.err
    card = tmp_path / "task.yaml"
    card.write_text("description: A task.\nexamples: [one]\nprompt: '{text}'\n")
    done = cli("add", card, "--name", "words/plain", "-a", "plain", "-r", shop)
    assert done.code == 0, done
    assert Registry(shop).verify() == []


def test_a_conversion_in_json_says_what_was_lost(cli: Command, world: Path, loha: Path, tmp_path: Path) -> None:
    found = {}
    for name, option in (("one", ("--rank", "1")), ("half", ("--energy", "0.5")), ("all", ("--energy", "1.0"))):
        done = cli("convert", loha, name, "--base", world / "_base", *option, "--json")
        assert done.code == 0, done
        found[name] = json.loads(done.out)
        assert found[name]["sha256"] == content_hash(tmp_path / name)
        assert found[name].keys() == {"folder", "sha256", "method", "rank", "error"}
    assert found["one"]["rank"] == 1
    assert found["one"]["error"] > 0.1
    assert found["half"]["error"] <= 0.5**0.5
    assert found["all"]["error"] < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "Found neither"), (("--rank", "2", "--energy", "0.5"), "Found both"), (("--rank", "0"), "Found 0.")],
)
def test_a_conversion_needs_one_measure(
    cli: Command, world: Path, loha: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    fails(cli("convert", loha, "plain", "--base", world / "_base", *options), said)
    assert not (tmp_path / "plain").exists()


def test_a_lora_adapter_is_not_converted(cli: Command, two: Path, tmp_path: Path) -> None:
    said = "a LoRA adapter needs no conversion"
    fails(cli("convert", tmp_path / "second", "plain", "--base", two / "_base", "--rank", "4"), said)
