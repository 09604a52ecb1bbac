from __future__ import annotations

import numpy as np
import pytest
from router_world import vectors
from test_router import NAMES, Hub, scores

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.router import Impact, Loss
from adapterhub.router._impact import _tail
from adapterhub.task import Task


@pytest.fixture
def hub():
    return Hub()


def card(hub, name, examples, description=None):
    """A task whose texts the encoder knows."""
    texts = tuple(f"{name} new {row}" for row in range(len(examples)))
    hub.encoder.table.update(zip(texts, examples, strict=True))
    hub.encoder.table[f"Do {name}."] = hub.world.mu if description is None else description
    return Task(name, f"Do {name}.", texts)


def grown(hub, tasks=20):
    for number in range(tasks):
        hub.registry.add(hub.new_task(f"more/task-{number}", 12))
    return hub


def test_a_task_elsewhere_takes_nothing(hub):
    impact = grown(hub).router().what_if(card(hub, "new/task", hub.world.texts(hub.world.mean(), 12)))
    assert (impact.taken, impact.losses, impact.twins) == (0, (), ())
    assert impact.share == 0
    assert impact.looked_at == 25
    assert impact.tried == sum(task.count for task in hub.registry.tasks.values())
    impact.refuse(0.0)


def test_nothing_is_changed(hub):
    router = hub.router()
    texts = hub.texts
    before, seq = scores(router, texts), hub.registry.catalog.seq
    router.what_if(card(hub, NAMES[0], hub.registry.tasks[NAMES[2]].examples))
    assert (scores(router, texts), hub.registry.catalog.seq) == (before, seq)


def test_a_copy_takes_the_examples_of_what_it_copies_and_is_named(hub):
    task = hub.registry.tasks["knowledge/world"]
    impact = grown(hub).router().what_if(card(hub, "new/copy", task.examples))
    (loss,) = impact.losses
    assert (loss.task, loss.tried) == ("knowledge/world", 12)
    assert loss.taken >= 10
    assert loss.texts[0].startswith("knowledge/world example ")
    (twin,) = impact.twins
    assert twin.task == "knowledge/world"
    assert twin.likeness > 0
    assert twin.cosine == pytest.approx(1, abs=1e-4)
    assert len(twin.same) == 12
    with pytest.raises(InputError, match=r"2\.0%(.|\n)*knowledge/world loses") as caught:
        impact.refuse()
    assert "`--max-steal`" in str(caught.value)
    impact.refuse(1.0)
    assert "nearly repeats knowledge/world" in str(impact)
    assert "12 examples in common" in str(impact)


def test_other_examples_of_the_same_task_are_a_near_duplicate_too(hub):
    fresh = hub.world.texts(hub.means["knowledge/world"], 12)
    impact = grown(hub).router().what_if(card(hub, "new/same", fresh))
    assert [twin.task for twin in impact.twins] == ["knowledge/world"]
    assert impact.twins[0].same == ()
    assert [loss.task for loss in impact.losses] == ["knowledge/world"]
    assert impact.losses[0].share > 0.2


def test_what_is_said_to_be_taken_is_taken():
    """The slow reference: each task rebuilt without the example, with and without the new task."""
    hub = grown(Hub(spread=0.5), 3)
    mean = hub.means[NAMES[0]] + 0.1 * (hub.means[NAMES[2]] - hub.means[NAMES[0]])
    new = card(hub, "new/between", hub.world.texts(mean, 12), mean)
    impact = hub.router().what_if(new)
    expected = {}
    for name, task in hub.registry.tasks.items():
        taken = 0
        for row in range(task.count):
            other = Hub(order=())
            other.world, other.background = hub.world, hub.background
            for each in hub.registry.tasks.values():
                other.registry.add(each)
            other.registry.add(vectors(name, np.delete(task.examples, row, axis=0)))
            other.encoder.table["it"] = task.examples[row]
            router = other.router()
            before = router.decide(["it"])[0].candidates[0].task
            rows = [hub.encoder.table[text] for text in new.examples]
            other.registry.add(vectors("new/between", rows, hub.encoder.table[new.description]))
            taken += before == name and router.decide(["it"])[0].candidates[0].task == "new/between"
        if taken:
            expected[name] = taken
    assert {loss.task: loss.taken for loss in impact.losses} == expected
    assert expected


