"""Weightings of gradients: equal to slow references, safe at any loss scale, and meta-learned weights."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torchjd.aggregation import IMTLG, MGDA, AlignedMTL, DualProj, PCGrad, UPGrad

from adapterhub.training.weighting import WEIGHTINGS, MetaWeighting, flat_gradient, gramian, look_ahead, weighting_of
from adapterhub.training.weighting._projector import ConeProjector
from adapterhub.training.weighting._solvers import conflict_averse, minimal_norm, nash

BY_GRADIENTS = [name for name, kind in WEIGHTINGS.items() if kind.kind == "gradients"]
SAFE = ["upgrad", "dualproj", "mgda", "imtl_g", "nash_mtl"]
DEGENERATE = {
    "zero": torch.zeros(3, 6),
    "one zero": torch.tensor([[1.0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [-1, 0, 1, 0, 0, 0]]),
    "equal": torch.ones(3, 6),
    "opposite": torch.tensor([[1.0, 0], [-1.0, 0], [1.0, 0]]),
    "tiny": 1e-12 * torch.eye(3),
    "huge": 1e12 * torch.eye(3),
}


def conflicting(number, ratio, seed, width=300):
    """Rows that pull along one axis in both directions, their lengths from 1 to `ratio`."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(width, generator=generator)
    rows = torch.randn(number, width, generator=generator) + torch.linspace(-1.5, 1.5, number)[:, None] * axis
    return rows * torch.logspace(0, np.log10(ratio), number)[:, None]


def direction(name, rows, **options):
    tasks = [f"task-{place}" for place in range(len(rows))]
    weighting = weighting_of(name, tasks, **options)
    return weighting(rows, torch.ones(len(rows)), rows.mean(0)), weighting


def worst(rows, vector):
    """The least cosine of a row with a vector; above 0 every task gains."""
    return float((rows @ vector / rows.norm(dim=1) / vector.norm()).min())


@pytest.mark.parametrize("ratio", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("number", [2, 3, 4, 8])
@pytest.mark.parametrize("name", SAFE)
def test_no_task_is_hurt_at_any_loss_scale(name, number, ratio):
    for seed in range(15):
        rows = conflicting(number, ratio, seed)
        assert worst(rows, direction(name, rows)[0]) >= -1e-6


@pytest.mark.parametrize("ratio", [1.0, 0.05, 0.01])
def test_pcgrad_hurts_neither_of_two_tasks(ratio):
    for seed in range(15):
        rows = conflicting(2, ratio, seed)
        found = direction("pcgrad", rows)[0]
        assert worst(rows, found) >= -1e-6
        one, two = rows
        dot = one @ two
        assert dot < 0
        expected = one - dot / (two @ two) * two + two - dot / (one @ one) * one
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_sum_hurts_where_scales_differ():
    assert all(worst(rows, rows.sum(0)) < -0.3 for rows in (conflicting(2, 0.01, seed) for seed in range(15)))


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("ratio", [1.0, 0.01])
def test_projector_solves_its_quadratic_program(number, ratio):
    for seed in range(10):
        products = gramian(conflicting(number, ratio, seed, width=7))
        scaled = (products / products.trace()).numpy()
        weights = torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = ConeProjector()(weights, products).numpy()
        reference = minimize(
            lambda v, g=scaled: 1e3 * v @ g @ v,
            weights.numpy() + 1,
            jac=lambda v, g=scaled: 2e3 * g @ v,
            bounds=[(u, None) for u in weights.tolist()],
            method="L-BFGS-B",
            options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10000},
        ).x
        assert (found >= weights.numpy() - 1e-12).all()
        value, best = found @ scaled @ found, reference @ scaled @ reference
        assert value <= best * (1 + 1e-7)
        slope = scaled @ found  # what a minimum is known by
        lengths = np.sqrt(np.diag(scaled))
        assert (slope / lengths >= -1e-8).all()
        assert np.abs(slope * (found - weights.numpy())).max() <= 1e-8


