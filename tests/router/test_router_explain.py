from __future__ import annotations

import numpy as np
import pytest
from router_world import calibration_of, vectors
from test_router import NAMES, Hub

from adapterhub.router import Background


@pytest.fixture
def hub():
    return Hub()


def test_an_explanation_is_of_the_decision_that_is_made(hub):
    router = hub.router()
    for text in [*hub.texts, "far"]:
        assert router.explain(text).decision == router.decide([text])[0]


def test_the_nearest_examples_are_those_of_the_best_tasks_with_their_texts(hub):
    text = hub.texts[0]
    found = hub.router().explain(text)
    best = [candidate.task for candidate in found.decision.candidates[:3]]
    assert [near.task for near in found.nearest] == [task for task in best for _ in range(2)]
    query = hub.encoder.table[text]
    for task in best:
        examples = hub.registry.tasks[task].examples
        cosines = examples @ query / np.linalg.norm(examples, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosines)[:2]
        mine = [near for near in found.nearest if near.task == task]
        assert [near.text for near in mine] == [f"{task} example {at}" for at in order]
        assert [near.cosine for near in mine] == pytest.approx(list(cosines[order]), abs=1e-5)


def test_the_directions_add_up_to_what_the_text_says(hub):
    """The contrast of all directions is the difference of the scores, but for what is the same for every text."""
    from adapterhub.router import _explain

    hub.encoder.table["moved"] = hub.encoder.table[hub.texts[0]] * 1.1
    router = hub.router()
    size = len(router._listener.era.epoch.psi)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_explain, "DIRECTIONS", size)
        one, other = (router.explain(text) for text in (hub.texts[0], "moved"))
    assert one.next.task == other.next.task == one.decision.candidates[1].task
    sums = [sum(nats for _, nats in found.next.directions) for found in (one, other)]
    assert one.next.difference - other.next.difference == pytest.approx(sums[0] - sums[1], abs=0.05)
    assert one.next.difference == one.decision.candidates[0].score - one.decision.candidates[1].score
    assert [abs(nats) for _, nats in one.next.directions] == sorted((abs(n) for _, n in one.next.directions))[::-1]


def test_the_branch_down_to_the_best_task_is_told(hub):
    found = hub.router().explain("reasoning/math/sums 0")
    assert [group for group, _ in found.path] == ["reasoning", "reasoning/math"]
    assert dict(found.path).items() <= dict(found.decision.branches).items()
    assert "branch: reasoning" in str(found)


def test_a_sure_text_a_far_one_and_an_ambiguous_one_read_differently(hub):
    router = hub.router()
    sure = str(router.explain("knowledge/world 0"))
    assert "knowledge/world: clearly first." in sure
    assert 'like "knowledge/world example' in sure
    assert "times likelier; most by the directions" in sure
    far = str(router.explain("far"))
    assert "below the threshold" in far
    assert "the base model answers" in far


def test_twins_are_said_to_be_alike(hub):
    """As translation to German and to French are, without the instruction."""
    hub.registry.add(vectors("knowledge/twin", hub.registry.tasks["knowledge/world"].examples[::-1]))
    hub.background = Background("fake", hub.background.sums, calibration_of(1.5, np.arange(-99.0, 0), np.full(99, 0.9)))
    found = hub.router().explain("knowledge/world 0")
    assert found.decision.kind == "ambiguous"
    assert found.decision.margin == pytest.approx(1, abs=0.01)
    assert found.decision.ambiguous_with == ("knowledge/twin",)
    assert found.next.alike == pytest.approx(1, abs=1e-6)
    said = str(found)
    assert "cannot be told apart from knowledge/twin" in said
    assert "too little to tell them apart: their examples look the same" in said
    assert "Say in the text what is to be done" in said


def test_a_branch_that_answers_says_why(hub):
    hub.registry.add(vectors("knowledge/world/one", hub.registry.tasks["knowledge/world"].examples))
    said = str(hub.router().explain("knowledge/world 0"))
    assert "knowledge/world: no task is sure, but" in said


def test_a_cold_task_asks_for_an_example(hub):
    hub.registry.remove("knowledge/world")
    hub.registry.add(vectors("cold/task", [], hub.means["knowledge/world"]))
    found = hub.router().explain("knowledge/world 0")
    assert found.decision.cold == ("cold/task",)
    assert "cold/task has no example yet" in str(found)
    assert not [near for near in found.nearest if near.task == "cold/task"]


def test_a_card_that_has_changed_since_shows_no_wrong_example(hub):
    router = hub.router()
    del hub.registry.cards[NAMES[2]]
    hub.registry.add(hub.registry.tasks[NAMES[2]], texts=[f"other {row}" for row in range(12)])
    stale = hub.registry.catalog._vectors
    number = hub.registry.catalog.get(NAMES[2]).id
    stale[number] = vectors(NAMES[2], stale[number].examples)  # of another content
    stale[number] = stale[number].__class__(**{**stale[number].__dict__, "id": number})
    assert not [near for near in router.explain("knowledge/world 0").nearest if near.task == NAMES[2]]


@pytest.mark.parametrize("count", [0, 1])
def test_hubs_of_no_or_one_task_are_explained_too(count):
    hub = Hub(order=NAMES[:count])
    found = hub.router().explain("far")
    assert found.next is None
    assert ("no task here" in str(found)) == (count == 0)
