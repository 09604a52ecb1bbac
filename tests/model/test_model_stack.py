"""A task that stands on its group's adapter answers as PEFT does with both of them active."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_hub import Hub, build, random_adapter, tokens
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub.adapter import content_hash
from adapterhub.errors import IntegrityError, TaskNotFoundError
from adapterhub.route import Route
from adapterhub.task import Task

TEXT = "mood: the stone is blue."


def stacked(folder: Path, stack: dict[str, str]) -> Path:
    """The same adapter, sealed as trained on top of others."""
    path = folder / "adapterhub.json"
    seal = json.loads(path.read_text())
    seal |= {"format": 2, "stack": [{"task": name, "sha256": sha256} for name, sha256 in stack.items()]}
    path.write_text(json.dumps(seal))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """The group `words` has an adapter, and `words/mood` and `words/size` stand on it."""
    hub = build(tmp_path)
    base, registry = hub.base, hub.registry
    group = registry.add(
        Task("words", "Words.", base_model="_base"), random_adapter(base, "words/colour", tmp_path / "w", 7)
    )
    for seed, name in enumerate(("words/mood", "words/size")):
        child = stacked(random_adapter(base, name, tmp_path / f"c{seed}", 20 + seed), {"words": str(group.sha256)})
        fields = registry[name].to_dict() | {"stack": ["words"]}
        registry.add(Task.from_dict(name, {k: v for k, v in fields.items() if k not in ("adapter", "sha256", "name")}),
                     child, replace=True)  # fmt: skip
    return hub


def reference(hub: Hub, name: str, below: Path, scratch: Path) -> torch.Tensor:
    """Logits of bare PEFT with a task's adapter on a base that another one was merged into."""
    base = AutoModelForCausalLM.from_pretrained(hub.base, dtype=torch.float32)
    PeftModel.from_pretrained(base, below).merge_and_unload().save_pretrained(scratch)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hub.base / file, scratch / file)
    with torch.no_grad():
        return replace(hub, base=scratch).reference(name)(**tokens(hub, TEXT)).logits[0]


def test_a_route_to_a_child_runs_its_group_as_well(hub: Hub, tmp_path: Path) -> None:
    engine, placement = hub.model.engine, hub.model._placement
    placed = placement.place(Route.to("words/mood"))
    ids = tokens(hub, TEXT)
    (found,) = engine.forward(ids["input_ids"], ids["attention_mask"], [placed])
    group = hub.registry.adapter_path("words")
    assert group is not None
    torch.testing.assert_close(found, reference(hub, "words/mood", group, tmp_path / "merged"), rtol=1e-4, atol=1e-5)
    alone = Route((placed.adapters[0],), (1.0,))
    (other,) = engine.forward(ids["input_ids"], ids["attention_mask"], [alone])
    assert (found - other).abs().max() > 0.1  # the group's adapter counts
    answer = hub.model.predict(TEXT)
    assert answer["task"] == "words/mood"
    assert answer["adapters"] == [{"name": "words/mood", "gate": 1.0}, {"name": "words", "gate": 1.0}]


def test_a_merged_model_has_what_its_tasks_stand_on(hub: Hub, tmp_path: Path) -> None:
    card = replace(hub.registry["words/colour"], name="words/shade", stack=("words",), adapter=None, sha256=None)
    folder = random_adapter(hub.base, "words/colour", tmp_path / "shade", 41)
    hub.registry.add(card, stacked(folder, {"words": str(hub.registry["words"].sha256)}))
    route = Route(("words/shade", "words/colour"), (0.75, 0.25))
    ids = tokens(hub, TEXT)
    placed = hub.model._placement.place(route)
    assert len(placed.adapters) == 3
    (expected,) = hub.model.engine.forward(ids["input_ids"], ids["attention_mask"], [placed])
    plain = hub.model.merge(route)
    with torch.no_grad():
        torch.testing.assert_close(plain(**ids).logits[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TaskNotFoundError):
        hub.model.merge(Route.to("words/nothing"))
    hub.registry.add(Task("words/bare", "Bare.", base_model="_base"))
    with pytest.raises(TaskNotFoundError, match="needs an adapter to answer"):
        hub.model.merge(Route.to("words/bare"))


def test_siblings_of_a_mixture_share_their_group(hub: Hub) -> None:
    placed = hub.model._placement.place(Route(("words/mood", "words/size"), (0.75, 0.25)))
    assert hub.model._placement.spelled(placed) == (("words/mood", 0.75), ("words", 1.0), ("words/size", 0.25))


def test_a_child_keeps_the_version_of_its_group(hub: Hub, tmp_path: Path) -> None:
    before = hub.model.predict(TEXT)
    old = hub.registry["words"]
    new = random_adapter(hub.base, "words/colour", tmp_path / "newer", 99)
    hub.registry.add(old, new, replace=True)
    assert hub.model.predict(TEXT) == before
    fresh = type(hub.model)(hub.model.engine, hub.model.tokenizer, hub.registry, hub.model.router)
    assert fresh.predict(TEXT) == before
    _, below = fresh._placement.place(Route.to("words/mood")).adapters
    assert below == f"words@{old.sha256}" != f"words@{content_hash(new)}"
    assert fresh._placement.place(Route.to("words")).adapters == (f"words@{content_hash(new)}",)
    shutil.rmtree(hub.registry.store.home("words") / "v1")
    with pytest.raises(IntegrityError, match="another adapter stands on the one with sha256"):
        type(hub.model)(hub.model.engine, hub.model.tokenizer, hub.registry, hub.model.router).predict(TEXT)
