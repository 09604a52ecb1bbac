"""Step by step: each step changes the adapters of its tasks, and only those."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from workshop import card, llama_base, rows

from adapterhub.errors import DataError, InputError
from adapterhub.registry import Registry
from adapterhub.training import DivergedError, Trainer

HEADS = ("generation", "classification", "token-classification")
CARDS = {f"tests/{head}": card(head) for head in HEADS}
OPTIONS = {"rank": 4, "learning_rate": 1e-2, "progress": False}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("session")
    llama_base(root / "_base")
    return Registry(root)


def weights(session, out: Path) -> dict[str, dict]:
    session.deliver(register=False, out=out)
    return {name: load_file(out / name / "adapter_model.safetensors") for name in CARDS}


def test_a_step_changes_the_adapters_of_its_tasks_only(registry: Registry, tmp_path: Path) -> None:
    with Trainer(registry, **OPTIONS).session(CARDS, CARDS) as session:
        begun = weights(session, tmp_path / "0")
        loss = session.train_step(rows("generation", 8), "tests/generation")
        assert isinstance(loss, float)
        after = weights(session, tmp_path / "1")
        both = {"tests/generation": rows("generation", 8), "tests/classification": rows("classification", 8)}
        found = session.train_multi_task_step(both)
        assert list(found) == list(both)
        assert found["tests/generation"] < loss
        last = weights(session, tmp_path / "2")
    for name, changed in {"tests/generation": (True, True), "tests/classification": (False, True),
                          "tests/token-classification": (False, False)}.items():  # fmt: skip
        for (old, new), wanted in zip(((begun, after), (after, last)), changed, strict=True):
            assert any(not old[name][key].equal(new[name][key]) for key in old[name]) == wanted, name


def test_steps_on_one_task_are_those_of_fit(registry: Registry, tmp_path: Path) -> None:
    """A fit of one batch a step, whose order does not matter as each batch holds every row."""
    name, data = "tests/classification", rows("classification", 8)
    options = OPTIONS | {"max_steps": 3, "batch_size": 8, "validation": 0}
    Trainer(registry, **options).fit({name: data}, CARDS, register=False, out=tmp_path / "fit")
    with Trainer(registry, **options).session([name], CARDS) as session:
        for _ in range(3):
            session.train_step(data, name)
        session.deliver(register=False, out=tmp_path / "steps")
    fitted, stepped = (load_file(tmp_path / kind / name / "adapter_model.safetensors") for kind in ("fit", "steps"))
    for key, value in fitted.items():
        assert (value - stepped[key]).abs().max() < 1e-4, key  # the rows' order within the batch differs


def test_what_is_wrong_with_a_batch_is_told_and_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    with Trainer(registry, **OPTIONS).session(CARDS, CARDS) as session:
        before = weights(session, tmp_path / "before")
        with pytest.raises(InputError, match=r"on a task of the session: .*\. Found 'tests/other'"):
            session.train_step(rows("generation", 2), "tests/other")
        with pytest.raises(InputError, match="at least one row"):
            session.train_step([], "tests/generation")
        with pytest.raises(InputError, match="at least one batch"):
            session.train_multi_task_step({})
        with pytest.raises(DataError, match="tests/classification row 1: a label is one of the card's"):
            session.train_step([{"input": "The apple is red.", "label": "purple"}], "tests/classification")
        after = weights(session, tmp_path / "after")
        assert all(before[name][key].equal(after[name][key]) for name in before for key in before[name])


def test_a_loss_that_is_no_number_stops(registry: Registry) -> None:
    name = "tests/generation"
    with Trainer(registry, **OPTIONS | {"learning_rate": 1e30}).session([name], CARDS) as session:
        session.train_step(rows("generation", 4), name)
        with pytest.raises(DivergedError, match=r"in the batch of tests/generation row 1"):
            session.train_step(rows("generation", 4), name)
