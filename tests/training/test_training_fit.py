"""From rows to a registered adapter: it learns, it is honest, it can be interrupted, and it changes nothing else."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from workshop import COLOURS, bert_base, card, llama_base, rows

import adapterhub.training._unit as unit
from adapterhub.adapter import describe_base, read_adapter
from adapterhub.errors import AdapterHubError, DataError, InputError, IntegrityError, TaskNotFoundError
from adapterhub.registry import Registry
from adapterhub.training import DivergedError, Trainer, base_id, linear_targets
from adapterhub.training._base import Bases

OPTIONS = {"rank": 8, "learning_rate": 1e-2, "max_steps": 60, "progress": False}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A registry's folder with a decoder in `_base` and an encoder in `_bert`, copied by no test."""
    root = tmp_path_factory.mktemp("bases")
    llama_base(root / "_base")
    bert_base(root / "_bert")
    return root


@pytest.fixture
def registry(bases, tmp_path):
    root = tmp_path / "registry"
    root.mkdir()
    for name in ("_base", "_bert"):
        (root / name).symlink_to(bases / name, target_is_directory=True)
    return Registry(root)


def hashes(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".catalog" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def fit(registry, head, data=None, base="_base", **options):
    task = card(head, base_model=base)
    trainer = Trainer(registry, **OPTIONS | options)
    return trainer.fit({task.name: rows(head) if data is None else data}, {task.name: task})[task.name]


CASES = [
    ("_base", "lora", "generation", {"max_steps": 120}),
    ("_base", "lora", "classification", {}),
    ("_base", "lora", "token-classification", {}),
    ("_base", "lora", "regression", {"max_steps": 100}),
    ("_base", "bottleneck", "generation", {"max_steps": 400, "learning_rate": 2e-2, "rank": 16}),
    ("_base", "bottleneck", "token-classification", {}),
    ("_bert", "lora", "classification", {}),
    ("_bert", "lora", "token-classification", {}),
    ("_bert", "bottleneck", "token-classification", {}),
]


@pytest.mark.parametrize(("base", "method", "head", "options"), CASES)
def test_an_easy_rule_is_learned_measured_and_registered(base, method, head, options, registry):
    result = fit(registry, head, base=base, method=method, **options)
    first, last = result.history[0], result.history[-1]
    assert last.train_loss < 0.7 * first.train_loss
    assert result.train_loss == last.train_loss
    assert result.validation_loss == min(entry.validation_loss for entry in result.history) or head != "generation"
    if head == "regression":
        assert result.metric < 1.0
    else:
        assert result.metric > 0.9
    assert (
        result.metric_name
        == {
            "generation": "validation_exact_match",
            "classification": "validation_accuracy",
            "token-classification": "validation_token_accuracy",
            "regression": "validation_mae",
        }[head]
    )
    assert (result.rows, result.validation_rows) == (108, 12)
    assert (result.truncated, result.duplicates) == (0, 0)
    stored = registry[f"tests/{head}"]
    assert stored == result.task
    assert stored.metrics == {result.metric_name: result.metric}
    assert registry.adapter_path(stored.name) == result.folder
    assert registry.verify() == []


@pytest.mark.parametrize("base", ["_base", "_bert"])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_the_folder_is_read_strictly_and_its_configuration_is_portable(base, method, registry):
    result = fit(registry, "classification", base=base, method=method, max_steps=2)
    signature = describe_base(
        Bases().load(str(registry.root / base), "classification", 4, 0), base_id(str(registry.root / base))
    )
    adapter = read_adapter(result.folder, signature, sha256=result.task.sha256)
    assert adapter.head is not None
    assert adapter.head.weight.shape[0] == len(COLOURS)
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == signature.model_id
    assert config["inference_mode"] is True
    assert str(registry.root) not in json.dumps(config)
    targets = config["target_modules"]
    assert targets == sorted(targets) if isinstance(targets, list) else ".." not in targets
    assert not any("layers" in name for name in targets)


AUTO = {
    "generation": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


@pytest.mark.parametrize(
    ("base", "head"),
    [("_base", "generation"), ("_base", "classification"), ("_base", "regression"), ("_bert", "token-classification")],
)
def test_bare_peft_gives_the_loss_that_was_reported(base, head, registry):
    data = rows(head, 20, seed=9)
    result = fit(registry, head, base=base, validation=data, max_steps=25)
    labels = {"generation": {}, "regression": {"num_labels": 1}}.get(head, {"num_labels": len(result.task.labels)})
    path = registry.root / base
    tokenizer = AutoTokenizer.from_pretrained(path)
    plain = AUTO[head].from_pretrained(path, dtype=torch.float32, **labels)
    model = PeftModel.from_pretrained(plain, result.folder).eval()
    total, count = 0.0, 0
    for row in data:  # one by one, without padding
        text = result.task.format(str(row.get("input", " ".join(row.get("tokens", [])))))
        ids = tokenizer(text)["input_ids"]
        if head == "generation":
            answer = [*tokenizer(f" {row['output']}")["input_ids"], tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
            target = torch.tensor(answer)
        else:
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        if head == "classification":
            logits, target = logits[None], torch.tensor([COLOURS.index(row["label"])])
        if head == "token-classification":
            logits, target = logits[1:-1], torch.tensor([int(tag != "O") for tag in row["tags"]])
        if head == "regression":
            loss, size = (logits[0] - row["value"]) ** 2, 1
        else:
            loss, size = torch.nn.functional.cross_entropy(logits, target, reduction="sum"), len(target)
        total, count = total + loss.item(), count + size
    assert result.validation_loss == pytest.approx(total / count, rel=1e-4)


def test_training_one_task_leaves_everything_else_as_it_was(registry):
    fit(registry, "classification", max_steps=5)
    before = hashes(registry.root)
    fit(registry, "generation", max_steps=5)
    after = hashes(registry.root)
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[1] for path in after.keys() - before.keys()} == {"generation"}


def test_a_fit_of_several_tasks_shares_a_base_that_stays_as_it_is(registry, monkeypatch):
    loaded = []
    original = Bases.load

    def load(self, *args):
        model = original(self, *args)
        loaded.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    monkeypatch.setattr(Bases, "load", load)
    tasks = {
        t.name: t for t in [card("generation"), card("classification"), card("classification", name="tests/again")]
    }
    tasks["tests/spans"] = card("token-classification", name="tests/spans")
    data = {name: rows(task.head, 30) for name, task in tasks.items()}
    trainer = Trainer(registry, **OPTIONS | {"max_steps": 6})
    together = trainer.fit(data, tasks)
    for model, state in loaded:
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len({model.base_model.embed_tokens.weight.data_ptr() for model, _ in loaded}) == 1
    for name, task in tasks.items():  # a task's result does not depend on its company
        alone = Trainer(registry, **OPTIONS | {"max_steps": 6}).fit({name: data[name]}, {name: task})[name]
        assert alone.task.sha256 == together[name].task.sha256
    assert together["tests/again"].task.sha256 == together["tests/classification"].task.sha256


def test_the_seed_decides(registry):
    runs = [fit(registry, "classification", max_steps=5, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].task.sha256 == runs[1].task.sha256 != runs[2].task.sha256


def test_bfloat16_learns_too_and_stores_float32(registry):
    result = fit(registry, "classification", mixed_precision="bf16")
    assert result.metric > 0.9
    assert {tensor.dtype for tensor in load_file(result.folder / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    assert fit(registry, "classification", max_steps=2, mixed_precision="no").steps == 2


def interrupt_at(monkeypatch, step):
    """The power fails in that step of the next run."""
    original, calls = unit.batch_loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) == step:
            monkeypatch.setattr(unit, "batch_loss", original)
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(unit, "batch_loss", failing)


@pytest.mark.parametrize("head", ["generation", "classification"])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_resumed_run_ends_with_the_same_bytes(head, decay, registry, tmp_path, monkeypatch):
    options = {"max_steps": 24, "evaluate_every": 5, "decay": decay}
    whole = fit(registry, head, **options)
    interrupt_at(monkeypatch, 18)
    with pytest.raises(KeyboardInterrupt):
        fit(registry, head, checkpoints=tmp_path / "c", **options)
    resumed = fit(registry, head, checkpoints=tmp_path / "c", resume=True, **options)
    assert resumed.task.sha256 == whole.task.sha256
    assert resumed.history == whole.history
    assert resumed.steps == 24
    monkeypatch.setattr(unit, "batch_loss", None)  # a finished run takes no step more
    again = fit(registry, head, checkpoints=tmp_path / "c", resume=True, **options)
    assert again.task.sha256 == whole.task.sha256


def test_a_checkpoint_of_another_run_is_refused(registry, tmp_path):
    fit(registry, "classification", max_steps=4, checkpoints=tmp_path)
    with pytest.raises(InputError, match=r"learning_rate: 0.01 then, 0.02 now") as error:
        fit(registry, "classification", max_steps=4, checkpoints=tmp_path, resume=True, learning_rate=2e-2, rank=4)
    assert "rank: 8 then, 4 now" in str(error.value)
    with pytest.raises(InputError, match="data: "):
        fit(registry, "classification", rows("classification", 99), max_steps=4, checkpoints=tmp_path, resume=True)
    fit(registry, "classification", max_steps=4, checkpoints=tmp_path, learning_rate=2e-2)


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:5], lambda b: b""])
def test_a_damaged_checkpoint_is_named(damage, registry, tmp_path):
    fit(registry, "classification", max_steps=2, checkpoints=tmp_path)
    path = tmp_path / "tests" / "classification" / "checkpoint.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match="not a whole checkpoint"):
        fit(registry, "classification", max_steps=2, checkpoints=tmp_path, resume=True)


def test_early_stopping_keeps_the_best(registry):
    noise = [row | {"label": COLOURS[number % 4]} for number, row in enumerate(rows("classification", 60))]
    result = fit(registry, "classification", noise, max_steps=400, evaluate_every=10, patience=3, validation=0.3)
    assert result.stopped
    assert result.steps < 400
    assert result.steps == result.history[-1].step == 10 * len(result.history)
    best = min(range(len(result.history)), key=lambda n: (-result.history[n].metric, result.history[n].validation_loss))
    assert best == len(result.history) - 4
    assert result.metric == result.history[best].metric
    assert result.validation_loss == pytest.approx(result.history[best].validation_loss)


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(registry, tmp_path):
    task = card("classification")
    with pytest.raises(DivergedError, match=r"Found loss nan in the batch of tests/classification row \d+") as error:
        fit(registry, "classification", checkpoints=tmp_path, learning_rate=1e30, evaluate_every=1, warmup=0)
    assert "Lower the learning rate" in str(error.value)
    assert isinstance(error.value, AdapterHubError)
    assert task.name not in registry
    weights = load_file(tmp_path / "tests" / "classification" / "checkpoint.safetensors")
    assert all(value.isfinite().all() for name, value in weights.items() if name.startswith(("weights.", "best.")))


def test_training_texts_that_are_validation_texts_are_left_out_and_counted(registry, capsys):
    data = rows("classification", 40)
    leaked = [row | {"input": f" {row['input']} "} for row in data[:7]]
    result = fit(registry, "classification", data, validation=leaked, max_steps=2, progress=True)
    assert (result.rows, result.validation_rows, result.duplicates) == (33, 7, 7)
    said = " ".join(capsys.readouterr().err.split())
    assert "33 training rows; 7 validation rows; 7 training rows left out" in said


def test_texts_that_lost_their_beginning_are_counted_and_said(registry, capsys):
    data = [row | {"input": "The horse is here. " * 9 + row["input"]} for row in rows("classification", 10)]
    result = fit(registry, "classification", data, max_steps=1, max_length=20, progress=True)
    assert result.truncated == 10
    captured = capsys.readouterr()
    assert "10 texts lost their beginning to fit 20 tokens" in " ".join(captured.err.split())
    assert "tests/classification" in captured.err
    assert captured.out == ""


def test_no_progress_says_nothing(registry, capsys):
    fit(registry, "classification", max_steps=1)
    assert capsys.readouterr() == ("", "")


def test_without_validation_nothing_is_measured(registry):
    result = fit(registry, "classification", max_steps=3, validation=0)
    assert (result.metric, result.metric_name, result.validation_loss) == (None, "", None)
    assert result.task.metrics == {}
    assert result.rows == 120


def test_validation_rows_are_capped_and_the_rest_is_trained_on(registry):
    result = fit(registry, "classification", max_steps=1, validation=0.5, validation_rows=10)
    assert (result.rows, result.validation_rows) == (110, 10)
    result = fit(registry, "classification", max_steps=1, validation=rows("classification", 30, 7), validation_rows=10)
    assert result.validation_rows == 10


def test_epochs_and_steps(registry):
    assert fit(registry, "classification", max_steps=None, epochs=1.5, batch_size=50).steps == 4  # 108 rows, 3 a pass
    assert [e.step for e in fit(registry, "classification", max_steps=7, evaluate_every=3).history] == [3, 6, 7]


def test_a_card_in_the_registry_needs_no_card_here(registry):
    registry.add(card("classification"))
    result = Trainer(registry, **OPTIONS | {"max_steps": 2}).fit({"tests/classification": rows("classification", 20)})
    assert result["tests/classification"].task.adapter == "v1"
    result = Trainer(registry, **OPTIONS | {"max_steps": 3}).fit({"tests/classification": rows("classification", 20)})
    assert result["tests/classification"].task.adapter == "v2"


def test_an_adapter_can_be_left_unregistered(registry, tmp_path):
    task, out = card("classification"), tmp_path / "out"
    trainer = Trainer(registry, **OPTIONS | {"max_steps": 1})
    data = {task.name: rows("classification", 20)}
    result = trainer.fit(data, {task.name: task}, register=False, out=out)[task.name]
    assert result.folder == out / task.name
    assert hashes(out).keys() == {
        f"tests/classification/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json")
    }
    assert task.name not in registry
    with pytest.raises(InputError, match="new folders"):
        trainer.fit(data, {task.name: task}, register=False, out=out)
    with pytest.raises(InputError, match="Name one"):
        trainer.fit(data, {task.name: task}, register=False)


