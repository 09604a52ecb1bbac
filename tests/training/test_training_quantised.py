"""Training on a quantised base: the adapters in floating point learn, the base stays, the seal is to the plain base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rounded_linear import Int8Linear, RoundingConfig, imported, int8_config
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from workshop import card, llama_base, registry_on, rows

from adapterhub.adapter import describe_base, read_adapter, sealed_stack
from adapterhub.errors import InputError, MissingExtraError
from adapterhub.model import RoutedModel, load_base
from adapterhub.registry import Registry
from adapterhub.route import Route
from adapterhub.training import Trainer
from adapterhub.training._adapt import adapted, adapter_config
from adapterhub.training._base import Bases

OPTIONS = {"rank": 4, "learning_rate": 1e-2, "max_steps": 30, "progress": False}


def with_8_bit():
    imported("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def with_4_bit():
    imported("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True)


KINDS = {
    "rounding": RoundingConfig,
    "torchao": lambda: TorchAoConfig(int8_config()),
    "bitsandbytes-8": with_8_bit,
    "bitsandbytes-4": with_4_bit,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_base(tmp_path_factory.mktemp("quantised") / "_base")


@pytest.fixture
def registry(base: Path, tmp_path: Path) -> Registry:
    return registry_on(base, tmp_path / "registry")


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest, base: Path):
    """A configuration, or a skip where its package is missing or its kernels do not run on this machine."""
    found = KINDS[request.param]()
    try:
        trial = AutoModelForCausalLM.from_pretrained(base, quantization_config=found, dtype=torch.float32).eval()
        with torch.no_grad():
            trial(input_ids=torch.tensor([[2, 3]]))
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"{request.param} cannot run here: {str(error).splitlines()[0]}")
    return KINDS[request.param]()


def plain(base: Path):
    """The base in floating point, and its signature."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return model, describe_base(model, "tests/tiny-llama")


def fit(registry: Registry, head: str, quantisation, **options):
    task = card(head)
    trainer = Trainer(registry, **OPTIONS | options, quantization_config=quantisation)
    return trainer.fit({task.name: rows(head)}, {task.name: task})[task.name]


def frozen(model) -> dict[str, torch.Tensor]:
    """Every number of the base, whichever way it is stored."""
    found = {}
    for name, value in model.named_parameters():
        if not value.requires_grad:
            parts = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else []
            found |= {f"{name}.{part}": getattr(value, part).detach().clone() for part in parts} or {
                name: value.detach().clone()
            }
    return found


class Fixed:
    """Everything goes to one task."""

    def __init__(self, name: str) -> None:
        self.name = name

    def route(self, texts: list[str], k: int = 1) -> list[Route]:
        return [Route.to(self.name)] * len(texts)


