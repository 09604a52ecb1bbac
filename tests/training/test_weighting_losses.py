"""Weightings of losses: exact weights, the gradient they stand for, state that resumes, and what is missing."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, save
from torchjd.aggregation import GradVac, UPGrad
from torchjd.scalarization import DWA, FAMO, IMTLL, STCH, UW, GeometricMean

import adapterhub.training.weighting as room
from adapterhub.errors import InputError, MissingExtraError
from adapterhub.training.weighting import (
    WEIGHTINGS,
    Coba,
    DynamicWeightAverage,
    Famo,
    GradientWeighting,
    LossWeighting,
    Sum,
    Uncertainty,
    weighting_of,
)

TASKS = ("language/grammar", "reasoning/sums", "knowledge/facts")
OPTIONS = {
    "threshold": {"targets": 0.8},
    "static": {"static": {TASKS[1]: 2.0}},
    "coba": {"warmup": 3, "window": 5},
}
BY_LOSSES = [name for name, kind in WEIGHTINGS.items() if kind.kind == "losses"]
PURE = ["sum", "static", "initial", "threshold", "uncertainty", "inverse_loss", "dwa", "famo", "coba", "meta"]


def make(name, tasks=TASKS, **options):
    return weighting_of(name, tasks, **{**OPTIONS.get(name, {}), **options})


def weights_for(weighting, *losses):
    weighting(torch.tensor(losses, dtype=torch.float32, requires_grad=True))
    return weighting.weights().tolist()


@pytest.mark.parametrize("name", BY_LOSSES)
def test_weights_are_the_gradient_of_the_scalar(name):
    weighting = make(name)
    for step in range(3):
        losses = torch.tensor([4.0, 0.1, 1.0 + step], requires_grad=True)
        if weighting.needs_validation_losses:
            weighting.observe_validation(losses.detach())
        weighting(losses).backward()
        assert torch.equal(losses.grad, weighting.weights())
        assert all(weight >= 0 for weight in weighting.weights())


@pytest.mark.parametrize("name", BY_LOSSES)
def test_graph_reaches_through_the_losses(name):
    parameter = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    weighting = make(name)
    weighting(parameter**2).backward()
    torch.testing.assert_close(parameter.grad, weighting.weights() * 2 * parameter.detach())


def test_sum_is_the_plain_sum_and_static_weights_multiply():
    losses = torch.tensor([4.0, 0.1, 1.0])
    assert make("sum")(losses).item() == losses.sum().item()
    assert weights_for(make("sum", static={TASKS[0]: 2.0}), 4, 0.1, 1) == [2.0, 1.0, 1.0]
    assert weights_for(make("static", static={TASKS[0]: 0.5}), 4, 0.1, 1) == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", ["sum", "static", "initial", "threshold", "dwa", "coba"])
def test_doubling_a_static_weight_doubles_its_part(name):
    once, twice = make(name, static={TASKS[0]: 1.5}), make(name, static={TASKS[0]: 3.0})
    for losses in ((4.0, 0.1, 1.0), (2.0, 0.2, 0.5)):
        one, two = weights_for(once, *losses), weights_for(twice, *losses)
    assert two == pytest.approx([2 * one[0], one[1], one[2]])


def test_inverse_loss_gives_the_hard_task_less():
    """The guide calls this weighting uncertainty and says that it favours hard tasks; it does the opposite."""
    weights = weights_for(make("inverse_loss", tasks=("hard", "easy")), 4.0, 0.1)
    assert weights == pytest.approx([0.25, 10.0], rel=1e-4)


def test_uncertainty_comes_to_rest_at_half_the_inverse_loss():
    weighting = make("uncertainty", tasks=("hard", "easy"))
    assert [name for name, _ in weighting.named_parameters()] == ["s"]
    assert weights_for(weighting, 4.0, 0.1) == [0.5, 0.5]
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    losses = torch.tensor([4.0, 0.1])
    for _ in range(1500):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    torch.testing.assert_close(weighting.s.detach(), losses.log(), atol=1e-3, rtol=0)
    assert weights_for(weighting, 4.0, 0.1) == pytest.approx([0.125, 5.0], rel=1e-2)


@pytest.mark.parametrize(
    ("name", "given", "factor"), [("uncertainty", UW, 1), ("imtl_l", IMTLL, 1), ("gls", GeometricMean, 1)]
)
def test_equals_torchjd(name, given, factor):
    losses = torch.tensor([4.0, 0.1, 1.0])
    other = given() if given is GeometricMean else given(3)
    torch.testing.assert_close(make(name)(losses), factor * other(losses))


def test_stch_is_a_smooth_maximum():
    losses = torch.tensor([4.0, 0.1, 1.0])
    assert make("stch", mu=0.5)(losses).item() == pytest.approx(STCH(0.5)(losses).item())
    assert make("stch", mu=1e-3)(losses).item() == pytest.approx(4 / 3, abs=1e-3)


def test_initial_divides_by_the_first_losses_and_keeps_static_weights():
    weighting = make("initial", static={TASKS[0]: 3.0})
    assert weights_for(weighting, 4.0, 0.1, 1e-9) == pytest.approx([0.75, 10.0, 100.0])
    assert weights_for(weighting, 1.0, 5.0, 1.0) == pytest.approx([0.75, 10.0, 100.0])


def test_threshold_moves_by_exact_steps():
    weighting = weighting_of(
        "threshold", ("a", "b", "c"), targets={"a": 0.8, "b": 2.0}, less_is_better=["b"], step=2.0, rungs=2
    )
    assert weights_for(weighting, 1, 1, 1) == [1, 1, 1]
    weighting.observe({"a": 0.5, "b": 1.0, "c": 0.0})  # a under its target, b reached, c without one
    assert weights_for(weighting, 1, 1, 1) == pytest.approx([2 / (4 / 3), 1 / (4 / 3), 1 / (4 / 3)])
    weighting.observe({"a": math.nan, "b": 3.0})
    assert weighting.rung.tolist() == [2, 1, 0]
    assert weights_for(weighting, 1, 1, 1) == pytest.approx([4 / (7 / 3), 2 / (7 / 3), 1 / (7 / 3)])
    weighting.observe({"a": 0.1})  # no rung above the highest
    assert weighting.rung.tolist() == [2, 1, 0]
    for _ in range(3):
        weighting.observe({"a": 0.8, "b": 2.0})
    assert weights_for(weighting, 1, 1, 1) == [1, 1, 1]


def test_dwa_equals_torchjd():
    torch.manual_seed(0)
    ours, theirs = DynamicWeightAverage(TASKS, temperature=1.5), DWA(temperature=1.5)
    for _ in range(5):
        for _ in range(4):
            losses = torch.rand(3) + 0.1
            torch.testing.assert_close(ours(losses), theirs(losses))
        ours.epoch()
        theirs.step()
    before = ours.means.clone()
    ours.epoch()  # an epoch without a step is none
    assert torch.equal(before, ours.means)


def test_dwa_hand_count():
    weighting = DynamicWeightAverage(("slow", "fast"), temperature=2.0)
    for losses in ((1.0, 1.0), (0.9, 0.1)):
        weights_for(weighting, *losses)
        weighting.epoch()
    slow, fast = math.exp(0.9 / 2), math.exp(0.1 / 2)
    assert weights_for(weighting, 1, 1) == pytest.approx([2 * slow / (slow + fast), 2 * fast / (slow + fast)])


def test_famo_equals_torchjd_where_losses_are_taken_again():
    torch.manual_seed(0)
    ours, theirs = Famo(TASKS, {TASKS[0]: 3.0}), FAMO(3)
    static = torch.tensor([3.0, 1.0, 1.0])
    for _ in range(30):
        losses, after = torch.rand(3) + 0.1, torch.rand(3) + 0.05
        torch.testing.assert_close(ours(losses), theirs(static * losses))
        ours.observe_after_step(after)
        theirs.update(static * after)
    assert weights_for(ours, 1, 1, 1) != pytest.approx([1 / 3] * 3, rel=1e-2)


def test_famo_takes_the_next_batch_where_losses_are_not_taken_again():
    ours, again = Famo(("slow", "fast")), Famo(("slow", "fast"))
    for losses in ((1.0, 1.0), (0.9, 0.1), (0.8, 0.01)):
        again.observe_after_step(torch.tensor(losses))  # without a step before it: nothing
        assert weights_for(ours, *losses) == weights_for(again, *losses)
    shares = torch.tensor(weights_for(ours, 1, 1))
    assert shares[0] > 0.51 > shares[1]
    assert not ours.before.isnan().any()


def coba_reference(losses, warmup, window, tau):
    """The formula, one step and one task at a time, with lists."""
    number = len(losses[0])
    seen = [[row[t] / losses[0][t] for t in range(number)] for row in losses[1:]]

    def line(values):
        x = range(len(values))
        mx, my = sum(x) / len(values), sum(values) / len(values)
        return sum((a - mx) * (b - my) for a, b in zip(x, values, strict=True)) / sum((a - mx) ** 2 for a in x)

    def softmax(values):
        top = [math.exp(value - max(values)) for value in values]
        return [value / sum(top) for value in top]

    slopes, worst, weights = [], [], [1.0] * number
    for end in range(warmup, len(seen) + 1):
        part = seen[max(0, end - window) : end]
        slopes.append([line([row[t] for row in part]) for t in range(number)])
        worst.append(line([max(row) for row in part]))
        now, kept = slopes[-1], slopes[-window:]
        rcs = softmax([number * a / sum(map(abs, now)) for a in now])
        acs = softmax([-len(kept) * now[t] / sum(abs(row[t]) for row in kept) for t in range(number)])
        df = len(worst) * softmax([-tau * len(worst) * a / sum(map(abs, worst)) for a in worst])[-1]
        df = min(df, 1.0)
        found = softmax([number * (df * rcs[t] + (1 - df) * acs[t]) for t in range(number)])
        if min(found) < 1 / (10 * number):
            found = [w * (1 - 0.1) + 1 / (10 * number) for w in found]
        weights = [number * w for w in found]
    return weights


@pytest.mark.parametrize("seed", range(4))
def test_coba_equals_the_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    fall = torch.tensor([0.02, 0.005, -0.01])
    losses = [
        (torch.tensor([2.0, 1.0, 0.5]) * torch.exp(-fall * t) + 0.02 * torch.rand(3, generator=generator)).tolist()
        for t in range(60)
    ]
    weighting = Coba(TASKS, warmup=6, window=15, tau=3.0)
    for end, row in enumerate(losses, 1):
        weighting.observe_validation(torch.tensor(row))
        expected = coba_reference([torch.tensor(r).tolist() for r in losses[:end]], 6, 15, 3.0)
        assert weighting.current.tolist() == pytest.approx(expected, rel=1e-8)
    assert weights_for(weighting, 1, 1, 1) == pytest.approx(expected, rel=1e-6)


def test_coba_is_equal_in_the_warm_up_then_favours_the_slow_then_holds_back_the_diverging():
    weighting = Coba(("slow", "fast"), warmup=10, window=20)
    for step in range(10):
        weighting.observe_validation(torch.tensor([1 - 0.001 * step, 1 - 0.01 * step]))
        assert weighting.current.tolist() == [1, 1]
    for step in range(10, 40):
        weighting.observe_validation(torch.tensor([1 - 0.001 * step, 1 - 0.01 * step]))
    slow, fast = weighting.current.tolist()
    assert slow > 1.2 > 0.8 > fast
    for step in range(40):
        weighting.observe_validation(torch.tensor([0.96 + 0.02 * step, 0.6 - 0.01 * step]))
    diverging, other = weighting.current.tolist()
    assert diverging < 0.8 < 1.2 < other
    assert weighting.current.sum().item() == pytest.approx(2)


def flat(state):
    """A state as a checkpoint keeps it: tensors in safetensors, the rest in JSON."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = json.loads(json.dumps({name: value for name, value in state.items() if name not in tensors}))
    return {**load(save(tensors)), **rest}