def test_chosen_targets_are_the_ones_that_are_trained(registry):
    result = fit(registry, "classification", max_steps=1, targets=["q_proj", "v_proj"])
    names = {name.split(".")[-3] for name in load_file(result.folder / "adapter_model.safetensors") if "lora" in name}
    assert names == {"q_proj", "v_proj"}
    with pytest.raises(InputError, match="does not go on"):
        fit(registry, "classification", max_steps=1, targets=["nothing"])


def test_default_targets_are_all_linear_modules_of_the_backbone(llama, gpt2, bert):
    assert linear_targets(llama) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert linear_targets(gpt2) == ["c_attn", "c_fc", "c_proj"]
    dense = ["attention.output.dense", "intermediate.dense", "output.dense"]
    assert linear_targets(bert) == sorted([*dense, "key", "query", "value"])


def test_base_id(tmp_path):
    assert base_id("org/name") == "org/name"
    (tmp_path / "some-base").mkdir()
    assert base_id(str(tmp_path / "some-base")) == "some-base"
    note = tmp_path / "some-base" / "adapterhub.json"
    note.write_text('{"id": "org/other"}')
    assert base_id(str(tmp_path / "some-base")) == "org/other"
    note.write_text("[]")
    with pytest.raises(InputError, match="a base's note is JSON"):
        base_id(str(tmp_path / "some-base"))


