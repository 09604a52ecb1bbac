from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_router import NAMES, Hub

from adapterhub.route import Route
from adapterhub.router import Candidate, Decision
from adapterhub.router._chunks import MOST_CHUNKS, MOST_WORDS, split, united


class Spoken(Hub):
    """Every text of the table is a sentence of its own."""

    def __init__(self):
        super().__init__()
        self.encoder.table = {f"{text} is asked here.": row for text, row in self.encoder.table.items()}

    def sentence(self, name, number=0):
        return f"{name} {number} is asked here."


@pytest.fixture
def hub():
    return Spoken()


FAR = "far is asked here."


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Translate this to German: I am late.", ["Translate this to German: I am late."]),
        ("What is 3.5 plus 2? The sky is blue today.", ["What is 3.5 plus 2?", "The sky is blue today."]),
        ('He said "come here now!" And nobody came.', ['He said "come here now!"', "And nobody came."]),
        ("first line without a stop\n\n  second line here", ["first line without a stop", "second line here"]),
        ("Yes. Translate the next sentence.", ["Yes. Translate the next sentence."]),
        ("Translate the next sentence. Thanks!", ["Translate the next sentence. Thanks!"]),
        (
            "这是第一个句子，比较长一些。这是第二个句子，也比较长。",
            ["这是第一个句子，比较长一些。", "这是第二个句子，也比较长。"],
        ),
        ("  x  ", ["x"]),
    ],
)
def test_where_a_text_is_cut(text, pieces):
    assert [piece for _, piece in split(text)] == pieces


@given(st.text(alphabet='ab. !?\n\t"。', min_size=1).filter(str.strip), st.integers(1, 6))
def test_the_pieces_hold_every_visible_character_in_order(text, most):
    found = split(text, most)
    assert 1 <= len(found) <= most
    assert all(piece and piece == piece.strip() == text[start : start + len(piece)] for start, piece in found)
    assert re.sub(r"\s", "", "".join(piece for _, piece in found)) == re.sub(r"\s", "", text)


def test_long_texts_are_cut_between_words_and_into_few_pieces():
    (_, first), *rest = split("word " * 200)
    assert len(first.split()) == MOST_WORDS
    assert sum(len(piece.split()) for _, piece in rest) == 120
    assert len(split("This is a sentence of its own. " * 500)) == MOST_CHUNKS


def test_one_sentence_is_decided_as_it_is(hub):
    router = hub.router()
    for text in hub.encoder.table:
        parts = router.decide_parts(text)
        (decision,) = router.decide([text])
        assert [part.decision for part in parts.parts] == [decision]
        assert parts.route == decision.route


def test_a_mixed_text_gets_the_union_of_what_its_parts_ask_for(hub):
    text = f"{hub.sentence(NAMES[0])} {FAR} {hub.sentence(NAMES[2])}\n{hub.sentence(NAMES[0], 1)}"
    found = hub.router().decide_parts(text)
    assert set(found.route.adapters) == {NAMES[0], NAMES[2]}
    assert found.route.gates == (1.0, 1.0)
    assert [part.decision.kind for part in found.parts] == ["sure", "none", "sure", "sure"]
    assert [text[part.start : part.start + len(part.text)] for part in found.parts] == [p.text for p in found.parts]
    for adapter, index in zip(found.route.adapters, found.evidence, strict=True):
        mine = [c.probability for part in found.parts for c in part.decision.candidates[:1] if c.task == adapter]
        assert found.parts[index].decision.candidates[0].task == adapter
        assert found.parts[index].decision.candidates[0].probability == max(mine)


def test_the_best_parts_are_kept_where_more_ask_than_there_is_room_for(hub):
    text = " ".join(hub.sentence(name) for name in NAMES)
    router = hub.router()
    whole = router.decide_parts(text, k=5)
    assert set(whole.route.adapters) == set(NAMES)
    for k in (1, 3):
        few = router.decide_parts(text, k=k)
        assert few.route.adapters == whole.route.adapters[:k]
        assert few.evidence == whole.evidence[:k]


def test_permuting_the_parts_permutes_the_evidence(hub):
    texts = [hub.sentence(NAMES[0]), FAR, hub.sentence(NAMES[3])]
    router = hub.router()
    there, back = router.decide_parts(" ".join(texts)), router.decide_parts(" ".join(reversed(texts)))
    assert there.route == back.route
    assert [2 - index for index in there.evidence] == list(back.evidence)


def test_nothing_fits_nothing_is_asked(hub):
    found = hub.router().decide_parts(f"{FAR} {FAR}")
    assert (found.route, found.evidence) == (Route(), ())


def test_every_part_has_the_promise_of_one_text(hub):
    router = hub.router(alpha=0.1)
    for count in (1, 2, 4):
        parts = router.decide_parts(" ".join([FAR] * count)).parts
        assert [part.decision.threshold for part in parts] == [router.threshold] * count


def asking(*claims):
    """Decisions as (kind, task, probability), in the order of the parts."""
    decisions = []
    for kind, task, probability in claims:
        candidates = (Candidate(task, 1.0, probability),)
        masses = ((task, probability),)
        route = Route() if kind == "none" else Route.to(task)
        decisions.append(Decision("text", route, candidates, 0.0, 0.0, kind, masses))
    return united("text", [(0, "text")] * len(claims), decisions, 3)


def test_filler_between_sure_parts_is_left_out():
    found = asking(("ambiguous", "a", 0.4), ("sure", "b", 0.6), ("none", "c", 0.9), ("branch", "d", 0.8))
    assert (found.route.adapters, found.evidence) == (("d", "b"), (3, 1))


def test_where_no_part_is_sure_the_best_one_answers_alone():
    found = asking(("ambiguous", "a", 0.3), ("ambiguous", "b", 0.4), ("none", "c", 0.9))
    assert (found.route.adapters, found.evidence) == (("b",), (1,))
    assert asking(("none", "c", 0.9)).route == Route()
    tied = asking(("ambiguous", "a", 0.4), ("ambiguous", "b", 0.4))
    assert (tied.route.adapters, tied.evidence) == (("a",), (0,))
