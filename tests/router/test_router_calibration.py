from __future__ import annotations

import math

import numpy as np
import pytest
from router_world import DIMENSION, World, calibration_of

from adapterhub.router import Calibration, Epoch, Sums
from adapterhub.router._calibration import NULL_PRIOR, Level, fit_temperature, posterior, together
from adapterhub.router._cross_fit import cross_fit


def alone(scores):
    """Calibrated on texts in hubs of one task."""
    return calibration_of(1.0, scores, np.full(len(scores), -np.inf))


def test_posterior_is_bayes_rule():
    scores = np.array([[1.0, -2.0, 0.5]])
    probabilities, none = posterior(scores, 3, 2.0)
    weights = np.append((1 - NULL_PRIOR) / 3 * np.exp(scores[0] / 2), NULL_PRIOR)
    np.testing.assert_allclose(np.append(probabilities[0], none), weights / weights.sum(), rtol=1e-12)
    weights[-1] *= np.exp(-7.0 / 2)
    probabilities, none = posterior(scores, 3, 2.0, null=-7.0)
    np.testing.assert_allclose(np.append(probabilities[0], none), weights / weights.sum(), rtol=1e-12)


def test_posterior_of_no_task_is_none_and_extremes_are_finite():
    probabilities, none = posterior(np.empty((2, 0)), 0, 4.0)
    assert probabilities.shape == (2, 0)
    np.testing.assert_array_equal(none, 1.0)
    probabilities, none = posterior(np.array([[1e6, -1e6]]), 2, 1.0)
    np.testing.assert_array_equal(np.append(probabilities, none), [1, 0, 0])


def test_threshold_is_the_conformal_order_statistic():
    scores = np.arange(99.0)[::-1]
    for alpha, expected in ((0.05, 4.0), (0.1, 9.0), (0.0, -math.inf)):  # the 5th and the 10th smallest of 99
        assert alone(scores).bounds(alpha, 1)[0].threshold == expected
    assert alone(np.arange(18.0)).bounds(0.05, 1)[0].threshold == -math.inf  # 19 would be the least


def test_what_tasks_score_together():
    scores = np.array([[1.0, -2.0, 0.5], [800.0, 700.0, -900.0]])
    expected = 3 * np.log(np.exp(scores[0] / 3).sum())
    np.testing.assert_allclose(together(scores, 3.0), [expected, 800.0], rtol=1e-12)
    assert together(np.empty((2, 0)), 3.0).tolist() == [-math.inf] * 2


def hub_of_its_own_size(seed=0):
    """Scores of 99 texts for seven tasks, and the true ones."""
    random = np.random.default_rng(seed)
    scores, truth = 3 * random.normal(size=(99, 7)), random.integers(0, 7, 99)
    scores[np.arange(99), truth] += 4
    return scores, truth


def test_in_a_hub_of_its_own_size_the_threshold_is_of_what_all_tasks_scored_together():
    scores, truth = hub_of_its_own_size()
    known = Calibration.of({20: [(scores, truth)]})
    sums = np.sort(together(scores, known.temperature))
    for alpha, place in ((0.05, 4), (0.1, 9), (0.5, 49)):
        assert known.bounds(alpha, 7)[0].threshold == pytest.approx(sums[place])


def test_rivals_are_nested_draws_of_other_tasks():
    """The mean of one is one of their scores, that of all is that of all; between two sizes it is between them."""
    random = np.random.default_rng(0)
    scores, truth = random.normal(size=(60, 30)), random.integers(0, 30, 60)
    scores[np.arange(60), truth] = 99.0
    level = Level.of(5, [(scores, truth)], 2.0)
    assert level.sizes.tolist() == [1, 4, 16, 29]
    others = np.stack([np.delete(row, own) for row, own in zip(scores, truth, strict=True)]) / 2.0
    assert all(np.isclose(first, row).any() for first, row in zip(level.rivals[:, 0], others, strict=True))
    np.testing.assert_allclose(level.rivals[:, -1], np.log(np.exp(others).mean(axis=1)))
    for small, large in ((0, 1), (1, 2), (2, 3)):  # those of fewer are among those of more
        sums = [np.exp(level.rivals[:, at]) * level.sizes[at] for at in (small, large)]
        assert (sums[0] < sums[1]).all()
    np.testing.assert_allclose(level.against(8), np.log(8) + level.rivals[:, 1:3].mean(axis=1))
    np.testing.assert_allclose(level.against(290), np.log(290) + level.rivals[:, -1])
    assert level.against(0).tolist() == [-math.inf] * 60