def test_faults_of_all_tasks_are_listed_before_anything_is_trained(registry, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a"}\n{"input": "b"\n{"input": "c", "output": "d"}\n')
    tasks = {"tests/generation": card(), "tests/classification": card("classification")}
    bad = [*rows("classification", 5), {"input": "x", "label": "rde"}]
    with pytest.raises(DataError) as error:
        Trainer(registry, **OPTIONS).fit({"tests/generation": path, "tests/classification": bad}, tasks)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        f"{path}:1",
        f"{path}:2",
        "tests/classification row 6",
    ]
    assert list(registry) == []


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "training data has at least one row"),
        (rows("generation", 1), {}, "needs 2 different inputs"),
        (rows("generation", 3), {"validation": rows("generation", 3)}, "no training row is left"),
        (
            rows("generation", 3),
            {"validation": [{"input": "a"}]},
            "tests/generation validation row 1: a row needs `output`",
        ),
        ([{"input": "a", "output": "red " * 99}] * 2, {"validation": 0}, "a row takes at most 64 tokens"),
        ("none.jsonl", {}, "no such data file"),
    ],
)
def test_bad_data(data, options, message, registry):
    with pytest.raises(DataError, match=message):
        fit(registry, "generation", data, **options)
    assert list(registry) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lorra"}, "`method` should be one of lora, bottleneck. Found 'lorra'. Did you mean `lora`?"),
        ({"rank": 0}, "`rank` should be a whole number of at least 1. Found 0."),
        ({"batch_size": True}, "`batch_size` should be a whole number of at least 1. Found True."),
        ({"learning_rate": 0}, "`learning_rate` should be a number above 0. Found 0."),
        ({"learning_rate": float("nan")}, "`learning_rate` should be a number above 0. Found nan."),
        ({"epochs": -1}, "`epochs` should be a number above 0. Found -1."),
        ({"warmup": 1}, "`warmup` should be a share in [0, 1). Found 1."),
        ({"patience": 0}, "`patience` should be a whole number of at least 1. Found 0."),
        ({"seed": -1}, "`seed` should be a whole number from 0 to 4294967295. Found -1."),
        ({"targets": []}, "`targets` should be at least one module name. Found ()."),
        ({"mixed_precision": "fp8"}, "`mixed_precision` should be one of no, bf16. Found 'fp8'."),
        ({"resume": True}, "`resume` goes on from a checkpoint. Found no `checkpoints`. Name their folder."),
    ],
)
def test_bad_options(options, message, registry):
    with pytest.raises(InputError) as error:
        Trainer(registry, **options)
    assert str(error.value) == message


