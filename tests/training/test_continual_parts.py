"""Memory, springs, projections, distillation and scores, each against a slow reference or its formula."""

import json
import math
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, softmax

from adapterhub.errors import InputError
from adapterhub.training.continual import (
    EWC,
    ContinualScores,
    Reservoir,
    distillation_loss,
    fisher_diagonal,
    gem_direction,
)


def fill(reservoir, labels):
    for number, label in enumerate(labels):
        reservoir.add(number, label)
    return reservoir


# The reservoir


def test_the_buffer_grows_is_bounded_and_balanced():
    reservoir, sizes = Reservoir(90), []
    labels = ["often"] * 2000 + ["sometimes"] * 200 + ["seldom"] * 20 + ["often"] * 2000
    for number, label in enumerate(labels):
        reservoir.add(number, label)
        sizes.append(len(reservoir))
    assert sizes[:90] == list(range(1, 91))
    assert set(sizes[90:]) == {90}
    assert reservoir.counts == {"often": 35, "sometimes": 35, "seldom": 20}  # all of the rare class, the rest alike
    assert reservoir.seen == {"often": 4000, "sometimes": 200, "seldom": 20}


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.sampled_from("abcdef"), max_size=200), capacity=st.integers(1, 40), seed=st.integers(0, 99))
def test_no_class_holds_more_than_one_row_above_a_class_that_lost_some(labels, capacity, seed):
    reservoir = fill(Reservoir(capacity, seed=seed), labels)
    assert len(reservoir) == min(capacity, len(labels))
    held, seen = reservoir.counts, Counter(labels)
    rows = list(reservoir)
    assert len(set(rows)) == len(rows)
    assert Counter(labels[row] for row in rows) == {label: count for label, count in held.items() if count}
    most = max(held.values(), default=0)
    assert all(held[label] == seen[label] or held[label] >= most - 1 for label in seen)


def test_one_class_is_algorithm_r():
    runs, capacity, stream = 3000, 5, 20
    counts = Counter(row for seed in range(runs) for row in fill(Reservoir(capacity, seed=seed), "x" * stream))
    share = capacity / stream
    sigma = math.sqrt(runs * share * (1 - share))
    assert all(abs(counts[row] - runs * share) < 3.5 * sigma for row in range(stream))  # 20 comparisons
    assert sum(counts.values()) == runs * capacity


def test_within_a_class_early_and_late_rows_are_kept_alike():
    labels = ["a", "a", "b"] * 30
    counts = Counter(row for seed in range(1500) for row in fill(Reservoir(12, seed=seed), labels))
    for label in "ab":
        rows = [row for row, other in enumerate(labels) if other == label]
        means = [np.mean([counts[row] for row in part]) for part in np.array_split(rows, 3)]
        expected = 1500 * 6 / len(rows)
        assert means == pytest.approx([expected] * 3, rel=0.06)


def test_a_sample_is_of_different_rows_each_with_the_same_chance():
    reservoir = fill(Reservoir(10), "a" * 10)
    counts = Counter(row for _ in range(2000) for row in reservoir.sample(3))
    assert all(abs(count - 600) < 3.5 * math.sqrt(2000 * 0.3 * 0.7) for count in counts.values())
    assert len(counts) == 10
    assert sorted(reservoir.sample(99)) == list(range(10))
    assert Reservoir(3).sample(2) == []