def run(weighting, steps):
    torch.manual_seed(17)
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    rows = torch.randn(40, 3, 12, generator=torch.Generator().manual_seed(2))
    found = []
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1) if list(weighting.parameters()) else None
    for step in steps:
        losses = values[step].clone().requires_grad_()
        if isinstance(weighting, GradientWeighting):
            found.append(weighting(rows[step], losses, rows[step - 1, 0]))
        else:
            if weighting.needs_validation_losses:
                weighting.observe_validation(values[step - 1])
            weighting(losses).backward()
            if optimizer:
                optimizer.step()
                optimizer.zero_grad()
            found.append(weighting.weights())
        weighting.observe({TASKS[step % 3]: step / 40})
        if step % 5 == 4:
            weighting.epoch()
    return torch.stack(found)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_state_resumes_exactly(name):
    whole = run(make(name, seed=5), range(30))
    first = make(name, seed=5)
    run(first, range(13))
    torch.rand(3)  # nothing hangs on torch's own generator
    second = make(name, seed=5)
    second.load_state_dict(flat(first.state_dict()))
    assert torch.equal(run(second, range(13, 30)), whole[13:])


@pytest.mark.parametrize("name", ["random", "pcgrad", "graddrop"])
def test_draws_hang_on_the_seed_and_leave_the_generator_alone(name):
    torch.manual_seed(17)
    state = torch.get_rng_state()
    one, same, other = (make(name, seed=seed) for seed in (0, 0, 1))
    losses, rows = torch.ones(3), torch.tensor([[1.0, 0, 0], [-0.9, 0.5, 0], [-0.5, -0.9, 0.2]])  # all conflict
    drawn = [
        [w(rows, losses) if name != "random" else (w(losses), w.weights())[1] for _ in range(8)]
        for w in (one, same, other)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1]))
    assert not torch.equal(torch.stack(drawn[0]), torch.stack(drawn[2]))
    assert len({tuple(row.tolist()) for row in drawn[0]}) > 1  # and on the step


