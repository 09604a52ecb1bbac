"""What goes wrong: data without anything to learn, a full disk, a process that is killed."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from workshop import COLOURS, card, llama_base, registry_on, rows

import adapterhub.training._checkpoint as checkpoint
import adapterhub.training._save as save
from adapterhub.adapter import content_hash
from adapterhub.errors import DataError, InputError, IntegrityError
from adapterhub.registry import Registry
from adapterhub.training import FitResult, Trainer
from adapterhub.training.continual import ContinualLearner

HEADS = ("generation", "classification")
NAMES = {f"tests/{head}": card(head) for head in HEADS}
OPTIONS = {"rank": 4, "learning_rate": 1e-2, "max_steps": 6, "progress": False, "batch_size": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_base(tmp_path_factory.mktemp("faults") / "_base")


@pytest.fixture
def registry(base: Path, tmp_path: Path) -> Registry:
    return registry_on(base, tmp_path / "registry")


def fit(registry: Registry, data: dict[str, Any] | None = None, **options: Any) -> dict[str, FitResult]:
    """A group of a generating and a classifying task."""
    data = {name: rows(one.head, 40) for name, one in NAMES.items()} if data is None else data
    given = {name: options.pop(name) for name in ("register", "out") if name in options}
    return Trainer(registry, **OPTIONS | options).fit(data, NAMES, group="tests", **given)


# Data


def test_a_task_without_rows_is_named_before_anything_is_trained(registry: Registry) -> None:
    data = {"tests/generation": rows("generation", 20), "tests/classification": []}
    with pytest.raises(DataError, match="tests/classification: training data has at least one row"):
        fit(registry, data)
    with pytest.raises(DataError, match="tests/b: training data has at least one row"):
        ContinualLearner(Trainer(registry)).learn_new_task("tests/b", [], card("classification", name="tests/b"))
    assert list(registry) == []


def test_labels_outside_the_card_are_named_in_a_group(registry: Registry) -> None:
    bad = [*rows("classification", 20), {"input": "The sky is purple.", "label": "purple"}]
    with pytest.raises(DataError, match=r"tests/classification row 21: a label is one of the card's .* Found `purple`"):
        fit(registry, {"tests/generation": rows("generation", 20), "tests/classification": bad})
    assert list(registry) == []


def one_label(head: str, count: int = 20) -> list[dict[str, object]]:
    if head == "classification":
        return [row | {"label": "blue"} for row in rows(head, count)]
    return [row | {"tags": ["O"] * len(row["tokens"])} for row in rows(head, count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("head", "label"), [("classification", "blue"), ("token-classification", "O")])
def test_rows_of_one_label_alone_are_told(head: str, label: str, registry: Registry, caplog: Any) -> None:
    one = card(head)
    with caplog.at_level(logging.WARNING, "adapterhub"):
        Trainer(registry, **OPTIONS | {"max_steps": 1}).fit({one.name: one_label(head)}, {one.name: one})
    (said,) = caplog.messages
    assert said.startswith(f"{one.name}: training rows are of several labels. Found `{label}` alone in 18 rows")
    assert "adapterhub doctor" in said


def test_rows_of_several_labels_or_of_none_are_not_told(registry: Registry, caplog: Any) -> None:
    data = {f"tests/{head}": rows(head, 8) for head in ("generation", "regression", "classification")}
    cards = {name: card(name.partition("/")[2]) for name in data}
    with caplog.at_level(logging.WARNING, "adapterhub"):
        Trainer(registry, **OPTIONS | {"max_steps": 1}).fit(data, cards)
    assert caplog.messages == []


# A full disk


def filling(module: Any, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    """After so many files the disk is full in the middle of the next one."""
    original, written = module.save_file, []

    def writing(tensors: Any, path: Path, *rest: Any) -> None:
        written.append(path)
        if len(written) <= whole:
            original(tensors, path, *rest)
            return
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", writing)


def step_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["state"])["progress"]["step"])


def test_a_full_disk_keeps_the_last_checkpoint(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    options = {"evaluate_every": 2, "checkpoints": tmp_path / "checkpoints"}
    whole = fit(registry, evaluate_every=2)
    monkeypatch.undo()
    filling(checkpoint, monkeypatch, 2)
    with pytest.raises(
        IntegrityError, match=r"No space left on device\. The checkpoint before it is kept\. Free space"
    ):
        fit(registry, **options)
    folder = tmp_path / "checkpoints" / "tests"
    assert [path.name for path in folder.iterdir()] == ["checkpoint.safetensors"]
    assert step_of(folder / "checkpoint.safetensors") == 4
    monkeypatch.undo()
    again = fit(registry, **options, resume=True)
    assert {name: content_hash(one.folder) for name, one in again.items()} == {
        name: content_hash(one.folder) for name, one in whole.items()
    }


def test_a_disk_that_is_full_from_the_first_leaves_no_checkpoint(registry: Registry, tmp_path: Path, monkeypatch: Any):
    filling(checkpoint, monkeypatch, 0)
    with pytest.raises(IntegrityError, match=r"No space left on device\. Free space"):
        fit(registry, checkpoints=tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints" / "tests").iterdir()) == []


def test_what_safetensors_says_of_a_full_disk_is_told_in_one_error(tmp_path: Path) -> None:
    """No file of this process may be larger than 1 MB: a limit that the system keeps, as a full disk does."""
    resource = pytest.importorskip("resource")
    weight = torch.nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([weight])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    state = checkpoint.State({"weight": weight}, optimizer, schedule)
    saved = checkpoint.Checkpoint(tmp_path, {})
    saved.save(checkpoint.Progress(step=1), state, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(
            IntegrityError, match=r"cannot be written to: .*File too large.* The checkpoint before it is"
        ):
            saved.save(checkpoint.Progress(step=2), state, {"best.weight": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert saved.restore(state)[0].step == 1


def test_a_full_disk_leaves_no_half_of_an_adapter(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    out, options = tmp_path / "out", {"checkpoints": tmp_path / "checkpoints", "register": False}
    whole = fit(registry, register=False, out=tmp_path / "whole")
    filling(save, monkeypatch, 0)
    with pytest.raises(IntegrityError, match=r"No space left on device\. Nothing of it is left\. Free space"):
        fit(registry, **options, out=out)
    assert list(out.iterdir()) == []
    assert list(registry) == []
    assert step_of(tmp_path / "checkpoints" / "tests" / "checkpoint.safetensors") == 6
    monkeypatch.undo()
    again = fit(registry, **options, out=out, resume=True)
    assert {name: content_hash(one.folder) for name, one in again.items()} == {
        name: content_hash(one.folder) for name, one in whole.items()
    }


def test_a_run_that_was_cut_off_between_two_deliveries_is_resumed(
    registry: Registry, tmp_path: Path, monkeypatch: Any
) -> None:
    out, options = tmp_path / "out", {"checkpoints": tmp_path / "checkpoints"}
    whole = fit(registry, register=False, out=tmp_path / "whole")
    add, count = Registry.add, itertools.count()

    def cut_off(self: Registry, *args: Any, **more: Any) -> Any:
        if next(count) == 1:  # its folder is in its place, but no one has acknowledged it
            raise KeyboardInterrupt
        return add(self, *args, **more)

    monkeypatch.setattr(Registry, "add", cut_off)
    with pytest.raises(KeyboardInterrupt):
        fit(registry, **options, out=out)
    monkeypatch.undo()
    delivered = sorted(path.relative_to(out).parent.as_posix() for path in out.rglob("adapter_config.json"))
    assert len(delivered) == 2
    with pytest.raises(InputError, match="Adapters go into new folders"):
        fit(registry, **options, out=out)
    again = fit(registry, **options, out=out, resume=True)
    assert {name: content_hash(one.folder) for name, one in again.items()} == {
        name: content_hash(one.folder) for name, one in whole.items()
    }
    assert sorted(registry) == sorted(whole)
    assert registry.verify() == []
    weights = out / delivered[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(InputError, match="Found another adapter in"):
        fit(registry, **options, out=out, resume=True)


def test_a_folder_that_was_there_is_not_taken_away(tmp_path: Path) -> None:
    kept = tmp_path / "adapter" / "kept"
    kept.mkdir(parents=True)
    with pytest.raises(FileExistsError):
        save.save_adapter(None, tmp_path / "adapter", None)  # type: ignore[arg-type]
    assert kept.is_dir()


def test_a_continued_run_on_a_full_disk_leaves_every_task_as_it_was(
    registry: Registry, tmp_path: Path, monkeypatch: Any
) -> None:
    data = rows("classification", 20)
    tasks = {name: card("classification", name=f"tests/{name}") for name in ("a", "b")}
    Trainer(registry, **OPTIONS).fit({"tests/a": data}, {"tests/a": tasks["a"]})
    before = registry["tests/a"]
    for module in (checkpoint, save):
        one = ContinualLearner(Trainer(registry, **OPTIONS, validation=0, checkpoints=tmp_path / "checkpoints"))
        one.remember("tests/a", data)
        filling(module, monkeypatch, 0)
        with pytest.raises(IntegrityError, match="No space left on device"):
            one.learn_new_task("tests/b", rows("classification", 20, 1), tasks["b"], shared="tests/a")
        monkeypatch.undo()
        assert list(registry) == ["tests/a"]
        assert registry["tests/a"] == before
    assert registry.verify() == []


# A process that is killed

BEGIN = """
import sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {parent!r})
import test_training_faults as faults
faults.{work}(faults.Registry(sys.argv[1]), faults.Path(sys.argv[2]))
"""
LONG = {"max_steps": 60, "evaluate_every": 2}


def train_a_group(registry: Registry, checkpoints: Path | None) -> None:
    fit(registry, **LONG, patience=12, validation=0.3, checkpoints=checkpoints, resume=checkpoints is not None)


def continue_an_adapter(registry: Registry, checkpoints: Path | None) -> None:
    data, options = rows("classification", 40), {"checkpoints": checkpoints, "resume": checkpoints is not None}
    one = ContinualLearner(Trainer(registry, **OPTIONS | LONG, validation=0.2, **options), replay_buffer_size=30)
    one.remember("tests/a", data)
    other = [row | {"label": COLOURS[COLOURS.index(str(row["label"])) - 1]} for row in rows("classification", 40, 5)]
    one.learn_new_task("tests/b", other, card("classification", name="tests/b"), shared="tests/a",
                       keep=("replay", "distillation", "ewc"))  # fmt: skip


def killed_and_begun_again(script: Path, arguments: list[str], checkpoints: Path, seed: int, most: int) -> None:
    """Kill it a few times, each a few checkpoints and a random moment after its beginning; then let it end."""
    generator = random.Random(seed)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(script), *arguments], stderr=subprocess.PIPE, text=True)
        try:
            _wait_for(changes(checkpoints), generator.randint(1, most), process)
            time.sleep(generator.uniform(0, 0.1))
            assert process.poll() is None, "it ended before it could be killed"
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def changes(folder: Path) -> Callable[[], set[tuple[str, int]]]:
    """From now on, the checkpoints that have been written."""
    places = [folder / name / "checkpoint.safetensors" for name in ("tests", "tests/b", *NAMES)]

    def there() -> set[tuple[str, int]]:
        return {(str(path), path.stat().st_mtime_ns) for path in places if path.exists()}

    before = there()
    return lambda: there() - before


def _wait_for(written: Callable[[], set[tuple[str, int]]], count: int, process: subprocess.Popen[str]) -> None:
    seen: set[tuple[str, int]] = set()
    deadline = time.monotonic() + 120
    while len(seen) < count:
        seen |= written()
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "seed", "most"), [("train_a_group", 0, 4), ("train_a_group", 1, 14), ("continue_an_adapter", 2, 6)]
)
def test_a_killed_process_goes_on_to_the_same_bytes(
    work: str, seed: int, most: int, base: Path, tmp_path: Path
) -> None:
    tests, script = Path(__file__).parent, tmp_path / "script.py"
    script.write_text(BEGIN.format(tests=str(tests), parent=str(tests.parent), work=work))
    roots = [tmp_path / "whole", tmp_path / "killed"]
    for root in roots:
        registry, one = registry_on(base, root), card("classification", name="tests/a")
        if work == "continue_an_adapter":
            Trainer(registry, **OPTIONS).fit({"tests/a": rows("classification", 40)}, {"tests/a": one})
    globals()[work](Registry(roots[0]), None)
    killed_and_begun_again(script, [str(roots[1]), str(tmp_path / "c")], tmp_path / "c", seed, most)
    whole, killed = Registry(roots[0]), Registry(roots[1])
    assert list(whole) == list(killed) != []
    assert killed.verify() == []
    files = [path.name for path in (tmp_path / "c").rglob("*") if not path.is_dir()]
    assert set(files) == {"checkpoint.safetensors"}  # and nothing that a kill left in the middle of writing
    for name in whole:
        assert killed[name].sha256 == whole[name].sha256, name
        assert killed[name].metrics == whole[name].metrics