@pytest.mark.parametrize("head", ["classification", "generation"])
def test_it_learns_and_its_adapter_fits_the_plain_base(config, head, registry, base):
    result = fit(registry, head, config, max_steps=60)
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    model, signature = plain(base)
    adapter = read_adapter(result.folder, signature, sha256=result.task.sha256)
    assert adapter.fingerprint == signature.fingerprint
    assert not signature.quantised
    assert set(adapter.modules) == set(signature.modules) - {"lm_head"}
    tensors = load_file(result.folder / "adapter_model.safetensors").values()
    assert all(value.dtype == torch.float32 for value in tensors)
    if head == "generation":
        tuned = PeftModel.from_pretrained(model, result.folder).eval()  # bare PEFT, in floating point
        assert torch.isfinite(tuned(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_what_was_measured_is_what_a_quantised_base_serves(config, registry, base):
    held = rows("classification", 40, seed=5)
    result = fit(registry, "classification", config, validation=held, max_steps=60)
    routed = RoutedModel.from_pretrained(base, registry, router=Fixed(result.task.name), quantization_config=config)
    found = routed.predictions([str(row["input"]) for row in held])
    right = sum(answer.predictions[0] == row["label"] for answer, row in zip(found, held, strict=True))
    assert right / len(held) == pytest.approx(result.metric)
    assert result.metric > 0.5


def test_only_the_adapter_and_the_head_have_gradients_and_the_base_stays(config, registry):
    name = "tests/classification"
    trainer = Trainer(registry, **OPTIONS, quantization_config=config)
    with trainer.session([name], {name: card("classification")}) as session:
        model = session._models[name]
        trained = [n for n, weight in model.named_parameters() if weight.requires_grad]
        assert trained
        assert all("lora_" in n or ".score.modules_to_save." in n for n in trained)
        assert all(weight.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)
        before = frozen(model)
        losses = [session.train_step(rows("classification", 16), name) for _ in range(8)]
        assert losses[-1] < losses[0]
        after = frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not value.is_floating_point() for value in before.values())


def gradients(model) -> dict[str, torch.Tensor]:
    """Of LoRA's factors, after a pass without gradients as a validation takes it."""
    shape = {"method": "lora", "rank": 4, "alpha": None, "targets": None}
    ids = torch.tensor([[5, 9, 20, 31, 7, 40]])
    with adapted(model, adapter_config(model, "generation", **shape)) as tuned:
        tuned.eval()
        weights = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in weights.values():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
            tuned(input_ids=ids)
        loss = tuned(input_ids=ids).logits.square().mean()
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def test_gradients_pass_through_the_quantised_modules(config, base):
    """They are those of a base in floating point that has the same rounded numbers."""
    quantised, twin = (Bases(way).load(str(base), "generation", 0, 0) for way in (config, None))
    for name, module in list(quantised.base_model.named_modules()):
        if isinstance(module, nn.Linear):
            with torch.no_grad():  # a wide batch: 8-bit kernels round what they read row by row
                twin.base_model.get_submodule(name).weight.copy_(module(torch.eye(module.in_features)).T)
    found, wanted = gradients(quantised), gradients(twin)
    for name, value in wanted.items():
        assert value.norm() > 0
        assert (found[name] - value).norm() < 0.05 * value.norm(), name


def test_an_engine_on_the_same_base_answers_alike(config, registry, base):
    from adapterhub.engine import Engine
    from adapterhub.training import describe_float

    result = fit(registry, "generation", config, max_steps=4)
    routed = RoutedModel.from_pretrained(base, registry, router=Fixed(result.task.name), quantization_config=config)
    model, _ = load_base(base, quantization_config=config)
    signature = describe_float(str(base), type(model), "tests/tiny-llama")
    assert signature == plain(base)[1]
    ids = torch.tensor([[5, 9, 20, 31]])
    mask = torch.ones_like(ids)
    with Engine(model, base=signature) as engine:
        engine.add("task", result.folder)
        (expected,) = engine.forward(ids, mask, [Route.to("task")])
        (bare,) = engine.forward(ids, mask, [Route()])
    placed = routed._placement.place(Route.to(result.task.name))
    (found,) = routed.engine.forward(ids, mask, [placed])
    assert torch.equal(found, expected)
    assert not torch.allclose(expected, bare, atol=1e-3)
    with torch.no_grad():
        assert not torch.allclose(bare, plain(base)[0](ids).logits[0], atol=1e-5)  # it is quantised


# What follows asks nothing of a quantiser's kernels


def test_heads_of_one_base_share_its_quantised_modules(base):
    bases = Bases(RoundingConfig())
    models = [bases.load(str(base), head, labels, 0, owner) for head, labels, owner in
              [("generation", 0, ""), ("classification", 4, ""), ("classification", 4, "other")]]  # fmt: skip
    linears = [[m for m in model.base_model.modules() if isinstance(m, Int8Linear)] for model in models]
    assert len(linears[0]) == 14
    for other in linears[1:]:
        assert all(one is two for one, two in zip(linears[0], other, strict=True))
    tables = {model.get_input_embeddings().weight.data_ptr() for model in models}
    assert len(tables) == 1
    heads = [models[0].lm_head, models[1].score, models[2].score]
    assert all(type(head) is torch.nn.Linear and head.weight.dtype == torch.float32 for head in heads)
    assert all(bases.signature(str(base), model) == plain(base)[1] for model in models[:1])


def test_two_tasks_at_once_on_shared_modules_do_not_disturb_each_other(registry, tmp_path):
    names = ("tests/classification", "tests/token-classification")
    cards = {name: card(name.partition("/")[2]) for name in names}
    found = {}
    for opened in (names, names[1:]):
        trainer = Trainer(registry, **OPTIONS | {"max_steps": None}, quantization_config=RoundingConfig())
        with trainer.session(opened, cards) as session:
            for step in range(3):
                for name in opened:
                    session.train_step(rows(name.partition("/")[2], 8, seed=step), name)
            session.deliver(register=False, out=tmp_path / str(len(opened)))
        found[len(opened)] = load_file(tmp_path / str(len(opened)) / names[1] / "adapter_model.safetensors")
    assert all(torch.equal(found[1][key], found[2][key]) for key in found[1])


def test_a_group_and_its_tasks_fit_the_plain_base(registry, base):
    heads = ("classification", "generation")
    cards = {f"tests/{head}": card(head) for head in heads}
    data = {name: rows(name.partition("/")[2], 24) for name in cards}
    trainer = Trainer(registry, **OPTIONS | {"max_steps": 4}, quantization_config=RoundingConfig())
    found = trainer.fit(data, cards, group="tests")
    signature = plain(base)[1]
    for name, result in found.items():
        assert read_adapter(result.folder, signature, sha256=result.task.sha256).fingerprint == signature.fingerprint
        assert sealed_stack(result.folder) == ({} if name == "tests" else {"tests": found["tests"].task.sha256})
    assert registry.verify() == []


def test_a_run_resumes_on_the_base_that_it_began_on(registry, tmp_path):
    kept = {"checkpoints": tmp_path / "checkpoints", "max_steps": 4}
    fit(registry, "classification", RoundingConfig(), **kept)
    again = fit(registry, "classification", RoundingConfig(), **kept, resume=True)
    assert again.steps == 4
    with pytest.raises(InputError, match=r"quantisation: .*rounding.* then, None now"):
        fit(registry, "classification", None, **kept, resume=True)


def test_what_cannot_be_quantised_is_told(registry, base, tmp_path):
    for said, error, message in [
        ("needs `pip install other`", InputError, "needs the package that quantises it. Found none: needs `pip inst"),
        ("needs torchao", MissingExtraError, r"A base quantised by torchao needs .*adapterhub\[quantised\]"),
    ]:
        with pytest.raises(error, match=message):
            fit(registry, "generation", RoundingConfig(missing=said))
        with pytest.raises(error, match=message):
            RoutedModel.from_pretrained(base, registry, quantization_config=RoundingConfig(missing=said))
    with pytest.raises(InputError, match=r"one of transformers' configurations, .* Found 'int8'"):
        Trainer(registry, quantization_config="int8")
    with pytest.raises(InputError, match=r"A head is trained in floating point\. Found `score` quantised"):
        fit(registry, "classification", RoundingConfig(skip=()))
    assert "tests/generation" not in registry


def test_a_missing_bitsandbytes_is_told(registry, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_bitsandbytes_available", lambda **_: False)
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda **_: False)
    with pytest.raises(InputError, match=r"needs the package that quantises it\. Found none: .*bitsandbytes"):
        fit(registry, "generation", BitsAndBytesConfig(load_in_8bit=True))


OPTIONAL = [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}, {"norms": True}, {"method": "bottleneck"}]


@pytest.mark.parametrize("options", OPTIONAL, ids=str)
def test_it_trains_with_every_option(registry, base, options):
    result = fit(registry, "classification", RoundingConfig(), **{"max_steps": 3} | options)
    adapter = read_adapter(result.folder, plain(base)[1])
    assert (len(adapter.norms) == 5) == ("norms" in options)