@settings(max_examples=30, deadline=None)
@given(
    before=st.lists(st.sampled_from("abc"), max_size=60),
    after=st.lists(st.sampled_from("abcd"), max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_resumed_reservoir_goes_on_as_the_whole_one(before, after, seed):
    whole = fill(Reservoir(15, seed=seed), before)
    whole.sample(2)
    text = json.dumps(whole.state_dict())
    resumed = Reservoir(15, seed=seed + 1)
    resumed.load_state_dict(json.loads(text))
    fill(whole, after)
    fill(resumed, after)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.sample(5) == whole.sample(5)


def test_a_reservoir_outside_its_range_is_refused():
    with pytest.raises(InputError, match=r"at least one row\. Found capacity 0"):
        Reservoir(0)
    state = fill(Reservoir(5), "aaaaa").state_dict()
    with pytest.raises(InputError, match="of 4 rows takes no state of 5"):
        Reservoir(4).load_state_dict(state)


# EWC


def small_model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 3).double(), torch.randn(7, 4).double(), torch.randint(0, 3, (7,))


def test_the_fisher_is_the_mean_square_of_the_rows_gradients():
    model, inputs, labels = small_model()
    parameters = list(model.parameters())

    def log_likelihoods(rows):
        return -cross_entropy(model(inputs[rows]), labels[rows], reduction="none")

    logits = model(inputs)
    error = torch.nn.functional.one_hot(labels, 3) - softmax(logits, -1)  # of the log-likelihood by the logits
    expected = torch.cat([((error[:, :, None] * inputs[:, None, :]) ** 2).mean(0).reshape(-1), (error**2).mean(0)])
    for batches in ([[0, 1, 2, 3, 4, 5, 6]], [[row] for row in range(7)], [[0, 1, 2], [3, 4, 5, 6]]):
        torch.testing.assert_close(fisher_diagonal(log_likelihoods, batches, parameters), expected.detach())
    assert all(parameter.grad is None for parameter in parameters)


def test_a_weight_that_plays_no_part_has_no_information():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    found = fisher_diagonal(lambda row: used.sum() * row, [1.0, 3.0], [used, unused])
    assert found.tolist() == [5.0, 5.0, 0.0, 0.0, 0.0]
    half = torch.full((2,), 1e-5, dtype=torch.bfloat16, requires_grad=True)
    assert fisher_diagonal(lambda row: (half * row).sum(), [1e-5], [half]).dtype == torch.float32
    with pytest.raises(InputError, match="at least one row"):
        fisher_diagonal(lambda row: row, [], [used])


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_penalty_is_the_sum_over_the_tasks(tasks):
    generator = torch.Generator().manual_seed(tasks)
    ewc, sides = EWC(3.0), []
    for _ in range(tasks):
        fisher = torch.rand(10, generator=generator, dtype=torch.float64) ** 4
        fisher[:2] = 0
        theta = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3), (4,))]
        ewc.add_task(theta, fisher)
        sides.append((fisher, torch.cat([part.reshape(-1) for part in theta])))
    now = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((2, 3), (4,))]
    flat = torch.cat([part.reshape(-1) for part in now])
    expected = sum(0.5 * 3.0 * (fisher * (flat - anchor) ** 2).sum() for fisher, anchor in sides)
    found = ewc.penalty(now)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    slow = torch.cat([part.reshape(-1) for part in torch.autograd.grad(expected, now)])
    torch.testing.assert_close(torch.cat([part.reshape(-1) for part in torch.autograd.grad(found, now)]), slow)
    torch.testing.assert_close(ewc.gradient(now), slow)
    loaded = EWC(3.0)
    loaded.load_state_dict(ewc.state_dict())
    assert torch.equal(loaded.penalty(now), found)


def test_the_penalty_is_nothing_before_the_first_task_and_at_its_weights():
    theta = [torch.randn(5, requires_grad=True)]
    ewc = EWC()
    assert ewc.penalty(theta).item() == 0
    assert ewc.state_dict() == {}
    assert torch.equal(ewc.gradient(theta), torch.zeros(5))
    ewc.add_task(theta, torch.ones(5))
    assert ewc.penalty(theta).item() == 0
    assert torch.equal(torch.autograd.grad(ewc.penalty(theta), theta)[0], torch.zeros(5))


def test_what_ewc_cannot_use_is_refused():
    with pytest.raises(InputError, match=r"`strength` should be a number of at least 0\. Found -1"):
        EWC(-1)
    with pytest.raises(InputError, match=r"one number for each of 5 weights\. Found 4"):
        EWC().add_task([torch.ones(5)], torch.ones(4))
    for bad in (-1.0, math.nan):
        with pytest.raises(InputError, match="a mean of squares"):
            EWC().add_task([torch.ones(1)], torch.tensor([bad]))