def test_projector_takes_many_vectors_and_leaves_weights_without_conflict():
    weights = torch.rand(4, 2, 3)
    assert torch.equal(ConeProjector()(weights, torch.eye(3)), weights)
    products = gramian(conflicting(3, 0.1, 0))
    found = ConeProjector()(weights, products)
    for place in range(4):
        torch.testing.assert_close(found[place, 1], ConeProjector()(weights[place, 1], products))


@pytest.mark.parametrize("kind", ["any", "orthogonal", "orthogonal to the first", "opposite", "whole numbers"])
def test_projection_is_right_where_products_are_rounding(kind):
    """Where scipy's non-negative least squares was wrong: products of rows that are zero but for rounding."""
    random = np.random.default_rng(0)
    for _ in range(150):
        number = int(random.integers(2, 9))
        rows = random.standard_normal((number, 12))
        if kind == "orthogonal":
            rows = np.linalg.qr(rows.T)[0].T * random.uniform(0.1, 3, (number, 1))
        elif kind == "orthogonal to the first":
            rows[1:] -= np.outer(rows[1:] @ rows[0], rows[0]) / (rows[0] @ rows[0])
        elif kind == "opposite":
            rows[1] = -rows[0] * random.uniform(0.1, 2)
        elif kind == "whole numbers":
            rows = random.integers(-1, 2, rows.shape) + 0.0 * rows
        rows = (rows * 10 ** random.uniform(-4, 0, (number, 1))).astype(np.float32).astype(float)
        lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
        for weights, projected in zip(
            np.eye(number), ConeProjector()(torch.eye(number).double(), torch.tensor(rows @ rows.T)), strict=True
        ):
            found, scale = projected.numpy() @ rows, np.abs(weights * lengths).max()
            gains = rows @ found / lengths
            assert (projected.numpy() >= weights - 1e-12 / lengths).all()
            assert gains.min() >= -1e-6 * scale
            assert np.abs(gains * (projected.numpy() - weights) * lengths).max() <= 1e-6 * scale * max(scale, 1e-30)


def simplex(steps):
    for first in range(steps + 1):
        for second in range(steps + 1 - first):
            yield np.array([first, second, steps - first - second]) / steps


@pytest.mark.parametrize("ratio", [1.0, 0.05])
def test_minimal_norm_is_the_shortest_mean(ratio):
    for seed in range(5):
        products = gramian(conflicting(3, ratio, seed, width=6))
        found = minimal_norm(products).numpy()
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()
        length = found @ products.numpy() @ found
        assert length <= min(w @ products.numpy() @ w for w in simplex(100)) * (1 + 1e-9)
        frank_wolfe = MGDA(epsilon=1e-9, max_iters=20000).gramian_weighting(products).numpy()
        assert length <= frank_wolfe @ products.numpy() @ frank_wolfe * (1 + 1e-9)
        assert frank_wolfe @ products.numpy() @ frank_wolfe <= length * 1.01


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [1.0, 0.05])
def test_cagrad_has_the_best_worst_case_in_its_ball(c, ratio):
    for seed in range(3):
        rows = conflicting(3, ratio, seed, width=3).double()  # in three dimensions every direction can be tried
        found = conflict_averse(c)(gramian(rows)) @ rows
        mean = rows.mean(0)
        assert (found - mean).norm() == pytest.approx(c * mean.norm().item(), rel=1e-6)
        generator = torch.Generator().manual_seed(seed)
        others = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
        others = mean + c * mean.norm() * others / others.norm(dim=1, keepdim=True)
        best = (others @ rows.T).amin(1).max().item()
        reached = (rows @ found).min().item()
        assert reached >= best - 1e-9
        assert reached <= best + 0.02 * rows.norm(dim=1).max().item() * mean.norm().item()


