"""Task-specific normalisations beside an adapter: trained, stored, undone on the base, and each task's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_bert, tiny_llama
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from workshop import bert_base, card, llama_base, rows

from adapterhub.adapter import describe_base, read_adapter
from adapterhub.engine import Engine
from adapterhub.errors import InputError
from adapterhub.model import load_base
from adapterhub.registry import Registry
from adapterhub.route import Route
from adapterhub.training import Trainer, base_id
from adapterhub.training._adapt import adapter_config, norm_targets
from adapterhub.training.optimisers import OPTIMISERS

OPTIONS = {"rank": 4, "learning_rate": 1e-2, "max_steps": 12, "progress": False, "norms": True}
AUTO = {
    "generation": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("norms")
    llama_base(root / "_base")
    bert_base(root / "_bert")
    return root


@pytest.fixture
def registry(bases: Path, tmp_path: Path) -> Registry:
    root = tmp_path / "registry"
    root.mkdir()
    for name in ("_base", "_bert"):
        (root / name).symlink_to(bases / name, target_is_directory=True)
    return Registry(root)


def fit(registry: Registry, head: str, base: str = "_base", **options: object):
    task = card(head, base_model=base)
    trainer = Trainer(registry, **OPTIONS | options)  # type: ignore[arg-type]
    return trainer.fit({task.name: rows(head)}, {task.name: task})[task.name]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """What lies beside the adapter and its head."""
    found = load_file(folder / "adapter_model.safetensors")
    return {k: v for k, v in found.items() if not any(w in k for w in ("lora_", "bottleneck_", "score", "classifier"))}


CASES = [
    ("_base", "lora", "generation"),
    ("_base", "lora", "classification"),
    ("_base", "bottleneck", "token-classification"),
    ("_bert", "lora", "classification"),
    ("_bert", "bottleneck", "token-classification"),
]


@pytest.mark.parametrize(("base", "method", "head"), CASES)
def test_they_are_trained_and_bare_peft_answers_as_the_engine(base, method, head, registry):
    result = fit(registry, head, base, method=method)
    path = registry.root / base
    model, tokenizer = load_base(path)
    signature = describe_base(model, base_id(str(path)))
    adapter = read_adapter(result.folder, signature, sha256=result.task.sha256)
    assert adapter.norms.keys() == signature.norms.keys()
    backbone = dict(model.base_model.named_parameters())
    moved = [not torch.equal(norm.weight, backbone[f"{name}.weight"]) for name, norm in adapter.norms.items()]
    assert all(moved)
    labels = {} if head == "generation" else {"num_labels": len(result.task.labels)}
    plain = AUTO[head].from_pretrained(path, dtype=torch.float32, **labels)
    plain.config.pad_token_id = 0
    peer = PeftModel.from_pretrained(plain, result.folder).eval()
    inputs = tokenizer(["the apple is red."], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = peer(**inputs).logits[0]
    with Engine(model, model_id=base_id(str(path))) as engine:
        engine.add("task", result.folder, sha256=result.task.sha256)
        (found,) = engine.forward(inputs["input_ids"], inputs["attention_mask"], [Route.to("task")])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("base", "each"), [("_base", 1), ("_bert", 2)])
def test_they_take_one_vector_a_norm_and_two_where_it_has_a_bias(base, each, registry):
    result = fit(registry, "classification", base, max_steps=1)
    width, count = (64, 5) if base == "_base" else (32, 5)
    with safe_open(result.folder / "adapter_model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in stored(result.folder)}
    assert len(sizes) == each * count
    assert sum(sizes.values()) == each * width * count * 4
    ends = json.loads((result.folder / "adapter_config.json").read_text())["modules_to_save"]
    norms = ["LayerNorm"] if base == "_bert" else ["input_layernorm", "norm", "post_attention_layernorm"]
    assert ends == sorted([*norms, "classifier", "score"])


def test_without_them_nothing_is_stored_and_with_them_more_is_learned_a_step(registry):
    bare = fit(registry, "classification", norms=False, max_steps=20)
    both = fit(registry, "classification", max_steps=20)
    assert not stored(bare.folder)
    assert bare.train_loss != both.train_loss


def test_each_task_begins_with_the_bases_own(registry, tmp_path):
    """The second of two tasks on one model has the bytes that it has alone."""
    cards = {name: card("classification", name=name) for name in ("tests/one", "tests/two")}
    data = {name: rows("classification", 24, seed) for seed, name in enumerate(cards)}
    trainer = Trainer(registry, **OPTIONS)
    trainer.fit(data, cards, register=False, out=tmp_path / "both")
    trainer.fit({"tests/two": data["tests/two"]}, cards, register=False, out=tmp_path / "alone")
    digests = [hashlib.sha256((tmp_path / way / "tests/two" / "adapter_model.safetensors").read_bytes()).hexdigest()
               for way in ("both", "alone")]  # fmt: skip
    assert digests[0] == digests[1]


def test_norms_begin_where_those_of_another_adapter_ended_and_are_never_lost_in_silence(registry):
    first = fit(registry, "classification")
    data, options = {"tests/copy": rows("classification", 24, 3)}, OPTIONS | {"max_steps": 1, "learning_rate": 1e-9}
    cards = {"tests/copy": card("classification", name="tests/copy", labels=["red", "green", "blue", "black", "pink"])}
    begin = {"init_from": {"tests/copy": first.task.name}}
    begun = Trainer(registry, **options).fit(data, cards, **begin)["tests/copy"]  # another head, the same norms
    norms = stored(first.folder)
    assert norms
    for key, value in stored(begun.folder).items():
        torch.testing.assert_close(value, norms[key], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"layernorm\.weight should not be there"):
        Trainer(registry, **options | {"norms": False}).fit(data, cards, **begin)


def test_a_session_gives_the_base_back(registry):
    cards = {f"tests/{head}": card(head) for head in ("generation", "classification")}
    with Trainer(registry, **OPTIONS).session(cards, cards) as session:
        models = {name: model.get_base_model() for name, model in session._models.items()}
        session.train_step(rows("classification", 8), "tests/classification")
        wrapped = [m for m in models["tests/classification"].modules() if type(m).__name__ == "ModulesToSaveWrapper"]
        assert len(wrapped) == 6  # five and the head
    fresh = dict(load_base(registry.root / "_base")[0].base_model.named_parameters())
    for model in models.values():
        assert not any(type(module).__name__ == "ModulesToSaveWrapper" for module in model.modules())
        for name, weight in model.base_model.named_parameters():
            assert torch.equal(weight, fresh[name]), name


def test_a_run_with_them_resumes_with_the_same_bytes(registry, tmp_path, monkeypatch):
    import adapterhub.training._loop as loop

    options = {"max_steps": 8, "evaluate_every": 4}
    whole = fit(registry, "classification", **options)
    steps = loop.Loop._step
    count = 0

    def stopped(self, *args):
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return steps(self, *args)

    monkeypatch.setattr(loop.Loop, "_step", stopped)
    kept = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(KeyboardInterrupt):
        fit(registry, "classification", **options, **kept)
    monkeypatch.undo()
    resumed = fit(registry, "classification", **options, **kept, resume=True)
    first, second = ((r.folder / "adapter_model.safetensors").read_bytes() for r in (whole, resumed))
    assert first == second
    with pytest.raises(InputError, match="norms: True then, False now"):
        fit(registry, "classification", **options, **kept, resume=True, norms=False)


def test_a_groups_adapter_has_none_and_its_tasks_have_their_own(registry, tmp_path):
    heads = ("classification", "generation")
    cards = {f"tests/{head}": card(head) for head in heads}
    data = {name: rows(name.partition("/")[2], 24) for name in cards}
    found = Trainer(registry, **OPTIONS).fit(data, cards, group="tests")
    assert not stored(found["tests"].folder)
    norms = [stored(found[name].folder) for name in cards]
    assert all(len(each) == 5 for each in norms)
    assert all(not torch.equal(norms[0][key], norms[1][key]) for key in norms[0])
    # PEFT: the group's adapter merged into the base, the task's on top.
    path = registry.root / "_base"
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    PeftModel.from_pretrained(plain, found["tests"].folder).merge_and_unload().save_pretrained(tmp_path / "merged")
    for head in heads:
        name = f"tests/{head}"
        labels = {} if head == "generation" else {"num_labels": len(found[name].task.labels)}
        over = AUTO[head].from_pretrained(tmp_path / "merged", dtype=torch.float32, **labels)
        over.config.pad_token_id = 0
        ids = AutoTokenizer.from_pretrained(path)("7: the stone is blue.", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = PeftModel.from_pretrained(over, found[name].folder).eval()(ids).logits[0]
        model, _ = load_base(path)
        with Engine(model, model_id="tests/tiny-llama") as engine:
            engine.add("task", found[name].folder)
            engine.add("group", found["tests"].folder)
            (mine,) = engine.forward(ids, torch.ones_like(ids), [Route(("task", "group"), (1.0, 1.0))])
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_trained_on_top_of_norms(registry):
    lower = card("generation", name="tests")
    Trainer(registry, **OPTIONS).fit({"tests": rows("generation", 12)}, {"tests": lower})
    child = card("classification", stack=["tests"])
    with pytest.raises(InputError, match=r"leaves the normalisations to them\. Found tests, which stores its own"):
        Trainer(registry, **OPTIONS).fit({child.name: rows("classification", 12)}, {child.name: child})


class Headed(nn.Module):
    """A head with a normalisation of its own, as ModernBERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)


