"""A group's adapter: shared by its tasks in training, frozen under each of them afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from workshop import card, llama_base, registry_on, rows

from adapterhub.adapter import content_hash, sealed_stack
from adapterhub.errors import InputError
from adapterhub.registry import Registry
from adapterhub.training import FitResult, Sharing, Trainer
from adapterhub.training.weighting import WEIGHTINGS

HEADS = ("generation", "classification", "regression", "token-classification")
OPTIONS = {"rank": 4, "learning_rate": 1e-2, "max_steps": 6, "progress": False, "batch_size": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_base(tmp_path_factory.mktemp("group") / "_base")


@pytest.fixture
def registry(base: Path, tmp_path: Path) -> Registry:
    return registry_on(base, tmp_path / "registry")


def fit(registry: Registry, heads: tuple[str, ...] = HEADS, count: int = 40, **options: object) -> dict[str, FitResult]:
    cards = {f"tests/{head}": card(head) for head in heads}
    data = {name: rows(name.partition("/")[2], count) for name in cards}
    return Trainer(registry, **OPTIONS | options).fit(data, cards, group="tests")  # type: ignore[arg-type]


def test_every_task_stands_on_one_adapter_that_all_of_them_trained(registry: Registry) -> None:
    found = fit(registry, max_steps=40)
    assert list(found) == ["tests", *(f"tests/{head}" for head in HEADS)]
    group = found["tests"]
    assert group.steps == 40
    assert group.rows == sum(found[f"tests/{head}"].rows for head in HEADS)
    for head in HEADS:
        name = f"tests/{head}"
        first, last = group.tasks[name][0], group.tasks[name][-1]
        assert last.train_loss < first.train_loss, name
        assert sealed_stack(registry.adapter_path(name)) == {"tests": group.task.sha256}
        assert registry[name].stack == ("tests",)
    assert not any(".score." in key for key in load_file(group.folder / "adapter_model.safetensors"))
    assert content_hash(group.folder) == group.task.sha256
    assert registry.verify() == []


def test_a_child_begins_with_the_head_that_the_group_trained(registry: Registry, monkeypatch) -> None:
    import adapterhub.training._run as run

    begun = {}
    original = run.fill
    monkeypatch.setattr(run, "fill", lambda model, weights: begun.update(weights) or original(model, weights))
    fit(registry, ("generation", "classification"))
    assert [name.split(".")[-4:] for name in begun] == [["score", "modules_to_save", "default", "weight"]]


def gradients(base: Path, adapter: Path, data: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """The plain formula: mean cross entropy of the answers' tokens, through bare PEFT."""
    from workshop import byte_tokenizer

    tokenizer, task = byte_tokenizer(), card("generation")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()
    loss, count = torch.zeros(()), 0
    for row in data:
        before = tokenizer(task.format(str(row["input"])))["input_ids"]
        after = tokenizer(" " + str(row["output"]))["input_ids"] + [tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        loss, count = (
            loss + torch.nn.functional.cross_entropy(logits, torch.tensor(after), reduction="sum"),
            count + len(after),
        )
    (loss / count).backward()
    return {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_a_step_with_the_sum_follows_the_sum_of_the_single_gradients(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    """The second of two steps of plain gradient descent, against PEFT's gradients at the weights after the first."""
    cards = {f"tests/{name}": card("generation", name=f"tests/{name}") for name in ("one", "two")}
    data = {name: rows("generation", 8, seed) for seed, name in enumerate(cards)}
    rate, folders = 0.5, []
    for steps in (1, 2):
        options = {"max_steps": steps, "optimiser": "sgd", "learning_rate": rate, "max_grad_norm": None, "warmup": 0.0,
                   "decay": "cosine", "validation": 0}  # fmt: skip
        out = tmp_path / f"out{steps}"
        Trainer(registry, **OPTIONS | options).fit(data, cards, group="tests", register=False, out=out)
        folders.append(out / "tests")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    single = [gradients(base, folders[0], each) for each in data.values()]
    for key, value in before.items():
        # One step rises to the peak; after it, one of two, cosine's half is left: the first took the whole rate.
        torch.testing.assert_close(value - after[key], rate * (single[0][key] + single[1][key]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n != "static"])
def test_every_weighting_trains_a_group(name: str, registry: Registry) -> None:
    pytest.importorskip("torchjd")
    targets = {f"tests/{head}": 0.9 for head in ("generation", "classification")} if name == "threshold" else None
    found = fit(registry, ("generation", "classification"), max_steps=4, evaluate_every=2,
                sharing=Sharing(weighting=name, targets=targets))  # fmt: skip
    assert all(len(weights) in (0, 2) for weights in found["tests"].weights)
    assert len(found["tests"].weights) == 2


@pytest.mark.parametrize("sampling", ["proportional", "balanced"])
def test_a_sampler_draws_one_task_a_step(sampling: str, registry: Registry) -> None:
    found = fit(registry, ("generation", "classification"), max_steps=10, sharing=Sharing(sampling=sampling))
    assert found["tests"].steps == 10


NOISY = ("generation", "classification")


def noisy(count: int = 60) -> dict[str, list[dict[str, object]]]:
    """One task with a rule, and one whose labels have none: it is learned by heart, and stops early."""
    labels = [row["label"] for row in rows("classification", count)]
    guessed = [row | {"label": label} for row, label in zip(rows("classification", count, 3), labels, strict=True)]
    return {"tests/generation": rows("generation", count), "tests/classification": guessed}


@pytest.mark.parametrize("sharing", [Sharing(), Sharing(sampling="balanced")])
def test_a_task_of_a_group_stops_by_itself_and_a_resumed_run_ends_with_the_same_bytes(
    sharing: Sharing, registry: Registry, tmp_path: Path, monkeypatch
) -> None:
    import adapterhub.training._loop as loop

    drawn, original, until = [], loop.task_gradient, [10**9]

    def watching(accelerator: object, unit: Any, *rest: Any) -> Any:
        drawn.append(unit.name)
        if len(drawn) > until[0]:
            raise Killed
        return original(accelerator, unit, *rest)

    monkeypatch.setattr(loop, "task_gradient", watching)
    options = OPTIONS | {"max_steps": 60, "evaluate_every": 3, "patience": 3, "validation": 0.3, "sharing": sharing}
    cards = {f"tests/{head}": card(head) for head in NOISY}
    whole = Trainer(registry, **options).fit(noisy(), cards, group="tests")["tests"]
    assert set(whole.stops) >= {"tests/classification"}
    stop = whole.stops["tests/classification"]
    assert 0 < stop < whole.steps  # the other one goes on
    counts = {name: sum(entry.step <= whole.steps for entry in looks) for name, looks in whole.tasks.items()}
    assert len(set(counts.values())) == 1  # both are measured to the end
    of_group = drawn[: stop * (2 if sharing.sampling is None else 1) + whole.steps - stop]
    assert "tests/classification" not in of_group[-(whole.steps - stop) :]
    assert set(of_group) == set(cards)
    drawn.clear()
    until[0] = len(of_group) - 3  # in the middle of what comes after the stop
    options |= {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(Killed):
        Trainer(registry, **options).fit(noisy(), cards, group="tests")
    until[0] = 10**9
    again = Trainer(registry, **options, resume=True).fit(noisy(), cards, group="tests")["tests"]
    assert content_hash(again.folder) == content_hash(whole.folder)
    assert (again.stops, again.tasks, again.steps) == (whole.stops, whole.tasks, whole.steps)


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize(
    "sharing",
    [Sharing(weighting="uncertainty"), Sharing(weighting="coba"), Sharing(sampling="proportional"), Sharing()],
)
def test_a_killed_group_run_resumes_to_the_same_bytes(
    sharing: Sharing, registry: Registry, tmp_path: Path, monkeypatch
) -> None:
    import adapterhub.training._unit as unit

    heads = ("generation", "classification")
    options = {"max_steps": 8, "evaluate_every": 2, "sharing": sharing, "validation": 0.5, "batch_size": 4}
    whole = fit(registry, heads, **options)
    calls, original = [], unit.batch_loss

    def failing(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 11:
            raise Killed
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(unit, "batch_loss", failing)
    options |= {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(Killed):
        fit(registry, heads, **options)
    monkeypatch.undo()
    again = fit(registry, heads, **options, resume=True)
    for name, result in whole.items():
        assert content_hash(again[name].folder) == content_hash(result.folder), name
        assert again[name].history == result.history
    assert again["tests"].tasks == whole["tests"].tasks


def test_micro_batches_give_the_gradient_of_the_whole_batch(registry: Registry, tmp_path: Path) -> None:
    folders = []
    for size in (None, 3):
        fit(registry, ("generation", "token-classification"), micro_batch_size=size)
        folders.append(load_file(registry.adapter_path("tests") / "adapter_model.safetensors"))
    for key, value in folders[0].items():
        torch.testing.assert_close(folders[1][key], value, rtol=1e-3, atol=1e-4)


def test_saving_memory_changes_no_gradient(registry: Registry) -> None:
    found = []
    for saved in (False, True):
        fit(registry, ("generation", "classification"), gradient_checkpointing=saved)
        found.append(load_file(registry.adapter_path("tests") / "adapter_model.safetensors"))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6)


PROCESS = """
import sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {parent!r})
from test_training_group import fit
from adapterhub.registry import Registry
fit(Registry(sys.argv[1]), ("generation", "classification", "token-classification"), max_steps=5)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(registry: Registry, tmp_path: Path) -> None:
    tests = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(PROCESS.format(tests=str(tests), parent=str(tests.parent)))
    found = []
    for count in (1, 2):
        root = tmp_path / f"processes{count}"
        root.mkdir()
        (root / "_base").symlink_to(registry.root / "_base")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port",
                   "29611", str(script), str(root)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        seen = Registry(root)
        assert list(seen) == ["tests", "tests/classification", "tests/generation", "tests/token-classification"]
        found.append({name: load_file(seen.adapter_path(name) / "adapter_model.safetensors") for name in seen})
        assert seen.versions("tests") == ["v1"]
    for name, tensors in found[0].items():
        for key, value in tensors.items():
            torch.testing.assert_close(found[1][name][key], value, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


def test_what_cannot_be_a_group_is_told(registry: Registry) -> None:
    data = {f"tests/{head}": rows(head, 8) for head in ("generation", "classification")}
    cards = {name: card(name.partition("/")[2]) for name in data}
    trainer = Trainer(registry, **OPTIONS)
    with pytest.raises(InputError, match=r"tests/generation: tasks of group other lie below it"):
        trainer.fit(data, cards, group="other")
    with pytest.raises(InputError, match=r"on several tasks\. Found 1"):
        trainer.fit({"tests/generation": data["tests/generation"]}, cards, group="tests")
    with pytest.raises(InputError, match="each step takes a batch of every one"):
        Sharing(weighting="uncertainty", sampling="balanced")
    with pytest.raises(InputError, match="Found no `sampling`"):
        Sharing(max_repeats=3)
    for weighting in ("coba", "meta"):
        asking = Trainer(registry, **OPTIONS | {"validation": 0}, sharing=Sharing(weighting=weighting))
        with pytest.raises(InputError, match=r"by validation rows in every step\. Found none of tests/gen.*, tests/cl"):
            asking.fit(data, cards, group="tests")
    assert list(registry) == []