def test_bad_options_are_listed_together(registry):
    with pytest.raises(InputError) as error:
        Trainer(registry, rank=-1, epochs=0, decay="square")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (1.0, "should be a share in"),
        (True, "should be a share in"),
        ({"tests/other": 0.1}, "`validation` has no entry for tests/classification"),
        ({"tests/classification": 0.1, "tests/classificatoin": 0.1}, "Did you mean `tests/classification`?"),
    ],
)
def test_bad_validation(validation, message, registry):
    with pytest.raises(InputError) as error:
        fit(registry, "classification", validation=validation)
    assert message in str(error.value)


def test_patience_needs_validation_rows(registry):
    with pytest.raises(InputError, match="`patience` needs validation rows"):
        fit(registry, "classification", validation=0, patience=2)


def test_the_dropout_of_the_base_stays_off(registry, monkeypatch):
    original, modes = unit.batch_loss, []

    def spy(model, *args):
        modes.extend(module.training for module in model.modules())
        return original(model, *args)

    monkeypatch.setattr(unit, "batch_loss", spy)
    fit(registry, "classification", base="_bert", max_steps=2)
    assert modes
    assert not any(modes)


def test_one_validation_file_does_not_serve_two_tasks(registry):
    tasks = {"tests/generation": card(), "tests/classification": card("classification")}
    data = {name: rows(task.head, 4) for name, task in tasks.items()}
    with pytest.raises(InputError, match="a mapping by task name"):
        Trainer(registry, validation="a.jsonl").fit(data, tasks)


