"""An adapter that is trained on top of another one: what lies below stays as it is, and is remembered by its hash."""

from __future__ import annotations

from pathlib import Path

import pytest
from workshop import card, llama_base, registry_on, rows

from adapterhub.adapter import content_hash, sealed_stack
from adapterhub.engine import Engine
from adapterhub.errors import IncompatibleAdapterError, InputError
from adapterhub.model import RoutedModel, load_base
from adapterhub.registry import Registry
from adapterhub.route import Route
from adapterhub.task import Task
from adapterhub.training import Trainer, base_id

OPTIONS = {"rank": 4, "learning_rate": 1e-2, "max_steps": 40, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_base(tmp_path_factory.mktemp("stack") / "_base")


@pytest.fixture
def registry(base: Path, tmp_path: Path) -> Registry:
    """A registry whose group `tests` has an adapter."""
    registry = registry_on(base, tmp_path / "registry")
    train(registry, card("generation", name="tests"), rows("generation"))
    return registry


def train(registry: Registry, task: Task, data: list[dict[str, object]], **options: object):
    return Trainer(registry, **OPTIONS | options).fit({task.name: data}, {task.name: task})[task.name]  # type: ignore[arg-type]


class Fixed:
    """Everything goes to one task."""

    def __init__(self, name: str) -> None:
        self.name = name

    def route(self, texts: list[str], k: int = 1) -> list[Route]:
        return [Route.to(self.name)] * len(texts)


def test_what_was_measured_in_training_is_what_the_routed_model_answers(registry: Registry, base: Path) -> None:
    before = content_hash(registry.adapter_path("tests"))
    held = rows("classification", 60, seed=5)
    result = train(registry, card("classification", stack=["tests"]), rows("classification"), validation=held)
    task = registry["tests/classification"]
    assert task.stack == ("tests",)
    assert sealed_stack(registry.adapter_path(task.name)) == {"tests": before}
    assert content_hash(registry.adapter_path("tests")) == before
    model, tokenizer = load_base(base)
    routed = RoutedModel(Engine(model, model_id=base_id(str(base))), tokenizer, registry, Fixed(task.name))
    found = routed.predictions([str(row["input"]) for row in held])
    right = sum(answer.predictions[0] == row["label"] for answer, row in zip(found, held, strict=True))
    assert right / len(held) == pytest.approx(result.metric)
    assert result.metric > 0.5
    assert found[0].adapters == ((task.name, 1.0), ("tests", 1.0))


def test_a_stack_of_two_pins_both_and_resumes(registry: Registry, tmp_path: Path) -> None:
    train(registry, card("generation", name="tests/middle", stack=["tests"]), rows("generation"))
    top = card("regression", name="tests/middle/top", stack=["tests/middle"])
    whole = train(registry, top, rows("regression"))
    assert registry[top.name].stack == ("tests", "tests/middle")
    assert list(sealed_stack(whole.folder).values()) == [registry["tests"].sha256, registry["tests/middle"].sha256]
    options = {"checkpoints": tmp_path / "checkpoints", "evaluate_every": 20}
    train(registry, top, rows("regression"), **options)
    train(registry, card("generation", name="tests"), rows("generation", seed=3))  # a newer version of the lowest
    again = train(registry, top, rows("regression"), **options, resume=True)
    assert list(sealed_stack(again.folder)) == ["tests", "tests/middle"]
    assert sealed_stack(again.folder) == sealed_stack(
        whole.folder
    )  # the middle one keeps the version that it stands on


def test_what_cannot_be_stacked_is_told(registry: Registry) -> None:
    data = rows("classification", 8)
    registry.add(card("generation", name="tests/bare"))
    llama_base(registry.root / "_other")
    (registry.root / "_other/adapterhub.json").write_text('{"id": "tests/other"}')
    for fields, options, error, message in [
        ({"stack": ["tests/bare"]}, {}, InputError, "a stack is of adapters. Found tests/bare, which has none"),
        ({"stack": ["tests"]}, {"method": "bottleneck"}, InputError, "of one method. Found tests with LORA under"),
        (
            {"stack": ["tests"], "base_model": "_other"},
            {},
            IncompatibleAdapterError,
            "base_model should be tests/other",
        ),
    ]:
        with pytest.raises(error, match=message):
            train(registry, card("classification", name="tests/new", **fields), data, **options)
        assert "tests/new" not in registry


def test_training_begins_with_another_adapter(registry: Registry, tmp_path: Path) -> None:
    first = train(registry, card("classification"), rows("classification"), max_steps=60)
    data = {"tests/copy": rows("classification", 40, seed=9)}
    cards = {"tests/copy": card("classification", name="tests/copy")}
    options = OPTIONS | {"max_steps": 1, "learning_rate": 1e-9}
    trainer = Trainer(registry, **options)
    fresh = trainer.fit(data, cards)["tests/copy"]
    begun = trainer.fit(data, cards, init_from={"tests/copy": "tests/classification"})["tests/copy"]
    assert begun.validation_loss < 0.5 * fresh.validation_loss
    assert begun.metric >= first.metric - 0.25
    other = card("classification", name="tests/copy", labels=["red", "green", "blue", "black", "pink"])
    trainer.fit(data, {"tests/copy": other}, init_from={"tests/copy": "tests/classification"})  # its own head
    with pytest.raises(InputError, match=r"same method, rank and targets\. .*which differs"):
        Trainer(registry, **options | {"rank": 8}).fit(data, cards, init_from={"tests/copy": "tests"})
    with pytest.raises(InputError, match=r"`init_from` names tasks that are trained here\. Found tests/none"):
        trainer.fit(data, cards, init_from={"tests/none": "tests"})