def test_prompts_are_tried_beside_the_examples(hub):
    task = hub.registry.tasks["knowledge/world"]
    texts = [text for text in hub.texts if text.startswith("knowledge/world")]
    new = card(hub, "new/copy", [hub.encoder.table[text] for text in texts] * 4)
    router = hub.router()
    without, given = router.what_if(new), router.what_if(new, {"knowledge/world": texts, "new/copy": ["unheard"]})
    assert given.tried == without.tried + 3
    assert given.taken > without.taken
    assert given.losses[0].tried == task.count + 3
    far = router.what_if(card(hub, "new/far", hub.world.texts(hub.world.mean(), 3)), {"knowledge/world": texts})
    assert far.taken == 0
    with pytest.raises(TaskNotFoundError, match="knowledge/word"):
        router.what_if(new, {"knowledge/word": texts})
    with pytest.raises(InputError, match="visible character"):
        router.what_if(new, {"knowledge/world": [""]})


def test_a_changed_task_is_held_against_the_others_and_against_what_it_was(hub):
    router, old = hub.router(), hub.registry.tasks["knowledge/world"]
    same = router.what_if(card(hub, "knowledge/world", old.examples))
    assert (same.taken, same.twins) == (0, ())
    changed = router.what_if(card(hub, "knowledge/world", hub.registry.tasks[NAMES[0]].examples))
    assert [loss.task for loss in changed.losses] == [NAMES[0]]
    assert changed.looked_at == 4


def test_only_tasks_near_it_are_read(hub, monkeypatch):
    grown(hub, 40)
    monkeypatch.setattr("adapterhub.router._impact.NEAR", 5)
    asked = hub.registry.catalog.asked
    router = hub.router()
    asked.clear()
    impact = router.what_if(card(hub, "new/copy", hub.registry.tasks["knowledge/world"].examples))
    assert impact.looked_at == 5
    assert [question for question in asked if question.startswith("vectors")] == ["vectors 5"]
    assert [loss.task for loss in impact.losses] == ["knowledge/world"]


def test_an_empty_hub_a_card_without_examples_and_tasks_without_adapters(hub):
    empty = Hub(order=())
    impact = empty.router().what_if(card(empty, "new/task", [], empty.world.mean()))
    assert (impact.tried, impact.share, impact.looked_at) == (0, 0.0, 0)
    impact.refuse(0.0)
    described = hub.router().what_if(card(hub, "new/cold", [], hub.means["knowledge/world"]))
    assert described.looked_at == 5
    hub.registry.add(hub.registry.tasks["knowledge/world"], adapter=False)
    assert hub.router().what_if(card(hub, "new/copy", hub.registry.tasks["knowledge/world"].examples)).taken == 0


@pytest.mark.parametrize("examples", [0, 1, 2])
def test_small_cards_are_tried_too(examples):
    hub = Hub(order=())
    for name, mean in hub.means.items():
        hub.registry.add(vectors(name, hub.world.texts(mean, examples), mean))
    impact = hub.router().what_if(card(hub, "new/copy", hub.world.texts(hub.means[NAMES[0]], 20)))
    assert impact.tried == 5 * examples
    assert np.isfinite(impact.share)
    assert NAMES[0] in {twin.task for twin in impact.twins}


@pytest.mark.parametrize(
    ("taken", "tried", "max_steal", "refused"),
    [
        (1, 20, 0.02, False),  # one of twenty is what chance brings
        (2, 20, 0.02, False),
        (3, 20, 0.02, True),
        (1, 1, 0.02, True),
        (1, 20, 0.0, True),
        (20, 20, 1.0, False),
        (0, 20, 0.0, False),
        (30, 2000, 0.02, False),
        (60, 2000, 0.02, True),
    ],
)
def test_refusal_is_beyond_chance(taken, tried, max_steal, refused):
    losses = (Loss("a/b", tried, taken, ("one",)),) if taken else ()
    impact = Impact("new/task", 1, losses, tried, ())
    assert bool(impact.beyond(max_steal)) == refused
    if refused:
        with pytest.raises(InputError, match="a/b loses"):
            impact.refuse(max_steal)
    else:
        impact.refuse(max_steal)


def test_many_small_losses_are_refused_together():
    losses = tuple(Loss(f"a/t{number}", 20, 1, ("one",)) for number in range(10))
    impact = Impact("new/task", 12, losses, 240, ())
    assert impact.beyond(0.02) == ()
    with pytest.raises(InputError, match="10 of the 240"):
        impact.refuse()


def test_the_tail_is_that_of_the_binomial():
    from math import comb

    for taken, tried, share in ((3, 20, 0.02), (1, 1, 0.5), (7, 9, 0.3)):
        exact = sum(comb(tried, n) * share**n * (1 - share) ** (tried - n) for n in range(taken, tried + 1))
        assert _tail(taken, tried, share) == pytest.approx(exact)
    assert _tail(500, 20_000, 0.02) < 1e-5
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="`max_steal`"):
            Impact("a", 0, (), 0, ()).refuse(bad)