def test_ends_are_as_long_as_tells_them_from_other_modules() -> None:
    llama, bert = tiny_llama(), tiny_bert()
    assert norm_targets(llama, describe_base(llama).norms) == ["input_layernorm", "norm", "post_attention_layernorm"]
    assert norm_targets(bert, describe_base(bert).norms) == ["LayerNorm"]
    norms = list(describe_base(llama).norms)
    llama.add_module("head", Headed())
    assert norm_targets(llama, norms) == ["input_layernorm", "model.norm", "post_attention_layernorm"]
    with pytest.raises(InputError, match="LlamaForCausalLM has no normalisations to train"):
        adapter_config(llama, "generation", method="lora", rank=2, alpha=None, targets=None, norms=[])


def test_a_switch_is_true_or_false(registry):
    with pytest.raises(InputError, match=r"`norms` should be True or False\. Found 'yes'"):
        Trainer(registry, norms="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"optimiser": name} for name in OPTIMISERS]
    + [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}, {"micro_batch_size": 4}, {"patience": 1}],
    ids=str,
)
def test_they_train_with_every_option(registry, options):
    result = fit(registry, "classification", **{"max_steps": 3} | options)
    backbone = dict(load_base(registry.root / "_base")[0].named_parameters())
    for key, value in stored(result.folder).items():
        assert not torch.equal(value, backbone[key.removeprefix("base_model.model.")]), key
