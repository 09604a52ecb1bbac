"""Task after task: adapters of their own move nothing; a shared one is kept by what is remembered."""

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from workshop import COLOURS, THINGS, bert_base, card, llama_base, rows

import adapterhub.training._loop as loop
import adapterhub.training._unit as unit
from adapterhub.errors import DataError, InputError, IntegrityError, TaskNotFoundError
from adapterhub.registry import Registry
from adapterhub.training import DivergedError, Trainer
from adapterhub.training._deliver import Delivery
from adapterhub.training.continual import ContinualLearner, ContinualScores, gem_direction

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


def plain(registry, folder, **options):
    """The adapter on a fresh base, through bare PEFT."""
    base = AutoModelForSequenceClassification.from_pretrained(
        registry.root / "_base", dtype=torch.float32, num_labels=4
    )
    base.config.pad_token_id = 0
    return PeftModel.from_pretrained(base, folder, **options).eval()


def logits_of(model, registry, name, data):
    """One row after the other, without padding; (rows, labels)."""
    tokenizer, found = AutoTokenizer.from_pretrained(registry.root / "_base"), registry[f"tests/{name}"]
    ids = [tokenizer(found.format(row["input"]))["input_ids"] for row in data]
    return torch.cat([model(input_ids=torch.tensor([row])).logits for row in ids])


def labels_of(data):
    return torch.tensor([COLOURS.index(row["label"]) for row in data])


def accuracy(registry, name, data):
    model = plain(registry, registry.adapter_path(f"tests/{name}"))
    return (logits_of(model, registry, name, data).argmax(-1) == labels_of(data)).float().mean().item()


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


def watched(monkeypatch):
    """The batches of each step, by what they are for."""
    seen, original = [], loop.task_gradient

    def watching(accelerator, one, rows, *rest):
        if not one.name.startswith(("replay", "gem", "distillation")):
            seen.append({})
        seen[-1][one.name] = rows
        return original(accelerator, one, rows, *rest)

    monkeypatch.setattr(loop, "task_gradient", watching)
    return seen


def sources(rows):
    return {row.example.where.split(" row")[0] for row in rows}


def test_what_keeps_the_older_tasks_is_interleaved_with_the_new_rows(registry, monkeypatch):
    one = learner(registry, size=30, max_steps=6, batch_size=8)
    learn(one, "a")
    seen = watched(monkeypatch)
    learn(one, "b", shifted(40, 1), shared="tests/a", keep=("replay", "distillation"))
    assert len(seen) == 6
    for batches in seen:
        assert list(batches) == ["tests/b", "replay memory", "distillation memory"]
        assert sources(batches["tests/b"]) == {"tests/b"}
        assert sources(batches["replay memory"]) == {"tests/a"}
        assert 0 < len(batches["replay memory"]) <= 8
        assert batches["distillation memory"] == batches["replay memory"]
    seen.clear()
    learn(one, "c", shifted(40, 2), shared="tests/b", keep="gem")
    assert [list(batches) for batches in seen] == [["tests/c", "gem tests/a", "gem tests/b"]] * 6
    for batches in seen:
        assert [sources(batches[name]) for name in ("gem tests/a", "gem tests/b")] == [{"tests/a"}, {"tests/b"}]
    seen.clear()
    one.buffer = type(one.buffer)(30)
    learn(one, "d", shifted(40, 3), shared="tests/a", keep="distillation")
    assert all(batches["distillation"] == batches["tests/d"] for batches in seen)  # nothing is remembered


def formula(registry, begun, now, keep, strength):
    """What a step follows at the adapter in `now`, by autograd through bare PEFT: by name, each λ and all."""
    old, new = rows("classification", 8), shifted(8, 1)
    start, model = plain(registry, begun, is_trainable=True), plain(registry, now, is_trainable=True)
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def flat(loss):
        return torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(named.values()), retain_graph=True)])

    said, learned = logits_of(model, registry, "a", old), logits_of(model, registry, "b", new)
    memory, total = cross_entropy(said, labels_of(old)), flat(cross_entropy(learned, labels_of(new)))
    if "replay" in keep:
        total += strength.get("replay", 1.0) * flat(memory)
    if "distillation" in keep:
        before = log_softmax(logits_of(start, registry, "a", old).detach() / 2, -1)
        divergence = (before.exp() * (before - log_softmax(said / 2, -1))).sum(-1).mean()
        total += strength["distillation"] * 4 * flat(divergence)
    if "ewc" in keep:
        first = [weight for weight in start.parameters() if weight.requires_grad]
        losses = cross_entropy(logits_of(start, registry, "a", old), labels_of(old), reduction="none")
        rows_of = [torch.autograd.grad(loss, first, retain_graph=True) for loss in losses]
        fisher = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows_of]).square().mean(0)
        away = [(weight - anchor).flatten() for weight, anchor in zip(named.values(), first, strict=True)]
        total += strength["ewc"] * fisher * torch.cat(away).detach()
    if "gem" in keep:
        total = gem_direction(total, flat(memory)[None])
    parts = torch.split(total, [weight.numel() for weight in named.values()])
    keys = [name.replace(".modules_to_save.default", "").replace(".default", "") for name in named]
    return {key: part.view_as(w) for key, part, w in zip(keys, parts, named.values(), strict=True)}