# Distillation


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_its_formula(temperature):
    new, old = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    p, q = softmax(old / temperature, -1), softmax(new / temperature, -1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(new, old, temperature), expected)
    assert distillation_loss(new, new, temperature).item() == pytest.approx(0, abs=1e-15)
    reverse = temperature**2 * kl_div(p.log(), q, reduction="batchmean")
    assert abs(distillation_loss(new, old, temperature).item() - reverse.item()) > 1e-6  # the direction matters


def test_the_old_model_gets_no_gradient_and_high_temperatures_match_logits():
    new = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    old = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    distillation_loss(new, old, 1e4).backward()
    assert old.grad is None
    apart = (new - old).detach()
    torch.testing.assert_close(new.grad, (apart - apart.mean(-1, keepdim=True)) / 5 / 6, rtol=1e-3, atol=1e-6)


def test_what_distillation_cannot_compare_is_refused():
    with pytest.raises(InputError, match=r"Found \(2, 3\) and \(2, 4\)"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"`temperature` should be a number above 0\. Found 0"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0)


# GEM


def reference(gradient, memories):
    """The quadratic program by its definition: of all sets of tasks held exactly, the nearest point that is allowed."""
    best = None
    for held in product([False, True], repeat=len(memories)):
        rows = memories[list(held)]
        point = gradient - rows.T @ np.linalg.pinv(rows.T) @ gradient if len(rows) else gradient
        if (memories @ point).min() >= -1e-12 and (
            best is None or distance(point, gradient) < distance(best, gradient)
        ):
            best = point
    return best


def distance(one, other):
    return np.linalg.norm(one - other)


@pytest.mark.parametrize("seed", range(40))
def test_gem_equals_the_quadratic_program(seed):
    generator = np.random.default_rng(seed)
    tasks = int(generator.integers(1, 7))
    memories = generator.normal(size=(tasks, 10))
    gradient = generator.normal(size=10) - 0.7 * memories.sum(0)
    found = gem_direction(torch.from_numpy(gradient), torch.from_numpy(memories)).numpy()
    np.testing.assert_allclose(found, reference(gradient, memories), atol=1e-10)
    assert (memories @ found).min() >= -1e-9
    assert found @ gradient >= 0


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6), tasks=st.integers(1, 8), size=st.integers(1, 12), scale=st.sampled_from([1, 1e-4, 1e4])
)
def test_no_old_task_gets_worse_whatever_the_scales(seed, tasks, size, scale):
    generator = torch.Generator().manual_seed(seed)
    memories = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    memories[0] *= scale
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    found = gem_direction(gradient, memories)
    cosines = memories @ found / memories.norm(dim=1) / gradient.norm()
    assert cosines.min() >= -1e-9
    torch.testing.assert_close(gem_direction(found, memories), found, rtol=0, atol=1e-8)  # it is there already
    rescaled = gem_direction(gradient, memories * torch.logspace(-3, 3, tasks, dtype=torch.float64)[:, None])
    torch.testing.assert_close(rescaled, found, rtol=0, atol=1e-8 * gradient.norm().item())


def test_a_gradient_that_worsens_nothing_is_left_alone():
    gradient = torch.randn(8)
    assert gem_direction(gradient, torch.stack([gradient, gradient * 2])) is gradient
    assert gem_direction(gradient, torch.zeros(2, 8)) is gradient


def test_memories_may_point_the_same_way_or_be_zero():
    gradient = torch.tensor([1.0, 1.0, 0.0])
    row = torch.tensor([-1.0, 0.0, 0.0])
    found = gem_direction(gradient, torch.stack([row, row * 3, torch.zeros(3), row]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 0.0]))


def test_what_was_projected_stays():
    for seed in (2381, *range(200)):  # at the first, scipy's nnls moves a projected gradient by 30 times its length
        generator = torch.Generator().manual_seed(seed)
        tasks = int(torch.randint(1, 9, (1,), generator=generator))
        size = int(torch.randint(1, 13, (1,), generator=generator))
        memories = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
        memories[0] *= 1e4
        gradient = torch.randn(size, generator=generator, dtype=torch.float64)
        found = gem_direction(gradient, memories)
        torch.testing.assert_close(gem_direction(found, memories), found, rtol=0, atol=1e-9)


def test_opposite_memories_leave_what_is_orthogonal_to_both():
    memories = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(gem_direction(torch.tensor([3.0, 2.0]), memories), torch.tensor([0.0, 2.0]))


