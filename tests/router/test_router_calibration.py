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


def test_set_bound_is_the_conformal_order_statistic():
    known = Calibration(1.0, np.empty(0), np.linspace(0.01, 0.99, 99))
    assert known.set_bound(0.1) == pytest.approx(0.90)
    assert known.set_bound(0.0) == 1.0
    assert Calibration.absent(48).set_bound(0.05) == 1.0


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
    assert fit_temperature([6 * scores[seen]], [drawn[seen]]) == 6.0


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