@pytest.mark.parametrize("keep", [(), ("replay",), ("distillation",), ("ewc", "replay"), ("gem", "distillation")])
def test_a_step_of_a_continued_run_follows_the_formula(keep, bases, tmp_path):
    """The second of two steps of plain gradient descent, against the gradients at the weights after the first."""
    strength, rate, found = {"distillation": 0.7, "ewc": 50.0}, 0.05, []
    for steps in (1, 2):
        registry = fresh(bases, tmp_path / f"registry{steps}")
        Trainer(registry, **OPTIONS).fit({"tests/a": rows("classification", 8)}, {"tests/a": task("a")})
        begun = registry.adapter_path("tests/a")
        one = learner(registry, max_steps=steps, optimiser="sgd", learning_rate=rate, max_grad_norm=None, warmup=0.0,
                      decay="cosine", batch_size=8)  # fmt: skip
        one.remember("tests/a", rows("classification", 8))
        given = {name: value for name, value in strength.items() if name in keep}
        learn(one, "b", shifted(8, 1), shared="tests/a", keep=keep, strength=given)
        found.append(registry.adapter_path("tests/b"))
    expected = formula(registry, begun, found[0], keep, strength)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in found)
    assert before.keys() == expected.keys()
    for key, value in before.items():
        torch.testing.assert_close(value - after[key], rate * expected[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("resumed", [False, True])
def test_ewc_holds_each_task_at_the_weights_that_learned_it(resumed, bases, tmp_path):
    """One step from the adapter of a and b: the new gradient, and the springs of both, each with its own anchor."""
    registry, strength, rate = fresh(bases, tmp_path / "registry"), 5e3, 0.05
    sgd = {"optimiser": "sgd", "learning_rate": rate, "max_grad_norm": None, "warmup": 0.0, "batch_size": 8}
    data = {"a": rows("classification", 8), "b": shifted(8, 1), "c": shifted(8, 2)}
    one = learner(registry, max_steps=3)
    learn(one, "a", data["a"])
    learn(one, "b", data["b"], shared="tests/a", keep=())
    learned = {"a": registry.root / "tests/a/v1", "b": registry.root / "tests/a/v2"}
    state, one = one.state_dict(), learner(registry, max_steps=1, **sgd)
    one.load_state_dict(json.loads(json.dumps(state)) if resumed else state)
    learn(one, "c", data["c"], shared="tests/a", keep="ewc", strength=strength)
    models = {name: plain(registry, folder, is_trainable=True) for name, folder in learned.items()}
    weights = {name: [w for w in model.parameters() if w.requires_grad] for name, model in models.items()}
    now = weights["b"]
    expected = [*torch.autograd.grad(cross_entropy(logits_of(models["b"], registry, "c", data["c"]),
                                                   labels_of(data["c"])), now)]  # fmt: skip
    for name, model in models.items():
        losses = cross_entropy(logits_of(model, registry, name, data[name]), labels_of(data[name]), reduction="none")
        each = [torch.autograd.grad(loss, weights[name], retain_graph=True) for loss in losses]
        for place, (weight, anchor) in enumerate(zip(now, weights[name], strict=True)):
            fisher = torch.stack([row[place] for row in each]).square().mean(0)
            expected[place] = expected[place] + strength * fisher * (weight - anchor).detach()
    after = plain(registry, registry.adapter_path("tests/c"), is_trainable=True)
    moved = [old - new for old, new in zip(now, [w for w in after.parameters() if w.requires_grad], strict=True)]
    for step, direction in zip(moved, expected, strict=True):
        torch.testing.assert_close(step, rate * direction, rtol=1e-3, atol=1e-6)


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("keep", ["replay", ("gem", "distillation"), ("ewc", "distillation")])
def test_a_killed_run_resumes_to_the_same_bytes(keep, bases, tmp_path, monkeypatch):
    data, held = rows("classification", 40), named("it is", COLOURS, 12, 9)
    options = {"max_steps": 8, "evaluate_every": 2, "validation": 0.2, "micro_batch_size": 5}

    def run(registry, strength=1.0, **more):
        one, measured = learner(registry, size=30, **options | more), {"tests/a": held}
        one.remember("tests/a", data)
        return learn(one, "b", shifted(40, 1), shared="tests/a", keep=keep, strength=strength, validation=measured)

    found = []
    for way in ("whole", "resumed"):
        registry = fresh(bases, tmp_path / way)
        Trainer(registry, **OPTIONS).fit({"tests/a": data}, {"tests/a": task("a")})
        more = {}
        if way == "resumed":
            more = {"checkpoints": tmp_path / "checkpoints"}
            calls, original = [], unit.batch_loss

            def failing(*arguments, calls=calls, original=original):
                calls.append(1)
                if len(calls) > 20:
                    raise Killed
                return original(*arguments)

            monkeypatch.setattr(unit, "batch_loss", failing)
            with pytest.raises(Killed):
                run(registry, **more)
            monkeypatch.setattr(unit, "batch_loss", original)
            assert list(registry) == ["tests/a"]
            assert (tmp_path / "checkpoints" / "tests" / "b" / "checkpoint.safetensors").is_file()
            more["resume"] = True
            with pytest.raises(InputError, match=r"keep: .*1\.0.* then, .*2\.0.* now"):
                run(registry, strength=2.0, **more)
        found.append((run(registry, **more), registry["tests/a"]))
    (whole, first), (again, second) = found
    assert again.task.sha256 == whole.task.sha256 == first.sha256 == second.sha256
    assert (again.history, again.task.metrics) == (whole.history, whole.task.metrics)
    assert first.metrics == second.metrics != {}


def test_the_options_of_a_run_serve_a_continued_one_too(registry, tmp_path):
    """Micro-batches give the whole batch's gradient, and early stopping ends the run at the best look."""
    found, data = [], rows("classification", 40)
    Trainer(registry, **OPTIONS).fit({"tests/a": data}, {"tests/a": task("a")})
    registry.add(task("copy"), adapter=registry.adapter_path("tests/a"))
    for name, shared, size in (("b", "tests/a", None), ("c", "tests/copy", 3)):
        one = learner(registry, micro_batch_size=size, max_steps=3, optimiser="sgd", per_task_clip=0.5)
        one.remember(shared, data)
        learn(one, name, shifted(40, 1), shared=shared, keep=("replay", "distillation"))
        found.append(load_file(registry.adapter_path(f"tests/{name}") / "adapter_model.safetensors"))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4)
    noise = [row | {"label": COLOURS[number % 4]} for number, row in enumerate(shifted(60, 2))]
    one = learner(registry, max_steps=300, evaluate_every=5, patience=2, validation=0.3)
    one.remember("tests/a", data)
    result = learn(one, "d", noise, shared="tests/a", keep="replay")
    assert result.stopped
    assert result.steps == result.history[-1].step < 300
    best = min(result.history, key=lambda look: (-look.metric, look.validation_loss))
    assert result.metric == best.metric
    with pytest.raises(InputError, match="`patience` needs validation rows"):
        learn(learner(registry, patience=2), "e", shared="tests/a", keep=())


def test_older_tasks_are_measured_again_on_the_rows_that_are_given(registry, monkeypatch):
    one, data = learner(registry, size=40, max_steps=6), rows("classification", 40)
    held = named("it is", COLOURS, 30, 9)
    learn(one, "a", data)
    learn(one, "b", shifted(40, 1), shared="tests/a", validation={"tests/a": held})
    assert registry["tests/a"].metrics == {"validation_accuracy": pytest.approx(accuracy(registry, "a", held))}
    assert registry["tests/b"].metrics == {}
    seen = watched(monkeypatch)
    learn(one, "c", shifted(40, 2), shared="tests/a", validation={"tests/b": shifted(20, 1)})
    assert registry["tests/a"].metrics == {}
    assert registry["tests/b"].metrics.keys() == {"validation_accuracy"}
    texts = {row.example.text for batches in seen for row in batches["replay memory"]}
    assert texts & {row["input"] for row in data}
    assert not texts & {row["input"] for row in shifted(20, 1)}  # remembered, but now they are to be measured on
    faulty = [{"input": "The apple is red.", "label": "purple"}]
    for validation, kind, message in [
        ({"tests/z": held}, InputError, r"share the adapter: tests/a, tests/b, tests/c\. Found tests/z"),
        ({"tests/a": []}, DataError, "tests/a: validation data has at least one row"),
        ({"tests/a": faulty}, DataError, "tests/a validation row 1: a label is one of the card's"),
    ]:
        with pytest.raises(kind, match=message):
            learn(one, "d", shifted(40, 3), shared="tests/a", validation=validation)
    with pytest.raises(InputError, match="none without `shared`"):
        learn(one, "d", validation={"tests/a": held})
    assert "tests/d" not in registry


PROCESS = """
import sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {parent!r})
from workshop import rows
from test_continual_learner import learn, learner, shifted
from adapterhub.registry import Registry
one = learner(Registry(sys.argv[1]), max_steps=5, optimiser="sgd")
one.remember("tests/a", rows("classification", 40))
learn(one, "b", shifted(40, 1), shared="tests/a", keep=("ewc", "replay", "distillation"))
"""


@pytest.mark.slow
def test_two_processes_train_on_as_one_does(bases, tmp_path):
    tests, script, found = Path(__file__).parent, tmp_path / "script.py", []
    script.write_text(PROCESS.format(tests=str(tests), parent=str(tests.parent)))
    for count in (1, 2):
        registry = fresh(bases, tmp_path / f"processes{count}")
        Trainer(registry, **OPTIONS).fit({"tests/a": rows("classification", 40)}, {"tests/a": task("a")})
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port",
                   "29613", str(script), str(registry.root)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        seen = Registry(registry.root)
        assert seen["tests/a"].sha256 == seen["tests/b"].sha256
        assert (seen.versions("tests/a"), seen.versions("tests/b")) == (["v1", "v2"], ["v1"])
        found.append(load_file(seen.adapter_path("tests/b") / "adapter_model.safetensors"))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4)


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
@pytest.mark.parametrize("keep", ["replay", ("gem", "distillation"), "ewc"])
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
    with pytest.raises(InputError, match=r"`strength` is of what keeps the tasks: replay. Found 'ewc'"):
        learn(one, "b", shared="tests/bare", keep="replay", strength={"ewc": 10.0})
    with pytest.raises(InputError, match=r"at least 0\. Found -1"):
        learn(one, "b", shared="tests/bare", keep="replay", strength=-1)
    with pytest.raises(InputError, match="at least one row"):
        learner(registry, size=0)


