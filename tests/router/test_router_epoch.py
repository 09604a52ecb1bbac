from __future__ import annotations

import numpy as np
import pytest
from router_world import DIMENSION, World

from adapterhub.errors import InputError
from adapterhub.router import Epoch, Sums


def fitted(world, tasks=40, examples=12, shrinkage=0.1):
    sample = [world.texts(world.mean(), examples) for _ in range(tasks)]
    return Epoch.fit(Sums.of(sample, DIMENSION), shrinkage), sample


def direct(epoch, examples, description, query):
    """2.4 and 2.5 of the formula, term by term, in the space of z."""
    weight = 0.0 if description is None or len(examples) > 5 else 0.5 if len(examples) else 1.0
    n = len(examples) + weight
    psi, z = epoch.psi, (query - epoch.mu) @ epoch.transform
    if n == 0:
        mean, variance = np.zeros_like(psi), 1 + psi
    else:
        total = examples.sum(axis=0) + (weight * description if weight else 0)
        mean = n * psi / (n * psi + 1) * ((total / n - epoch.mu) @ epoch.transform)
        variance = 1 + psi / (n * psi + 1)
    same = -0.5 * np.sum((z - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    never = -0.5 * np.sum(z**2 / (1 + psi) + np.log(2 * np.pi * (1 + psi)))
    return same - never


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 20])
@pytest.mark.parametrize("described", [True, False])
def test_the_inner_product_equals_the_direct_formula(count, described):
    world = World()
    epoch, _ = fitted(world)
    mean = world.mean()
    examples, queries = world.texts(mean, count), world.texts(mean, 7)
    description = world.texts(mean, 1)[0] if described else None
    scores = epoch.lift(queries) @ epoch.row(count, examples.sum(axis=0), description)
    expected = [direct(epoch, examples, description, query) for query in queries]
    np.testing.assert_allclose(scores, expected, atol=1e-9, rtol=1e-9)


def test_a_task_of_which_nothing_is_known_scores_zero():
    world = World()
    epoch, _ = fitted(world)
    row = epoch.row(0, np.zeros(DIMENSION), None)
    np.testing.assert_array_equal(epoch.lift(world.texts(world.mean(), 5)) @ row, np.zeros(5))


def test_the_fit_finds_the_covariances_of_the_model():
    """In z the noise within tasks is white and the means' covariance is diag(psi)."""
    world = World()
    epoch, sample = fitted(world, tasks=600, examples=10, shrinkage=0.0)
    z = [(x - epoch.mu) @ epoch.transform for x in sample]
    noise = np.concatenate([x - x.mean(axis=0) for x in z]) * np.sqrt(10 / 9)
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(DIMENSION), atol=1e-8)
    means = np.stack([x.mean(axis=0) for x in z])
    means = means.T @ means / len(means) - np.eye(DIMENSION) / 10
    kept = epoch.psi > 1e-3
    np.testing.assert_allclose(means[np.ix_(kept, kept)], np.diag(epoch.psi[kept]), atol=1e-8)
    assert (np.diff(epoch.psi) <= 0).all()


def test_the_order_of_tasks_does_not_matter():
    world = World()
    sample = [world.texts(world.mean(), 8) for _ in range(20)]
    one, other = Epoch.fit(Sums.of(sample, DIMENSION)), Epoch.fit(Sums.of(sample[::-1], DIMENSION))
    queries = world.texts(world.mean(), 5)
    scores = [epoch.lift(queries) @ epoch.row(8, sample[0].sum(axis=0), None) for epoch in (one, other)]
    np.testing.assert_allclose(*scores, atol=1e-8)


def test_few_directions_are_kept():
    random = np.random.default_rng(0)
    epoch = Epoch.fit(Sums.of([random.normal(size=(4, 300)) for _ in range(10)], 300))
    assert epoch.transform.shape == (300, 256)
    assert epoch.width == len(epoch.row(1, np.ones(300), None)) == 513


@pytest.mark.parametrize("tasks", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_equal_covariances_are_finite_for_any_number_of_tasks(tasks, examples):
    world = World()
    sample = [world.texts(world.mean(), examples) for _ in range(tasks)]
    epoch = Epoch.isotropic(Sums.of(sample, DIMENSION))
    rows = [epoch.row(examples, x.sum(axis=0), None) for x in sample]
    assert np.isfinite(rows).all()
    assert np.isfinite(epoch.lift(world.texts(world.mean(), 3))).all()


def test_equal_covariances_are_found_where_they_are_true():
    random = np.random.default_rng(0)
    sample = [0.7 * random.normal(size=DIMENSION) + 0.3 * random.normal(size=(5, DIMENSION)) for _ in range(2000)]
    epoch = Epoch.isotropic(Sums.of(sample, DIMENSION))
    np.testing.assert_allclose(np.diag(epoch.transform), 1 / 0.3, rtol=0.02)
    np.testing.assert_allclose(epoch.psi, (0.7 / 0.3) ** 2, rtol=0.03)


def test_bad_vectors_are_errors():
    epoch, _ = fitted(World())
    with pytest.raises(InputError, match=r"shape \(n, 24\)"):
        epoch.lift(np.zeros((2, 23)))
    with pytest.raises(InputError, match="NaN"):
        epoch.lift(np.full((1, DIMENSION), np.nan))
    with pytest.raises(InputError, match=r"shape \(n, 24\)"):
        Sums.of([np.zeros((2, 23))], DIMENSION)
    with pytest.raises(InputError, match="NaN"):
        Sums.of([np.full((2, DIMENSION), np.inf)], DIMENSION)


def test_sums_of_parts_add_up():
    world = World()
    sample = [world.texts(world.mean(), count) for count in (1, 4, 0, 7)]
    whole = Sums.of(sample, DIMENSION)
    parts = Sums.of(sample[:2], DIMENSION) + Sums.of(sample[2:], DIMENSION)
    np.testing.assert_allclose(whole.scatter, parts.scatter, atol=1e-12)
    np.testing.assert_allclose(whole.outers, parts.outers, atol=1e-12)
    assert (whole.tasks, whole.freedom) == (parts.tasks, parts.freedom) == (3, 9)
    assert whole.inverse_counts == pytest.approx(1 + 1 / 4 + 1 / 7)
