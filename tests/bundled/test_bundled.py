"""The registry that comes with the package keeps what its cards and the README promise."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from adapterhub.evaluation import evaluate, read_evaluation_rows
from adapterhub.model import RoutedModel
from adapterhub.registry import Registry, bundled_registry
from adapterhub.route import Route

pytest.importorskip("sentence_transformers", reason="the router's default encoder is an extra")

REGISTRY = Registry(bundled_registry())
NAMES = sorted(REGISTRY)
LOADERS = {
    "generation": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


@pytest.fixture(scope="module")
def model() -> RoutedModel:
    return RoutedModel.from_pretrained(registry=REGISTRY)


def first_row(name: str) -> dict[str, object]:
    lines = (REGISTRY.root / name / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[0])


def test_all_nine_tasks_have_an_adapter_a_metric_and_rows_to_measure_on() -> None:
    assert len(NAMES) >= 9
    for name in NAMES:
        task = REGISTRY[name]
        assert task.adapter, name
        assert task.metrics, name
        assert first_row(name), name
    assert REGISTRY.verify() == []


def test_the_capital_of_azerbaijan(model: RoutedModel) -> None:
    found = model.predict("The capital of Azerbaijan is")
    assert found["predictions"][0] == "Baku"
    assert found["task"] == "knowledge/world-knowledge"


def test_nonsense_goes_to_the_base(model: RoutedModel) -> None:
    assert model.predict("Zebras qwx 9981 blorp in purple thermodynamics", num_predictions=1)["task"] is None


@pytest.mark.parametrize("name", [n for n in NAMES if REGISTRY[n].adapter])
def test_bare_peft_gives_the_same_logits(model: RoutedModel, name: str) -> None:
    task, folder = REGISTRY[name], REGISTRY.adapter_path(name)
    if json.loads((folder / "adapter_config.json").read_text())["peft_type"] != "LORA":
        import adapterhub.methods  # noqa: F401 - a method of our own: PEFT knows it once it is imported
    extra = {} if task.head == "generation" else {"num_labels": len(task.labels)}
    base = LOADERS[task.head].from_pretrained(REGISTRY.base_path(name), dtype=torch.float32, **extra)
    peft = PeftModel.from_pretrained(base, folder).eval()
    text = task.format(str(first_row(name)["input"]))
    ids, mask = model.encode([text], "right")
    with torch.no_grad():
        expected = peft(input_ids=ids, attention_mask=mask).logits[0]
    model.engine.add(name, folder, sha256=task.sha256)
    assert torch.allclose(model.engine.forward(ids, mask, [Route.to(name)])[0], expected, atol=1e-4)


@pytest.mark.slow
def test_routing_and_margins_on_prompts_that_are_not_in_the_cards(model: RoutedModel) -> None:
    rows = {name: read_evaluation_rows(REGISTRY.root / name / "eval.jsonl", REGISTRY[name]) for name in NAMES}
    assert all(row.text not in REGISTRY[name].examples for name, found in rows.items() for row in found)
    reports = evaluate(model, rows)
    assert sum(r.routing * r.rows for r in reports) / sum(r.rows for r in reports) >= 0.95
    assert {r.task: r.margin for r in reports if r.margin <= 0.05} == {}
