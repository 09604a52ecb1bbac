from __future__ import annotations

import numpy as np
import pytest
from router_world import DIMENSION, World

from adapterhub.catalog import VectorBlock
from adapterhub.catalog._scores import exact_scores
from adapterhub.errors import InputError
from adapterhub.router import Epoch, Sums
from adapterhub.router._epoch import HEAD_START, LEVELLING
from adapterhub.router._prototypes import MANY_EXAMPLES, prototypes


def fitted(world, tasks=40, examples=12, shrinkage=0.1):
    sample = [world.texts(world.mean(), examples) for _ in range(tasks)]
    return Epoch.fit(Sums.of(sample, DIMENSION), shrinkage), sample


def direct(epoch, examples, description, query):
    """2.4 and 2.5 of the formula, term by term, in the space of z."""
    weight = 0.0 if description is None or len(examples) > 5 else 0.5
    count = len(examples) + weight
    psi, z = epoch.psi, (query - epoch.mu) @ epoch.transform
    if count == 0:
        mean, variance = np.zeros_like(psi), 1 + psi
    else:
        total = examples.sum(axis=0) + (weight * description if weight else 0)
        n = count + HEAD_START
        mean = n * psi / (n * psi + 1) * ((total / count - epoch.mu) @ epoch.transform)
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
    """In z the noise within tasks is white; the means' covariance, levelled by its mean variance, is diag(psi)."""
    world = World()
    epoch, sample = fitted(world, tasks=600, examples=10, shrinkage=0.0)
    z = [(x - epoch.mu) @ epoch.transform for x in sample]
    noise = np.concatenate([x - x.mean(axis=0) for x in z]) * np.sqrt(10 / 9)
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(DIMENSION), atol=1e-8)
    means = np.stack([x.mean(axis=0) for x in z])
    means = means.T @ means / len(means) - np.eye(DIMENSION) / 10
    level = np.trace(means) / DIMENSION
    np.testing.assert_allclose(
        np.diag((1 - LEVELLING) * np.diag(means) + LEVELLING * level), np.diag(epoch.psi), atol=1e-8
    )
    np.testing.assert_allclose(means, np.diag(np.diag(means)), atol=1e-8)
    assert (np.diff(epoch.psi) <= 0).all()
    assert epoch.psi.mean() == pytest.approx(level)


def test_tasks_that_differ_where_those_summed_do_not_are_not_shrunk_to_nothing():
    """Three tasks span two directions; a task of its own lies in the others."""
    world = World()
    sample = [world.texts(world.mean(), 200) for _ in range(3)]
    epoch = Epoch.fit(Sums.of(sample, DIMENSION), 0.0)
    assert epoch.psi.min() == pytest.approx(LEVELLING * epoch.psi.mean(), rel=0.1)
    mean = world.mean()
    own = epoch.lift(world.texts(mean, 200)) @ epoch.row(20, world.texts(mean, 20).sum(axis=0), None)
    assert np.mean(own > 0) > 0.95


def test_the_order_of_tasks_does_not_matter():
    world = World()
    sample = [world.texts(world.mean(), 8) for _ in range(20)]
    one, other = Epoch.fit(Sums.of(sample, DIMENSION)), Epoch.fit(Sums.of(sample[::-1], DIMENSION))
    queries = world.texts(world.mean(), 5)
    scores = [epoch.lift(queries) @ epoch.row(8, sample[0].sum(axis=0), None) for epoch in (one, other)]
    np.testing.assert_allclose(*scores, atol=1e-8)


@pytest.mark.parametrize(("dimension", "kept"), [(300, 300), (400, 384)])
def test_all_directions_of_a_small_encoder_are_kept_and_384_of_a_larger_one(dimension, kept):
    random = np.random.default_rng(0)
    epoch = Epoch.fit(Sums.of([random.normal(size=(4, dimension)) for _ in range(10)], dimension))
    assert epoch.transform.shape == (dimension, kept)
    assert epoch.width == len(epoch.row(1, np.ones(dimension), None)) == 2 * kept + 1


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


def a_block(world, counts):
    """Tasks with these numbers of examples, every other one with a description."""
    counts = np.asarray(counts)
    totals, descriptions = np.zeros((2, len(counts), DIMENSION), dtype=np.float32)
    for row, count in enumerate(counts):
        mean = world.mean()
        totals[row] = world.texts(mean, count).sum(axis=0)
        descriptions[row] = world.texts(mean, 1)[0] if row % 2 else 0
    return VectorBlock(np.arange(len(counts)) + 1, counts, totals, descriptions, np.arange(len(counts)) % 2 == 1)


def part(block, at):
    return VectorBlock(block.ids[at], block.counts[at], block.totals[at], block.descriptions[at], block.described[at])


def test_rows_and_queries_score_like_the_formula():
    world = World()
    epoch, _ = fitted(world)
    block = a_block(world, [0, 0, 1, 1, 2, 5, 5, 6, 20, 300])
    rows, vectors = epoch.rows(block), world.texts(world.mean(), 5)
    queries = epoch.queries(vectors, 1 + int(rows.group.max()))
    assert rows.group.tolist() == [0, 4, 5, 6, 7, 14, 13, 15, 43, 603]
    for row in range(len(block)):
        description = block.descriptions[row].astype(float) if block.described[row] else None
        plain = epoch.row(int(block.counts[row]), block.totals[row].astype(float), description)
        expected = epoch.lift(vectors) @ plain
        one = rows.take(slice(row, row + 1))
        found = [float(exact_scores(one, q, g)[0]) for q, g in zip(queries.linear, queries.groups, strict=True)]
        np.testing.assert_allclose(found, expected, atol=0.02, rtol=2e-3)
    nothing = [float(exact_scores(rows, q, g)[0]) for q, g in zip(queries.linear, queries.groups, strict=True)]
    assert nothing == [0.0] * 5