def test_gem_equals_dualproj_of_torchjd():
    aggregation = pytest.importorskip("torchjd.aggregation")
    weighting = pytest.importorskip("adapterhub.training.weighting._projector")
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        memories = torch.randn(3, 9, generator=generator, dtype=torch.float64)
        gradient = torch.randn(9, generator=generator, dtype=torch.float64) - memories.sum(0)
        first = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        dual = aggregation.DualProj(pref_vector=first, projector=weighting.ConeProjector())
        # The new task's own row is a constraint there too; a projection on a cone never points against it.
        found = dual(torch.cat([gradient[None], memories]))
        torch.testing.assert_close(gem_direction(gradient, memories), found, rtol=0, atol=1e-6)


def test_what_gem_cannot_use_is_refused():
    with pytest.raises(InputError, match=r"Found \(3,\) and \(2, 4\)"):
        gem_direction(torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="finite gradients"):
        gem_direction(torch.tensor([math.nan, 0.0]), torch.ones(1, 2))


@pytest.mark.slow
def test_everything_works_without_the_extra():
    code = """
import sys, torch, transformers, peft, transformers.modeling_utils, adapterhub.training
for name in ("torchjd", "scipy", "scipy.optimize"):
    sys.modules[name] = None
import adapterhub.training.sampling, adapterhub.training._reptile
from adapterhub.training.continual import gem_direction
print(gem_direction(torch.tensor([1.0, 2.0]), torch.tensor([[-1.0, 0.0]])).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0, 2.0]"


# Scores


def test_scores_by_hand():
    matrix = [[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.5, 0.9, 0.6]]
    found = ContinualScores.from_matrix(matrix, [0.1, 0.2, 0.3])
    assert found.acc == pytest.approx(2.0 / 3)
    assert found.bwt == pytest.approx(((0.5 - 0.9) + (0.9 - 0.8)) / 2)
    assert found.fwt == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)


@settings(max_examples=60, deadline=None)
@given(tasks=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_scores_are_their_sums(tasks, seed):
    generator = np.random.default_rng(seed)
    matrix, start = generator.random((tasks, tasks)), generator.random(tasks)
    bwt = fwt = forgetting = 0.0
    for i in range(tasks - 1):
        bwt += (matrix[tasks - 1][i] - matrix[i][i]) / (tasks - 1)
        forgetting += (max(matrix[k][i] for k in range(tasks - 1)) - matrix[tasks - 1][i]) / (tasks - 1)
        fwt += (matrix[i][i + 1] - start[i + 1]) / (tasks - 1)
    found = ContinualScores.from_matrix(matrix, start)
    assert (found.bwt, found.fwt, found.forgetting) == pytest.approx((bwt, fwt, forgetting))
    turned = ContinualScores.from_matrix(-matrix, -start, lower_is_better=True)
    assert (turned.bwt, turned.fwt, turned.forgetting) == pytest.approx((bwt, fwt, forgetting))
    assert turned.acc == pytest.approx(-found.acc)


def test_tasks_that_keep_what_they_had_forget_exactly_nothing():
    found = ContinualScores.from_matrix([[0.7, math.nan], [0.7, 0.4]])
    assert (found.bwt, found.forgetting, found.fwt) == (0.0, 0.0, None)
    assert ContinualScores.from_matrix([[0.7, math.nan], [0.7, 0.4]], [0.1, 0.1]).fwt is None
    assert ContinualScores.from_matrix([[0.5]]) == ContinualScores(0.5, None, None, None)


@pytest.mark.parametrize(
    ("matrix", "start", "message"),
    [
        ([[1.0, 2.0]], None, r"R should be square.* Found \(1, 2\)"),
        ([], None, "R should be square"),
        ([[1.0, 0.0], [math.nan, 1.0]], None, "R should be finite on and below"),
        ([[1.0, 0.0], [0.0, 1.0]], [0.1], r"a metric for each of 2 tasks. Found shape \(1,\)"),
    ],
)
def test_a_matrix_that_says_nothing_is_refused(matrix, start, message):
    with pytest.raises(InputError, match=message):
        ContinualScores.from_matrix(matrix, start)