def test_a_hub_of_one_task_has_no_rivals():
    known = Calibration.of({0: [(np.arange(99.0)[:, np.newaxis], np.zeros(99, dtype=np.intp))]})
    assert known.bounds(0.05, 1)[0].threshold == 4.0
    assert known.levels[0].against(5).tolist() == [-math.inf] * 99


def test_levels_are_calibrated_apart_at_one_temperature():
    """Each counts alike, however many texts it has; each has the bounds that it has alone."""
    scores, truth = hub_of_its_own_size()
    worse = scores.copy()
    worse[np.arange(99), truth] -= 3
    known = Calibration.of({1: [(worse, truth)] * 9, 20: [(scores, truth)]})
    assert [level.examples for level in known.levels] == [20, 1]
    few, many = Calibration.of({1: [(worse, truth)]}), Calibration.of({20: [(scores, truth)]})
    assert many.temperature < known.temperature < few.temperature
    assert known.temperature == Calibration.of({1: [(worse, truth)], 20: [(scores, truth)]}).temperature
    good, poor = known.bounds(0.1, 7)
    assert good.threshold > poor.threshold
    assert good.miss < poor.miss


def test_set_bound_is_the_conformal_order_statistic_of_the_misses():
    """Of the hub's own size, where 1 - probability of the true task is known for every text."""
    scores, truth = hub_of_its_own_size()
    known = Calibration.of({20: [(scores, truth)]})
    chances, _ = posterior(scores, 7, known.temperature, known.null)
    misses = np.sort(1 - chances[np.arange(99), truth])
    assert known.bounds(0.1, 7)[0].miss == pytest.approx(misses[89])  # the 90th of 99
    assert known.bounds(0.5, 7)[0].miss == pytest.approx(misses[49])
    assert known.bounds(0.0, 7)[0].miss == 1.0
    assert Calibration.absent(48).bounds(0.05, 7)[0].miss == 1.0


def hub_of(world, epoch, tasks):
    """(4 tasks, tasks) scores of four texts of each of so many new tasks, and the true ones."""
    means = [world.mean() for _ in range(tasks)]
    rows = np.stack([epoch.row(10, world.texts(mean, 10).sum(axis=0), None) for mean in means])
    scores = epoch.lift(np.concatenate([world.texts(mean, 4) for mean in means])) @ rows.T
    return scores, np.repeat(np.arange(tasks), 4)


