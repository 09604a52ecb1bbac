from __future__ import annotations

import numpy as np
import pytest
from router_world import DIMENSION, FakeRegistry, vectors
from test_router import NAMES, Hub, scores

from adapterhub.router import Epoch, Router, Sums, _fit


@pytest.fixture
def hub():
    return Hub()


def grown(hub, tasks=30, count=12):
    for number in range(tasks):
        hub.registry.add(hub.new_task(f"more/task-{number}", count=count))
    return hub


def test_refit_takes_the_hub_in_and_is_independent_of_order(hub):
    router = grown(hub).router()
    before, epoch = scores(router, hub.texts), router.epoch
    router.refit()
    assert scores(router, hub.texts) != before
    assert router.epoch != epoch
    assert {decision.epoch for decision in router.decide(hub.texts)} == {router.epoch}
    assert [route.adapters[0] for route in router.route(hub.texts)] == [text.split()[0] for text in hub.texts]
    tasks = hub.registry.tasks
    hub.registry = FakeRegistry()
    for task in reversed(tasks.values()):
        hub.registry.add(task)
    other = hub.router()
    other.refit()
    assert scores(other, hub.texts) == scores(router, hub.texts)
    assert other.threshold == router.threshold


def test_small_tasks_do_not_shape_a_refit_beside_a_background(hub):
    for name, task in hub.registry.tasks.items():
        hub.registry.add(vectors(name, task.examples[:9]))
    router = hub.router()
    before = scores(router, hub.texts)
    router.refit()
    assert scores(router, hub.texts) == before


def test_a_hub_that_does_not_fit_into_memory_is_sampled(hub, monkeypatch):
    grown(hub)
    whole = hub.router()
    whole.refit()
    monkeypatch.setattr(_fit, "BATCH", 3)
    batched = hub.router()
    batched.refit()
    assert scores(batched, hub.texts) == scores(whole, hub.texts)  # as long as all of it fits
    monkeypatch.setattr(_fit, "MOST_HELD", 10)
    held = hub.router()
    held.refit()
    assert held.threshold != whole.threshold
    for one, other in zip(scores(held, hub.texts), scores(whole, hub.texts), strict=True):
        assert one == pytest.approx(other, abs=0.1)  # the statistics are of all tasks; sums in another order
    monkeypatch.setattr(_fit, "MOST_TASKS", 20)
    sampled = hub.router()
    sampled.refit()
    assert scores(sampled, hub.texts) != scores(held, hub.texts)
    assert [route.adapters[0] for route in sampled.route(hub.texts)] == [text.split()[0] for text in hub.texts]


def test_no_more_examples_are_kept_than_there_is_room_for(hub, monkeypatch):
    grown(hub)
    monkeypatch.setattr(_fit, "MOST_HELD_EXAMPLES", 100)
    seen = []
    cross_fit = _fit.cross_fit
    monkeypatch.setattr(_fit, "cross_fit", lambda known, fit: seen.append(known) or cross_fit(known, fit))
    hub.router().refit()
    assert sum(len(examples) for examples, _ in seen[0]) == 96


@pytest.mark.parametrize("examples", [0, 1, 2, 12])
@pytest.mark.parametrize("tasks", [0, 1, 2, 5])
def test_without_a_background_a_hub_of_any_size_works(hub, examples, tasks):
    registry = FakeRegistry()
    for name in NAMES[:tasks]:
        registry.add(vectors(name, hub.registry.tasks[name].examples[:examples], hub.means[name]))
    router = Router(registry, hub.encoder)
    decisions = router.decide([*hub.texts, "far"], 2)
    found = [[decision.none_probability, *(c.probability for c in decision.candidates)] for decision in decisions]
    assert np.isfinite(found).all()
    assert all(len(decision.candidates) == tasks for decision in decisions)
    if tasks == 5:
        right = [d.candidates[0].task == text.split()[0] for d, text in zip(decisions, hub.texts, strict=False)]
        assert np.mean(right) > 0.8


def test_without_a_background_many_examples_give_statistics_of_its_own(hub, monkeypatch):
    """Of how texts of one task differ; of how tasks do, where there are many tasks."""
    grown(hub)
    monkeypatch.setattr(_fit, "MANY_TASKS", 20)
    assert np.ptp(Router(hub.registry, hub.encoder)._listener.era.epoch.psi) > 1
    monkeypatch.undo()
    router = Router(hub.registry, hub.encoder)
    assert np.ptp(router._listener.era.epoch.psi) < 1e-9
    lengths = np.linalg.norm(router._listener.era.epoch.transform, axis=0)
    assert lengths.max() > 1.5 * lengths.min()
    assert len(router._listener.era.epoch.mu) == DIMENSION
    assert np.isfinite(router.threshold)
    assert router.decide(["far"])[0].kind == "none"
    best = [decision.candidates[0].task for decision in router.decide(hub.texts)]
    assert best == [text.split()[0] for text in hub.texts]


def known_of(hub, tasks, means, count=20):
    """Tasks around these means, and what sums them."""
    return [(hub.world.texts(means(), count), None) for _ in range(tasks)]


def losses(hub, known):
    """Of both ways beside the background."""
    ways = _fit.ways_beside(hub.background.sums)

    def summed(kept):
        return Sums.of(kept, DIMENSION)

    return [_fit.chosen(known, [way], summed)[1].loss for way in ways], ways, summed


@pytest.mark.parametrize(("world", "scale", "best"), [((1, 0.7), 1.0, 0), ((0, 0.5), 0.3, 1)])
def test_a_refit_beside_a_background_keeps_the_covariances_that_held_out_examples_like(world, scale, best):
    """In a hub of a narrow domain tasks lie closer together than the background's, and it says so."""
    hub = Hub((), *world)
    centre = hub.world.mean()
    known = known_of(hub, 40, lambda: centre + scale * (hub.world.mean() - centre))
    loss, ways, summed = losses(hub, known)
    way, calibration = _fit.chosen(known, ways, summed)
    assert calibration.loss == loss[best] < loss[1 - best]
    assert way is ways[best]
    assert _fit.chosen(known, ways[::-1], summed)[0] is way


def test_where_too_little_can_be_held_out_the_tasks_means_say_nothing(hub):
    known = known_of(hub, 3, hub.world.mean, 10)
    _, ways, summed = losses(hub, known * 2)
    way, calibration = _fit.chosen(known, ways, summed)
    assert calibration is None
    foreign, own = hub.background.sums, summed([examples for examples, _ in known])
    whole = foreign + own.within()
    assert way(own).fingerprint == Epoch.fit(whole).fingerprint
    assert (whole.tasks, whole.inverse_counts) == (foreign.tasks, foreign.inverse_counts)
    assert whole.freedom == foreign.freedom + own.freedom
    np.testing.assert_array_equal(whole.outers, foreign.outers)