def test_the_offset_belongs_to_the_rounded_row():
    """So the score is an exact log-likelihood ratio, of a task whose mean is the rounded one."""
    world = World()
    epoch, _ = fitted(world)
    rows = epoch.rows(a_block(world, [3, 9]))
    vectors = world.texts(world.mean(), 4)
    queries = epoch.queries(vectors, 1 + int(rows.group.max()))
    z = (vectors - epoch.mu) @ epoch.transform
    for row, n in ((0, 3 + HEAD_START), (1, 9 + HEAD_START)):
        variance = 1 + epoch.psi / (n * epoch.psi + 1)
        mean = rows.linear[row].astype(float) * variance
        same = -0.5 * ((z - mean) ** 2 / variance + np.log(variance)).sum(axis=1)
        never = -0.5 * (z**2 / (1 + epoch.psi) + np.log(1 + epoch.psi)).sum(axis=1)
        one = rows.take(slice(row, row + 1))
        found = [float(exact_scores(one, q, g)[0]) for q, g in zip(queries.linear, queries.groups, strict=True)]
        np.testing.assert_allclose(found, same - never, atol=1e-4)


def test_a_row_has_the_same_bits_in_every_block():
    world = World()
    epoch, _ = fitted(world)
    random = np.random.default_rng(0)
    block = a_block(world, random.integers(0, 30, 300))
    whole = epoch.rows(block)
    for at in (slice(0, 1), slice(7, 20), slice(40, 171), random.permutation(300)):
        some = epoch.rows(part(block, at))
        for name in ("linear", "group", "offset"):
            np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[at])


def test_a_query_has_the_same_bits_in_every_batch_and_beside_any_groups():
    world = World()
    epoch, _ = fitted(world)
    vectors = world.texts(world.mean(), 70)
    whole = epoch.queries(vectors, 50)
    alone = epoch.queries(vectors[5:6], 20)
    np.testing.assert_array_equal(alone.linear[0], whole.linear[5])
    np.testing.assert_array_equal(alone.groups[0], whole.groups[5, :20])
    used = epoch.queries(vectors[5:6], 50, np.array([3, 40], dtype=np.int32))
    assert used.groups[0, [3, 40]].tolist() == whole.groups[5, [3, 40]].tolist()
    assert np.count_nonzero(used.groups) == 2
    assert epoch.queries(vectors[:0], 3).linear.shape == (0, DIMENSION)


def test_fingerprints_are_equal_only_for_equal_epochs():
    world = World()
    epoch, sample = fitted(world)
    assert epoch.fingerprint == Epoch.fit(Sums.of(sample, DIMENSION)).fingerprint
    assert epoch.fingerprint != Epoch.fit(Sums.of(sample[1:], DIMENSION)).fingerprint
    assert epoch.fingerprint != Epoch(epoch.mu + 1e-15, epoch.transform, epoch.psi).fingerprint


def test_rows_of_bad_vectors_are_errors():
    world = World()
    epoch, _ = fitted(world)
    block = a_block(world, [3, 4, 5])
    block.totals[1, 0] = np.nan
    with pytest.raises(InputError, match=r"examples of the tasks numbered \[2\]"):
        epoch.rows(block)
    with pytest.raises(InputError, match=r"shape \(n, 24\)"):
        epoch.rows(VectorBlock(block.ids, block.counts, block.totals[:, :5], block.descriptions, block.described))


def test_large_rows_are_cut_to_what_float16_holds():
    """Equal examples leave no spread within tasks; rows are then large but finite."""
    same = [np.full((3, DIMENSION), value) for value in (0.0, 1.0, 2.0, 900.0)]
    epoch = Epoch.isotropic(Sums.of(same, DIMENSION))
    block = a_block(World(), [3])
    rows = epoch.rows(VectorBlock(block.ids, block.counts, block.totals * 1e4, block.descriptions, block.described))
    assert np.isfinite(rows.linear).all()
    assert np.isfinite(rows.offset).all()


@pytest.mark.parametrize("count", [1, 10, MANY_EXAMPLES - 1, MANY_EXAMPLES, 100, 400])
def test_one_heap_is_one_prototype(count):
    world = World()
    epoch, _ = fitted(world)
    numbers = [len(prototypes(epoch, world.texts(world.mean(), count))) for _ in range(10)]
    assert sum(number > 1 for number in numbers) <= 1


@pytest.mark.parametrize("heaps", [2, 4])
def test_heaps_far_apart_are_found(heaps):
    world = World()
    epoch, _ = fitted(world)
    sizes = [40 - 5 * heap for heap in range(heaps)]
    groups = [world.texts(world.mean(), size) for size in sizes]
    mixed = np.concatenate(groups)[np.random.default_rng(0).permutation(sum(sizes))]
    found = prototypes(epoch, mixed)
    assert found.counts.tolist() == sizes
    for total, group in zip(found.totals, groups, strict=True):
        np.testing.assert_allclose(total, group.sum(axis=0), atol=1e-9)
    assert np.exp(found.log_weights).sum() == pytest.approx(1)
    again = prototypes(epoch, mixed)
    np.testing.assert_array_equal(found.totals, again.totals)


def test_equal_examples_are_one_prototype():
    epoch, _ = fitted(World())
    found = prototypes(epoch, np.ones((100, DIMENSION)))
    assert found.counts.tolist() == [100]