@pytest.mark.parametrize("c", [0.3, 0.7])
def test_cagrad_equals_brute_force_for_two_tasks(c):
    for seed in range(5):
        rows = conflicting(2, 0.3, seed, width=9).double()
        mean = rows.mean(0)
        shares = torch.linspace(0, 1, 100001, dtype=torch.float64)
        mixed = shares[:, None] * rows[0] + (1 - shares)[:, None] * rows[1]
        chosen = mixed[(mixed @ mean + c * mean.norm() * mixed.norm(dim=1)).argmin()]
        expected = mean + c * mean.norm() / chosen.norm() * chosen
        torch.testing.assert_close(conflict_averse(c)(gramian(rows)) @ rows, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("number", [1, 2, 5, 12])
@pytest.mark.parametrize("ratio", [1.0, 1e-4])
def test_nash_is_the_bargaining_solution(number, ratio):
    for seed in range(5):
        rows = conflicting(number, ratio, seed).double()
        weights = nash(gramian(rows))
        assert (weights > 0).all()
        torch.testing.assert_close(gramian(rows) @ weights * weights, torch.ones(number).double(), rtol=1e-6, atol=1e-6)
        assert (weights @ rows).norm().item() == pytest.approx(number**0.5, rel=1e-6)


def test_imtl_g_projects_equally():
    for number in (2, 3, 6):
        for seed in range(10):
            rows = conflicting(number, 0.05, seed)
            found, weighting = direction("imtl_g", rows)
            shares = rows @ found / rows.norm(dim=1)
            torch.testing.assert_close(shares, shares.mean().expand(number), rtol=1e-3, atol=1e-6)
            assert abs(weighting.weights().sum().item()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("aligned_mtl", AlignedMTL()),
        ("dualproj", DualProj(projector=ConeProjector())),
        ("imtl_g", IMTLG()),
        ("pcgrad", PCGrad()),
        ("upgrad", UPGrad(projector=ConeProjector())),
    ],
)
def test_names_equal_torchjds_aggregators(name, given):
    rows = conflicting(2, 0.2, 3).double()
    expected = given(rows)
    torch.testing.assert_close(direction(name, rows)[0], expected)
    torch.testing.assert_close(direction(given, rows)[0], expected)


@pytest.mark.parametrize("name", [name for name in BY_GRADIENTS if name not in {"graddrop", "meta"}])
def test_weights_make_the_direction_and_static_weights_scale_the_rows(name):
    rows = conflicting(3, 0.1, 1)
    found, weighting = direction(name, rows, static={"task-1": 3.0})
    torch.testing.assert_close(weighting.weights() @ rows, found)
    torch.testing.assert_close(direction(name, torch.tensor([1.0, 3.0, 1.0])[:, None] * rows)[0], found)


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_one_task_keeps_its_direction(name):
    rows = torch.tensor([[3.0, -4.0, 0.5]])
    assert worst(rows, direction(name, rows)[0]) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in BY_GRADIENTS if name not in {"pcgrad", "graddrop"}])