@pytest.fixture(scope="module")
def small():
    """A world of tasks near one another, its epoch, and a calibration in hubs of twelve."""
    world = World(3, 0.5)
    epoch = Epoch.fit(Sums.of([world.texts(world.mean(), 10) for _ in range(200)], DIMENSION))
    hubs = [hub_of(world, epoch, 12) for _ in range(30)]
    return world, epoch, Calibration.of({5: hubs})


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_the_conformal_set_keeps_its_promise_in_a_hub_of_another_size(small, alpha):
    """Calibrated in hubs of 12 tasks; the hub grows to 240, where a bound that does not know of N covers far less.

    At twenty times the size a text may have a near rival that no small hub showed: it covers a little less there, too.
    """
    world, epoch, known = small
    wrong = []
    for tasks in (12, 60, 240):
        covered = []
        for _ in range(480 // tasks):
            scores, truth = hub_of(world, epoch, tasks)
            chances = posterior(scores, tasks, known.temperature, known.null)[0][np.arange(len(truth)), truth]
            covered.append(1 - chances <= known.bounds(alpha, tasks)[0].miss)
            wrong.append(1 - chances <= known.bounds(alpha, 12)[0].miss)
        short = 1 - alpha - np.mean(np.concatenate(covered))
        assert -0.03 < short < (0.05 if tasks < 240 else 0.08)
    assert 1 - alpha - np.mean(wrong[-1]) > 2 * short + 0.05


@pytest.mark.parametrize("tasks", [12, 240])
def test_probabilities_are_calibrated_in_a_hub_of_another_size(small, tasks):
    world, epoch, known = small
    best, right, none, foreign = [], [], [], []
    for _ in range(480 // tasks):
        scores, truth = hub_of(world, epoch, tasks)
        chances, null = posterior(scores, tasks, known.temperature, known.null)
        best.append(chances.max(axis=1))
        right.append(chances.argmax(axis=1) == truth)
        none.append(null)
        scores[np.arange(len(truth)), truth] = -np.inf
        foreign.append(posterior(scores, tasks, known.temperature, known.null)[1])
    sure, correct = np.concatenate(best), np.concatenate(right)
    groups = np.array_split(np.argsort(sure), 10)
    assert sum(len(g) / len(sure) * abs(sure[g].mean() - correct[g].mean()) for g in groups) < 0.05
    assert np.mean(none) < 0.1
    assert np.mean(foreign) > 3 * np.mean(none)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("tasks", [2, 6, 12, 60, 240])
def test_no_more_texts_are_refused_than_was_promised_in_a_hub_of_another_size(small, alpha, tasks):
    """Calibrated in hubs of 12; in larger ones the tasks score more together than was thought, so fewer are refused."""
    world, epoch, known = small
    threshold = known.bounds(alpha, tasks)[0].threshold
    refused = []
    for _ in range(960 // tasks):
        scores, _ = hub_of(world, epoch, tasks)
        refused.append(together(scores, known.temperature) < threshold)
    assert alpha / 4 < np.mean(refused) < alpha + 0.02


def test_of_a_hub_that_is_scored_in_part_as_many_tasks_are_asked_of(small):
    """The best of them score no less together than as many drawn at random."""
    _, _, known = small
    whole, part = (known.bounds(0.05, 10**6, scored)[0] for scored in (None, 512))
    assert part.threshold == known.bounds(0.05, 512)[0].threshold < whole.threshold
    assert part.miss == whole.miss


def test_bounds_are_found_once(small):
    _, _, known = small
    assert known.bounds(0.05, 33) is known.bounds(0.05, 33, 33)


def test_nothing_held_out_means_no_refusals():
    assert Calibration.absent(384).bounds(0.5, 9)[0].threshold == -math.inf
    assert (Calibration.absent(384).temperature, Calibration.absent(8).temperature) == (16.0, 1.0)


def test_the_temperature_undoes_a_known_over_confidence():
    """Answers drawn from the posterior at temperature 1; scores then multiplied by 6."""
    random = np.random.default_rng(0)
    scores = 2 * random.normal(size=(6000, 5))
    probabilities, none = posterior(scores, 5, 1.0)
    drawn = (random.random((6000, 1)) > np.cumsum(np.column_stack([probabilities, none]), axis=1)).sum(axis=1)
    seen = drawn < 5
    temperature, loss = fit_temperature([[(6 * scores[seen], drawn[seen])]])
    assert temperature == pytest.approx(6, rel=0.05)
    own = scores[seen][np.arange(seen.sum()), drawn[seen]]
    assert loss == pytest.approx((np.log(np.exp(scores[seen]).sum(axis=1)) - own).mean(), rel=0.01)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_realised_miss_is_alpha_within_two_points_for_tasks_added_later(alpha):
    """Statistics and threshold from old tasks; new tasks are from the same world."""
    world = World()
    epoch = Epoch.fit(Sums.of([world.texts(world.mean(), 10) for _ in range(120)], DIMENSION))

    def own_scores(tasks, queries):
        scores = []
        for _ in range(tasks):
            mean = world.mean()
            row = epoch.row(10, world.texts(mean, 10).sum(axis=0), None)
            scores.append(epoch.lift(world.texts(mean, queries)) @ row)
        return np.concatenate(scores)

    threshold = alone(own_scores(800, 4)).bounds(alpha, 1)[0].threshold
    assert np.mean(own_scores(800, 4) < threshold) == pytest.approx(alpha, abs=0.02)


@pytest.mark.parametrize(("tasks", "examples"), [(60, 8), (9, 20), (5, 9)])
@pytest.mark.parametrize("fit", [Epoch.isotropic, lambda sums: Epoch.fit(sums, 0.3)])
def test_cross_fit_keeps_its_promise_with_few_examples(tasks, examples, fit):
    """Also where there are barely more examples than dimensions, and the statistics fit their own examples too well."""
    misses = []
    for seed in range(6):
        world = World(seed)
        means = [world.mean() for _ in range(tasks)]
        sample = [world.texts(mean, examples) for mean in means]
        known = [(x, None) for x in sample]
        found = cross_fit(known, lambda kept: fit(Sums.of(kept, DIMENSION)))
        epoch, asked = fit(Sums.of(sample, DIMENSION)), found.bounds(0.1, tasks)[0]
        assert asked.examples == (20 if examples >= 20 else 5)
        rows = np.stack([epoch.row(examples, x.sum(axis=0), None) for x in sample])
        for mean in means:
            sums = together(epoch.lift(world.texts(mean, 40)) @ rows.T, found.temperature)
            misses.append(np.mean(sums < asked.threshold))
    assert np.mean(misses) < 0.14


def test_cross_fit_scores_each_level_with_so_many_examples():
    """A level is of the tasks with at least so many; those with more are cut to it, those with fewer are whole."""
    world, epoch = World(), Epoch.fit(Sums.of([World().texts(World().mean(), 9) for _ in range(9)], DIMENSION))
    rows = []

    class Seen(Epoch):
        def row(self, count, total, description):
            rows.append((count, description is not None))
            return super().row(count, total, description)

    seen = Seen(epoch.mu, epoch.transform, epoch.psi)
    counts = [40, 24, 8, 8, 2]
    known = [(world.texts(world.mean(), count), world.mean() if count != 24 else None) for count in counts]
    found = cross_fit(known, lambda kept: seen)
    assert [level.examples for level in found.levels] == [20, 5, 1, 0]
    assert [len(level.scores) for level in found.levels] == [64, 80, 82, 58]  # of the last, those with a description
    first = [[count for count, _ in rows[at : at + 5]] for at in range(0, 20, 5)]
    assert first == [[30, 18, 6, 6, 1], [5, 5, 6, 6, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]


def test_cross_fit_leaves_out_levels_of_few_texts():
    world = World()
    known = [(world.texts(world.mean(), 20), None)] + [(world.texts(world.mean(), 6), None) for _ in range(9)]
    found = cross_fit(known, lambda kept: Epoch.isotropic(Sums.of(kept, DIMENSION)))
    assert [level.examples for level in found.levels] == [5, 1]


def test_cross_fit_needs_forty_examples():
    world = World()
    known = [(world.texts(world.mean(), 3), None) for _ in range(13)] + [(world.texts(world.mean(), 1), None)] * 9
    assert cross_fit(known, lambda kept: Epoch.isotropic(Sums.of(kept, DIMENSION))) is None


def test_cross_fit_does_not_shape_an_epoch_with_what_it_scores():
    world = World()
    known = [(world.texts(world.mean(), 8), None) for _ in range(6)]
    seen = []
    cross_fit(known, lambda kept: seen.append([len(x) for x in kept]) or Epoch.isotropic(Sums.of(kept, DIMENSION)))
    assert seen == [[6] * 6] * 4