def test_bad_cards_and_bases(registry, bases):
    data = {"tests/classification": rows("classification", 4)}
    trainer = Trainer(registry, progress=False)
    with pytest.raises(TaskNotFoundError):
        trainer.fit(data)
    with pytest.raises(InputError, match="at least one task"):
        trainer.fit({})
    for fields, message in [
        ({"base_model": ""}, "names its `base_model`"),
        ({"name": "tests/other"}, "a card has its task's name. Found tests/other"),
        ({"base_model": "_nothing"}, "Base model _nothing cannot be loaded"),
    ]:
        with pytest.raises(InputError, match=message):
            trainer.fit(data, {"tests/classification": card("classification", **fields)})
    with pytest.raises(InputError, match="needs a tokenizer with an end token"):
        trainer.fit({"tests/generation": rows("generation", 4)}, {"tests/generation": card(base_model="_bert")})
    assert list(registry) == []


def test_a_base_without_the_weights_that_a_head_rests_on_is_refused(registry, bases):
    from transformers import BertModel

    folder = registry.root / "_headless"
    BertModel.from_pretrained(bases / "_bert", add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bases / "_bert").save_pretrained(folder)
    with pytest.raises(InputError, match=r"It lacks bert.pooler.dense"):
        fit(registry, "classification", base="_headless", max_steps=1)
    assert fit(registry, "token-classification", base="_headless", max_steps=1).steps == 1