def test_objects_are_taken():
    ours = Uncertainty(TASKS)
    assert weighting_of(ours, TASKS) is ours
    losses, rows = torch.tensor([4.0, 0.1, 1.0]), torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    given = UW(3)
    taken = weighting_of(given, TASKS)
    assert isinstance(taken, LossWeighting)
    assert list(taken.parameters()) == list(given.parameters())
    taken.load_state_dict(flat(taken.state_dict()))
    assert taken(losses).item() == pytest.approx(given(losses).item())
    history = weighting_of(GradVac(), TASKS)
    assert history(rows, losses).shape == (9,)
    assert history.weights() is None
    with pytest.raises(InputError, match="GradVac"):
        weighting_of(GradVac(), TASKS).load_state_dict(history.state_dict())
    by_epoch, theirs = weighting_of(DWA(), TASKS), DWA()
    for _ in range(3):
        assert by_epoch(losses).item() == theirs(losses).item()
        by_epoch.epoch()
        theirs.step()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("upgrade", {}, "Did you mean `upgrad`"),
        ("sum", {"rate": 1}, "options \\(none\\). Found `rate`"),
        ("famo", {"rates": 1}, "Did you mean `rate`"),
        ("cagrad", {"mu": 1}, "options c. Found `mu`"),
        ("static", {}, "needs static weights"),
        ("threshold", {}, "needs targets"),
        ("threshold", {"targets": 0.5, "step": 1.0}, "step=1.0"),
        ("threshold", {"targets": {"language/gramar": 0.5}}, "Did you mean `language/grammar`"),
        ("coba", {"warmup": 1}, "warmup=1"),
        ("sum", {"static": {"nobody": 1.0}}, "nobody"),
        ("sum", {"static": {TASKS[0]: -1.0}}, "at least 0"),
        ("sum", {"static": {TASKS[0]: math.nan}}, "finite"),
        (3, {}, "Found 3"),
        (Sum(("a",)), {}, "Found one for a"),
        (UPGrad, {"c": 1}, "Options are for"),
        (FAMO(3), {}, "Take weighting 'famo'"),
    ],
)
def test_faults_name_the_rule_and_the_value(given, options, message):
    with pytest.raises(InputError, match=message):
        weighting_of(given, TASKS, **options)


