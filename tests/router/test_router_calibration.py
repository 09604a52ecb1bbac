from __future__ import annotations

import math

import numpy as np
import pytest
from router_world import DIMENSION, World

from adapterhub.router import Calibration, Epoch, Sums
from adapterhub.router._calibration import NULL_PRIOR, cross_fit, fit_temperature, posterior


def calibration(scores):
    return Calibration(1.0, np.sort(np.asarray(scores, dtype=float)), np.empty(0))


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
    scores = np.arange(99.0)
    assert calibration(scores).threshold(0.05) == 4.0  # the 5th smallest of 99
    assert calibration(scores).threshold(0.1) == 9.0
    assert calibration(scores).threshold(0.0) == -math.inf
    assert calibration(np.arange(18.0)).threshold(0.05) == -math.inf  # 19 would be the least


def test_set_bound_is_the_conformal_order_statistic_of_the_misses():
    """Of the hub's own size, where 1 - probability of the true task is known for every text."""
    random = np.random.default_rng(0)
    scores, truth = 3 * random.normal(size=(99, 7)), random.integers(0, 7, 99)
    scores[np.arange(99), truth] += 4
    known = Calibration.of([scores], [truth])
    chances, _ = posterior(scores, 7, known.temperature, known.null)
    misses = np.sort(1 - chances[np.arange(99), truth])
    assert known.set_bound(0.1, 7) == pytest.approx(misses[89])  # the 90th of 99
    assert known.set_bound(0.5, 7) == pytest.approx(misses[49])
    assert known.set_bound(0.0, 7) == 1.0
    assert Calibration.absent(48).set_bound(0.05, 7) == 1.0


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
    return world, epoch, Calibration.of([scores for scores, _ in hubs], [truth for _, truth in hubs])


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
            covered.append(1 - chances <= known.set_bound(alpha, tasks))
            wrong.append(1 - chances <= known.set_bound(alpha, 12))
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


def test_nothing_held_out_means_no_refusals():
    assert Calibration.absent(384).threshold(0.5) == -math.inf
    assert (Calibration.absent(384).temperature, Calibration.absent(8).temperature) == (16.0, 1.0)


def test_the_temperature_undoes_a_known_over_confidence():
    """Answers drawn from the posterior at temperature 1; scores then multiplied by 6."""
    random = np.random.default_rng(0)
    scores = 2 * random.normal(size=(6000, 5))
    probabilities, none = posterior(scores, 5, 1.0)
    drawn = (random.random((6000, 1)) > np.cumsum(np.column_stack([probabilities, none]), axis=1)).sum(axis=1)
    seen = drawn < 5
    assert fit_temperature([6 * scores[seen]], [drawn[seen]]) == pytest.approx(6, rel=0.05)


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

    threshold = calibration(own_scores(800, 4)).threshold(alpha)
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
        epoch, threshold = fit(Sums.of(sample, DIMENSION)), found.threshold(0.1)
        for mean, x in zip(means, sample, strict=True):
            scores = epoch.lift(world.texts(mean, 40)) @ epoch.row(examples, x.sum(axis=0), None)
            misses.append(np.mean(scores < threshold))
    assert np.mean(misses) < 0.14


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
