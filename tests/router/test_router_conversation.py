from __future__ import annotations

import numpy as np
import pytest
from router_world import vectors
from test_router import NAMES, Hub

from adapterhub.errors import InputError
from adapterhub.router import _conversation
from adapterhub.router._calibration import Bound
from adapterhub.router._decide import Rules


def rules(temperature=1.0):
    return Rules(temperature, (Bound(0, 0.0, 1.0),), "top1", 1)


def summed(scores, rules, decay):
    """Where every turn has to score 0."""
    return _conversation.summed(scores, [0.0] * len(scores), rules, decay)


@pytest.fixture
def hub():
    return Hub()


def test_one_turn_is_one_text(hub):
    router = hub.router(policy="mixture")
    for text in [*hub.texts, "far"]:
        assert router.decide_conversation([text], 3) == router.decide([text], 3)[0]


def test_evidence_adds_up_over_the_turns():
    """Two tasks so near one another that one text often goes to the wrong one, and eight seldom."""
    hub = Hub(order=())
    world = hub.world
    mean = world.mean()
    near = mean + 0.05 * (world.mean() - mean)
    for name, centre in (("near/one", mean), ("near/two", near)):
        hub.registry.add(vectors(name, world.texts(centre, 40)))
    router, right, chance = hub.router(), {1: 0, 8: 0}, {1: 0.0, 8: 0.0}
    for talk in range(40):
        turns = [f"turn {talk} {number}" for number in range(8)]
        hub.encoder.table.update(zip(turns, world.texts(mean, 8), strict=True))
        for count in right:
            decision = router.decide_conversation(turns[-count:], decay=1.0)
            right[count] += decision.candidates[0].task == "near/one"
            chance[count] += {c.task: c.probability for c in decision.candidates}["near/one"] / 40
            assert decision.turns == count or count == 8
    assert 20 < right[1] < 38
    assert right[8] >= right[1] + 2
    assert chance[8] > chance[1] + 0.05
    assert chance[8] < right[8] / 40 + 0.05  # no surer than it is right


def test_certainty_lies_between_that_of_repeated_and_that_of_independent_turns():
    scores = np.array([[3.0, 1.0]] * 4)
    start, mean, evidence, temperature = summed(scores, rules(2.0), 1.0)
    assert (start, temperature) == (0, 1.0)  # 2 for repeated ones, 0.5 for independent ones
    np.testing.assert_allclose(mean, [3.0, 1.0])
    np.testing.assert_allclose(evidence, mean)
    assert summed(scores, rules(2.0), 0.5)[3] == pytest.approx(2 / np.sqrt(1.875))


def test_older_turns_weigh_less():
    scores = np.array([[1.0, 0.0], [0.0, 0.4]])
    assert summed(scores, rules(4.0), 1.0)[2].argmax() == 0
    assert summed(scores, rules(4.0), 0.3)[2].argmax() == 1


def test_where_no_turn_fits_all_of_them_count():
    scores = np.array([[-9.0, -3.0], [-1.0, -8.0]])
    start, mean, evidence, temperature = summed(scores, rules(2.0), 1.0)
    assert (start, temperature) == (0, pytest.approx(2 / np.sqrt(2)))
    np.testing.assert_allclose(evidence, mean)
    assert summed(np.empty((3, 0)), rules(2.0), 0.8)[0] == 0  # no task at all


def test_a_foreign_turn_has_no_say_in_which_task_it_is():
    """Its scores differ wildly between tasks that are all far away."""
    scores = np.array([[9.0, 3.0], [-900.0, -300.0]])
    start, mean, evidence, temperature = summed(scores, rules(2.0), 0.8)
    assert start == 0
    assert evidence.argmax() == 0
    assert mean[0] < -400  # but the two together do not fit it
    assert temperature == pytest.approx(2 / np.sqrt(0.8))  # and it is a while ago


def test_a_turn_that_clearly_belongs_elsewhere_begins_anew(hub):
    router = hub.router()
    turns = [f"{NAMES[0]} 0", f"{NAMES[0]} 1", f"{NAMES[0]} 2", f"{NAMES[2]} 0"]
    decision = router.decide_conversation(turns)
    assert (decision.turns, decision.candidates[0].task) == (1, NAMES[2])
    assert decision == router.decide([turns[-1]])[0]
    later = router.decide_conversation([*turns, f"{NAMES[2]} 1"])
    assert later.turns == 2
    assert later == router.decide_conversation([turns[-1], f"{NAMES[2]} 1"])


def test_a_turn_that_belongs_nowhere_changes_no_subject(hub):
    """`thanks, and the next one?` after three turns of one task stays with that task."""
    router = hub.router()
    decision = router.decide_conversation([*(f"{NAMES[0]} {number}" for number in range(3)), "far"])
    assert (decision.turns, decision.candidates[0].task) == (4, NAMES[0])


@pytest.mark.parametrize(
    ("scores", "heard"),
    [
        ([[9, 0], [0, 9]], 1),
        ([[9, 0], [0, 5]], 1),  # log 100 is 4.6
        ([[9, 0], [0, 4]], 2),
        ([[9, 0], [-9, -1]], 2),  # below the threshold: the newest turn belongs nowhere
        ([[9, 0], [0, 9], [9, 0]], 1),
        ([[9, 0], [0, 9], [0, 8]], 2),
        ([[9, 0]], 1),
    ],
)
def test_when_turns_are_forgotten(scores, heard):
    assert len(scores) - summed(np.array(scores, dtype=float), rules(), 0.8)[0] == heard


def test_the_order_of_tasks_does_not_matter(hub):
    turns = [hub.texts[at] for at in (0, 3, 1, 2)]
    found = hub.router().decide_conversation(turns, 3)
    other = Hub(order=reversed(NAMES))
    assert other.router().decide_conversation(turns, 3) == found


def test_beyond_the_shortlist_every_turn_scores_the_same_tasks(hub, monkeypatch):
    turns = [hub.texts[0], hub.texts[1], hub.texts[4]]
    expected = hub.router().decide_conversation(turns)
    monkeypatch.setattr("adapterhub.router._hearing.SHORTLIST", 2)
    found = hub.router().decide_conversation(turns)
    known = {candidate.task: candidate.score for candidate in expected.candidates}
    assert 2 <= len(found.candidates) < 5
    assert {candidate.task: candidate.score for candidate in found.candidates}.items() <= known.items()


def test_a_new_task_moves_no_score_of_a_conversation(hub):
    router, turns = hub.router(), hub.texts[:3]
    before = {c.task: c.score for c in router.decide_conversation(turns).candidates}
    hub.registry.add(vectors("a/new", hub.world.texts(hub.world.mean(), 6)))
    after = {c.task: c.score for c in router.decide_conversation(turns).candidates}
    assert {name: after[name] for name in before} == before


def test_bad_input(hub):
    router = hub.router()
    with pytest.raises(InputError, match="at least one turn"):
        router.decide_conversation([])
    with pytest.raises(InputError, match="list of strings"):
        router.decide_conversation("far")
    with pytest.raises(InputError, match="row 1"):
        router.decide_conversation(["far", ""])
    for decay in (0.0, 1.1, -1.0, float("nan")):
        with pytest.raises(InputError, match="`decay`"):
            router.decide_conversation(["far"], decay=decay)