@pytest.mark.parametrize("keep", ["replay", "gem"])
def test_a_loss_that_is_not_finite_leaves_the_registry_as_it_was(keep, registry):
    one = learner(registry)
    learn(one, "a")
    before, held = hashes(registry.root), json.dumps(one.state_dict())
    bad = ContinualLearner(Trainer(registry, **OPTIONS | {"learning_rate": 1e30, "warmup": 0}))
    bad.load_state_dict(json.loads(held))
    with pytest.raises(DivergedError, match=r"in the batch of tests/b row \d+"):
        learn(bad, "b", shifted(40, 1), shared="tests/a", keep=keep)
    assert hashes(registry.root) == before
    assert json.dumps(bad.state_dict()) == held


@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("with_card", [True, False])
def test_a_run_that_is_killed_while_its_adapter_is_handed_on_can_go_on(given, with_card, bases, tmp_path, monkeypatch):
    found = []
    for way in ("whole", "killed"):
        registry = fresh(bases, tmp_path / way)
        one = learner(registry, size=30)
        learn(one, "a")
        learn(one, "b", shifted(40, 1), shared="tests/a")
        registry.add(task("c"))
        state, options = json.dumps(one.state_dict()), {"checkpoints": tmp_path / f"{way} checkpoints"}

        def again(registry=registry, state=state, **options):
            one = learner(Registry(registry.root), size=30, **options)
            one.load_state_dict(json.loads(state))
            card = task("c") if with_card else None
            return one.learn_new_task("tests/c", shifted(40, 2), card, shared="tests/a"), one

        if way == "killed":
            original, handed = Delivery.deliver, []

            def failing(self, *arguments, original=original, handed=handed):
                if len(handed) == given:
                    raise Killed
                handed.append(1)
                return original(self, *arguments)

            monkeypatch.setattr(Delivery, "deliver", failing)
            with pytest.raises(Killed):
                again(**options)
            monkeypatch.setattr(Delivery, "deliver", original)
            assert len({registry[f"tests/{name}"].sha256 for name in "abc"}) == 2
            options["resume"] = True
        result, one = again(**options)
        found.append((result.task.sha256, json.dumps(one.state_dict())))
        assert {registry[f"tests/{name}"].sha256 for name in "abc"} == {result.task.sha256}
        assert registry.verify() == []
    assert found[0] == found[1]
    if not with_card:
        with pytest.raises(InputError, match=r"tests/c has v\d\. Train it again"):
            again(**options)