def test_the_order_of_the_tasks_does_not_matter(name):
    rows = conflicting(4, 0.2, 2)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(direction(name, rows)[0], direction(name, rows[order])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_degenerate_gradients_give_a_finite_direction(name, case):
    rows = DEGENERATE[case]
    found = direction(name, rows)[0]
    assert torch.isfinite(found).all()
    if name in SAFE and case != "zero":
        longest = rows.norm(dim=1).max()
        scale = longest * max(found.norm(), 0.1 * longest)  # a shorter direction is as good as none, and rounded
        assert (rows @ found >= -1e-6 * scale).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_a_gradient_that_is_not_finite_shows(name, bad):
    rows = conflicting(3, 1.0, 0)
    rows[1, 2] = bad
    assert not torch.isfinite(direction(name, rows)[0].norm())


def test_gramian_is_exact_across_blocks(monkeypatch):
    rows = conflicting(3, 1e-3, 0, width=1000)
    whole = rows.double() @ rows.double().T
    monkeypatch.setattr("adapterhub.training.weighting._gradients._COLUMNS", 64)
    torch.testing.assert_close(gramian(rows), whole, rtol=1e-13, atol=0)
    assert gramian(rows[:, :0]).tolist() == [[0.0] * 3] * 3


# What follows is the guide's meta-learning: there the gradients of all tasks but the last are overwritten, the weights
# never change, and a parameter that a task does not use is an error.


def problem(seed=0):
    """Two layers, the second unused by the last task: losses of three tasks and of the validation rows."""
    torch.manual_seed(seed)
    first, second = nn.Linear(5, 4), nn.Linear(4, 1)
    inputs, targets = torch.randn(4, 16, 5), torch.randn(4, 16, 1)

    def losses():
        hidden = [torch.tanh(first(x)) for x in inputs]
        found = [(second(h) - y).square().mean() for h, y in zip(hidden[:2], targets, strict=False)]
        return [*found, hidden[2].square().mean()], (second(hidden[3]) - targets[3]).square().mean()

    return [*first.parameters(), *second.parameters()], losses


def test_unused_parameters_have_zero_gradients():
    parameters, losses = problem()
    row = flat_gradient(losses()[0][2], parameters)
    assert row.shape == (29,)
    assert row[:24].abs().min() > 0
    assert torch.equal(row[24:], torch.zeros(5))


def test_look_ahead_equals_finite_differences():
    torch.set_default_dtype(torch.float64)
    try:
        parameters, losses = problem()
        rows = torch.stack([flat_gradient(loss, parameters) for loss in losses()[0]])
        validation = flat_gradient(losses()[1], parameters)
        step, base = 1e-4, nn.utils.parameters_to_vector(parameters).detach()

        def after(weights):
            nn.utils.vector_to_parameters(base - step * weights @ rows, parameters)
            return losses()[1].item()

        found = look_ahead(rows, validation, step)
        for place in range(3):
            unit = torch.eye(3)[place]
            assert after(0.5 * unit) - after(-0.5 * unit) == pytest.approx(found[place].item(), rel=1e-3)
    finally:
        torch.set_default_dtype(torch.float32)


def test_meta_weights_follow_every_task_and_not_the_last_alone():
    weighting = MetaWeighting(("a", "b", "c"), rate=0.5)
    rows, validation = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]), torch.tensor([3.0, 1.0])
    found = weighting(rows, torch.ones(3), validation)
    moved = torch.tensor([1 + 0.5 * 9 / 7, 1 + 0.5 * 3 / 7, 1 - 0.5 * 9 / 7])
    torch.testing.assert_close(weighting.weights(), 3 * moved / moved.sum())
    torch.testing.assert_close(found, weighting.weights() @ rows)
    for _ in range(60):
        weighting(rows, torch.ones(3), validation)
    torch.testing.assert_close(weighting.weights(), torch.tensor([2.25, 0.75, 0.0]), atol=1e-3, rtol=0)
    weighting(rows, torch.ones(3), torch.zeros(2))  # nothing to go by: the weights stay
    torch.testing.assert_close(weighting.weights(), torch.tensor([2.25, 0.75, 0.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [0.0, 2e-3])
@pytest.mark.parametrize("seed", range(3))
def test_random_labels_go_to_nothing_and_the_validation_tasks_double_comes_first(seed, rate):
    generator = torch.Generator().manual_seed(seed)
    truth, other = torch.randn(2, 12, generator=generator)
    other = other + 0.5 * truth
    parameter = torch.zeros(12, requires_grad=True)
    weighting = MetaWeighting(("double", "related", "random"), rate=0.05)

    def loss(weights):
        x = torch.randn(32, 12, generator=generator)
        y = x @ weights if weights is not None else 5 * torch.randn(32, generator=generator)
        return (x @ parameter - y).square().mean()

    for _ in range(200):
        losses = [loss(truth), loss(other), loss(None)]
        rows = torch.stack([flat_gradient(one, [parameter]) for one in losses])
        found = weighting(rows, torch.stack(losses).detach(), flat_gradient(loss(truth), [parameter]))
        with torch.no_grad():
            parameter -= rate * found
    double, related, random = weighting.weights().tolist()
    assert double > max(related, random)
    assert random < 0.15
    assert related > 0.5 or rate > 0  # on the way to the double's optimum the related task falls behind as well
