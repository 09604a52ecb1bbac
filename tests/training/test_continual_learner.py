"""Task after task: adapters of their own move nothing; a shared one is kept by what is remembered."""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from workshop import COLOURS, THINGS, bert_base, card, llama_base, rows

import adapterhub.training.continual._continued as continued
from adapterhub.errors import InputError, IntegrityError, TaskNotFoundError
from adapterhub.registry import Registry
from adapterhub.training import DivergedError, Trainer
from adapterhub.training.continual import ContinualLearner, ContinualScores

OPTIONS = {"rank": 8, "learning_rate": 1e-2, "max_steps": 4, "progress": False, "validation": 0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    llama_base(root / "_base")
    bert_base(root / "_bert")
    return root


@pytest.fixture
def registry(bases, tmp_path):
    return fresh(bases, tmp_path / "registry")


def fresh(bases, root):
    root.mkdir()
    for name in ("_base", "_bert"):
        (root / name).symlink_to(bases / name, target_is_directory=True)
    return Registry(root)


def task(name, head="classification", **fields):
    return card(head, name=f"tests/{name}", **fields)


def shifted(count, by, seed=0):
    """The colours again under rules of their own, told apart by the first word."""
    return [
        {"input": f"rule {by} {row['input']}", "label": COLOURS[(COLOURS.index(row["label"]) + by) % 4]}
        for row in rows("classification", count, seed)
    ]


def learner(registry, size=1000, **options):
    return ContinualLearner(Trainer(registry, **OPTIONS | options), replay_buffer_size=size)


def learn(one, name, data=None, **options):
    return one.learn_new_task(
        f"tests/{name}", rows("classification", 40) if data is None else data, task(name), **options
    )


def hashes(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".catalog" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def accuracy(registry, name, data):
    found = registry[f"tests/{name}"]
    base = AutoModelForSequenceClassification.from_pretrained(
        registry.root / "_base", dtype=torch.float32, num_labels=4
    )
    base.config.pad_token_id = 0
    model = PeftModel.from_pretrained(base, registry.adapter_path(found.name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(registry.root / "_base")
    right = 0
    for row in data:
        logits = model(input_ids=torch.tensor([tokenizer(found.format(row["input"]))["input_ids"]])).logits
        right += COLOURS[int(logits.argmax())] == row["label"]
    return right / len(data)


def test_a_task_of_its_own_moves_nothing_else_and_equals_plain_training(registry):
    one = learner(registry)
    learn(one, "a")
    before, stored = hashes(registry.root), registry["tests/a"]
    result = learn(one, "b", shifted(40, 1))
    after = hashes(registry.root)
    assert {path: after[path] for path in before} == before
    assert registry["tests/a"] == stored
    alone = Trainer(registry, **OPTIONS).fit({"tests/c": shifted(40, 1)}, {"tests/c": task("c")})["tests/c"]
    assert alone.task.sha256 == result.task.sha256


@pytest.mark.slow
def test_sequential_learning_forgets_exactly_nothing(registry):
    one, names = learner(registry, max_steps=30), ["a", "b", "c"]
    matrix = []
    for number, name in enumerate(names):
        learn(one, name, shifted(60, number))
        matrix.append(
            [accuracy(registry, n, shifted(20, i, 9)) if i <= number else float("nan") for i, n in enumerate(names)]
        )
    scores = ContinualScores.from_matrix(matrix)
    assert (scores.bwt, scores.forgetting) == (0.0, 0.0)
    assert scores.acc > 0.6


@pytest.mark.parametrize("damage", ["weights", "card", "gone"])
def test_a_neighbour_that_changes_meanwhile_is_named(damage, registry, monkeypatch):
    one = learner(registry)
    learn(one, "a")
    fit = Trainer.fit

    def careless(self, *args, **options):
        if damage == "weights":
            path = registry.adapter_path("tests/a") / "adapter_model.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        elif damage == "card":
            registry.add_example("tests/a", "changed")
        else:
            registry.remove("tests/a")
        return fit(self, *args, **options)

    monkeypatch.setattr(Trainer, "fit", careless)
    with pytest.raises(IntegrityError, match=r"leaves every other task as it was. Found otherwise:\ntests/a: "):
        learn(one, "b")
    if damage == "card":
        learn(one, "c", check=False)


def test_the_buffer_grows_is_bounded_and_balanced_over_tasks_and_classes(registry):
    one = learner(registry, size=60, max_steps=1)
    learn(one, "a", rows("classification", 50))
    assert len(one.buffer) == 50
    learn(one, "b", shifted(200, 1))
    assert len(one.buffer) == 60
    learn(one, "c", shifted(200, 2))
    assert len(one.buffer) == 60
    assert sum(one.buffer.counts.values()) == 60
    assert set(one.buffer.counts.values()) == {5}  # three tasks of four classes
    assert Counter(entry["task"] for entry in one.buffer) == {"tests/a": 20, "tests/b": 20, "tests/c": 20}
    labels = Counter((entry["task"], COLOURS[entry["example"]["label"]]) for entry in one.buffer)
    assert set(labels.values()) == {5}


def test_validation_rows_are_not_remembered(registry):
    held = [row | {"input": f"held {row['input']}"} for row in rows("classification", 10)]
    one = learner(registry, validation=held)
    learn(one, "a", rows("classification", 30) + held)
    assert len(one.buffer) == 30
    assert not {entry["example"]["text"] for entry in one.buffer} & {row["input"] for row in held}


def test_a_task_is_required_and_is_new(registry):
    one = learner(registry)
    with pytest.raises(TypeError, match="name"):
        one.learn_new_task(data=rows("classification", 10))
    with pytest.raises(TaskNotFoundError):
        one.learn_new_task("tests/nobody", rows("classification", 10))
    learn(one, "a")
    with pytest.raises(InputError, match=r"A new task has no adapter yet\. tests/a has v1"):
        one.learn_new_task("tests/a", rows("classification", 10))
    registry.add(task("b"))
    assert one.learn_new_task("tests/b", rows("classification", 10)).task.adapter == "v1"


def test_replay_is_interleaved_with_the_new_rows(registry, monkeypatch):
    one, seen = learner(registry, size=30, max_steps=6, batch_size=8), []

    class Watched(continued.SharedStep):
        def __call__(self, batch, memories):
            seen.append((batch, memories))
            return super().__call__(batch, memories)

    monkeypatch.setattr(continued, "SharedStep", Watched)
    learn(one, "a")
    learn(one, "b", shifted(40, 1), shared="tests/a")
    assert len(seen) == 6
    for batch, memories in seen:
        assert {row.example.where.split(" row")[0] for row in batch.rows} == {"tests/b"}
        (memory,) = memories.values()
        assert {row.example.where.split(" row")[0] for row in memory.rows} == {"tests/a"}
        assert 0 < len(memory.rows) <= 8
    seen.clear()
    learn(one, "c", shifted(40, 2), shared="tests/b", keep="gem")
    assert [list(memories) for _, memories in seen] == [["tests/a", "tests/b"]] * 6
    for _, memories in seen:
        for name, memory in memories.items():
            assert {row.example.where.split(" row")[0] for row in memory.rows} == {name}


def test_the_shared_adapter_serves_all_that_share_it_and_no_one_else(registry):
    one = learner(registry)
    learn(one, "a")
    learn(one, "apart", shifted(40, 3))
    before = hashes(registry.root / "tests" / "apart")
    result = learn(one, "b", shifted(40, 1), shared="tests/a")
    assert registry["tests/a"].sha256 == registry["tests/b"].sha256 == result.task.sha256
    assert (registry["tests/a"].adapter, registry["tests/b"].adapter) == ("v2", "v1")
    last = learn(one, "c", shifted(40, 2), shared="tests/b")
    assert [registry[f"tests/{name}"].sha256 for name in "abc"] == [last.task.sha256] * 3
    assert last.task.sha256 != result.task.sha256
    assert hashes(registry.root / "tests" / "apart") == before
    assert registry.verify() == []


def test_metrics_of_the_older_tasks_are_not_claimed_for_the_new_weights(registry):
    one = learner(registry, validation=0.2)
    assert learn(one, "a").task.metrics
    found = learn(one, "b", shifted(40, 1), shared="tests/a")
    assert registry["tests/a"].metrics == {}
    assert registry["tests/b"].metrics == {"validation_accuracy": found.metric}
    assert found.history[-1].step == found.steps == 4


def named(kind, words, count, seed=0):
    """Sentences that a word decides: a colour itself, or a thing that stands for one."""
    generator = random.Random(seed)
    picks = [generator.randrange(4) for _ in range(count)]
    return [{"input": f"{n}: {kind} {words[pick]}.", "label": COLOURS[pick]} for n, pick in enumerate(picks)]


@pytest.mark.slow
def test_what_is_kept_is_forgotten_less(bases, tmp_path):
    found = {}
    for keep in ((), "replay", "gem", "distillation", "ewc"):
        registry = fresh(bases, tmp_path / f"registry-{keep or 'none'}")
        one = learner(registry, size=40, max_steps=100, learning_rate=3e-3)
        learn(one, "a", named("it is", COLOURS, 120))
        strength = 1e6 if keep == "ewc" else 1.0  # a task that is learned well has a small Fisher
        learn(one, "b", named("here is the", THINGS, 120), shared="tests/a", keep=keep, strength=strength)
        held = named("it is", COLOURS, 40, 9), named("here is the", THINGS, 40, 9)
        found[keep] = [accuracy(registry, "b", data) for data in held]
    assert all(new > 0.9 for _, new in found.values()), found
    assert found[()][0] < 0.85, found
    assert all(old > found[()][0] + 0.1 for keep, (old, _) in found.items() if keep), found


@pytest.mark.slow
@pytest.mark.parametrize("head", ["generation", "token-classification"])
def test_other_heads_are_trained_on_too(head, registry):
    one = learner(registry, size=12)
    one.learn_new_task("tests/a", rows(head, 20), task("a", head))
    for name, keep in {"b": "replay", "c": ("ewc", "distillation"), "d": "gem"}.items():
        result = one.learn_new_task(f"tests/{name}", rows(head, 20), task(name, head), shared="tests/a", keep=keep)
        assert registry["tests/a"].sha256 == result.task.sha256
    assert registry.versions("tests/a") == ["v1", "v2", "v3", "v4"]


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["replay", ("gem", "distillation")])
def test_a_learner_put_back_together_from_json_goes_on_with_the_same_bytes(keep, bases, tmp_path):
    found = []
    for way in ("whole", "resumed"):
        registry = fresh(bases, tmp_path / way)
        one = learner(registry, size=30)
        learn(one, "a")
        learn(one, "b", shifted(40, 1), shared="tests/a", keep=keep)
        if way == "resumed":
            state = json.loads(json.dumps(one.state_dict()))
            one = learner(Registry(registry.root), size=30)
            one.load_state_dict(state)
        found.append(learn(one, "c", shifted(40, 2), shared="tests/a", keep=keep).task.sha256)
        found.append([registry[f"tests/{name}"].sha256 for name in "abc"])
        found.append(json.dumps(one.state_dict()))
    assert found[:3] == found[3:]


def test_rows_to_remember_are_asked_for_and_can_be_given(registry):
    data = rows("classification", 40)
    Trainer(registry, **OPTIONS).fit({"tests/a": data}, {"tests/a": task("a")})
    one = learner(registry, size=25)
    for keep in ("replay", "gem", "ewc"):
        with pytest.raises(InputError, match=rf"with {keep} needs remembered rows of it\. Found none of tests/a"):
            learn(one, "b", shared="tests/a", keep=keep)
    learn(one, "b", shared="tests/a", keep="distillation")  # on the new rows
    assert one.remember("tests/a", data) < 25
    learn(one, "c", shared="tests/a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "generation"}, r"one `head`. Found 'generation', and 'classification' of tests/a"),
        ({"labels": ["red", "green"]}, r"one `labels`. Found \['red', 'green'\]"),
        ({"base_model": "_bert"}, r"one `base_model`. Found .*_bert"),
        ({"head": "regression"}, "A regression's adapter has its own scale"),
    ],
)
def test_a_task_that_does_not_fit_the_shared_adapter_is_refused(fields, message, registry):
    one = learner(registry)
    learn(one, "a")
    before = hashes(registry.root)
    new = task("b", fields.get("head", "classification"), **{n: v for n, v in fields.items() if n != "head"})
    data = (
        rows(new.head, 40)
        if new.head != "classification"
        else [r for r in rows(new.head, 40) if r["label"] in new.labels]
    )
    with pytest.raises(InputError, match=message):
        one.learn_new_task("tests/b", data, new, shared="tests/a")
    assert hashes(registry.root) == before


def test_what_is_shared_has_an_adapter_and_what_keeps_it_a_name(registry):
    one = learner(registry)
    registry.add(task("bare"))
    with pytest.raises(InputError, match="tests/bare needs an adapter to be trained on"):
        learn(one, "b", shared="tests/bare", keep=())
    with pytest.raises(TaskNotFoundError):
        learn(one, "b", shared="tests/nobody")
    with pytest.raises(InputError, match=r"Did you mean `replay`\?"):
        learn(one, "b", shared="tests/bare", keep="reply")
    with pytest.raises(InputError, match="at least one row"):
        learner(registry, size=0)


@pytest.mark.parametrize("keep", ["replay", "gem"])
def test_a_loss_that_is_not_finite_leaves_the_registry_as_it_was(keep, registry):
    one = learner(registry)
    learn(one, "a")
    before, held = hashes(registry.root), json.dumps(one.state_dict())
    bad = ContinualLearner(Trainer(registry, **OPTIONS | {"learning_rate": 1e30, "warmup": 0}))
    bad.load_state_dict(json.loads(held))
    with pytest.raises(DivergedError, match=r"in the batch of tests/b row \d+.*The adapter is as it was"):
        learn(bad, "b", shifted(40, 1), shared="tests/a", keep=keep)
    assert hashes(registry.root) == before
    assert json.dumps(bad.state_dict()) == held