@pytest.mark.parametrize("tasks", [(), ("a", "a"), "ab"])
def test_tasks_come_once(tasks):
    with pytest.raises(InputError, match="each once"):
        weighting_of("sum", tasks)


def test_shapes_are_checked():
    with pytest.raises(InputError, match=r"\(3,\).*Found \(2,\)"):
        make("sum")(torch.ones(2))
    with pytest.raises(InputError, match=r"\(3, P\).*Found \(2, 4\)"):
        make("upgrad")(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(InputError, match=r"`validation` should have shape \(4,\). Found None"):
        make("meta")(torch.ones(3, 4), torch.ones(3))


def test_without_the_extra_the_plain_ones_work(monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] in ("torchjd", "scipy")]:
        monkeypatch.delitem(sys.modules, module)
    for missing in ("torchjd", "scipy"):
        monkeypatch.setitem(sys.modules, missing, None)
    for module in ("_torchjd", "_projector", "_solvers"):
        monkeypatch.delitem(sys.modules, f"{room.__name__}.{module}", raising=False)
        monkeypatch.delattr(room, module, raising=False)
    for name in WEIGHTINGS:
        if name in PURE:
            run(make(name), range(5))
        else:
            with pytest.raises(MissingExtraError, match=r"adapterhub\[mtl\]"):
                make(name)


@pytest.mark.slow
def test_importing_the_room_imports_neither_torchjd_nor_scipys_optimiser():
    code = (
        "import sys, types, importlib.util as u; import adapterhub.errors\n"
        "for name in ('training', 'training.weighting'):\n"
        "    spec = u.find_spec('adapterhub')\n"
        "    module = types.ModuleType('adapterhub.' + name)\n"
        "    module.__path__ = [spec.submodule_search_locations[0] + '/' + name.replace('.', '/')]\n"
        "    sys.modules['adapterhub.' + name] = module\n"
        "import adapterhub.training.weighting._names\n"
        "print(sorted({'torchjd', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
