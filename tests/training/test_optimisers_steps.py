"""Optimisers of adapters: rates by group, steps equal to references, state that resumes from flat tensors."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.optimizers.lorafa import LoraFAOptimizer
from safetensors.torch import load, save
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from adapterhub.errors import InputError
from adapterhub.training.optimisers import (
    OPTIMISERS,
    AdaptiveMomentum,
    ConflictMeter,
    MuonAdamW,
    optimizer_of,
    parameter_groups,
)

RATE = 1e-2


def adapted(seed=0):
    """Two adapted linear modules, a head with its bias, and a norm."""
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    config = LoraConfig(r=3, target_modules=["0", "2"], modules_to_save=["3", "4"], init_lora_weights=False)
    return get_peft_model(base, config)


def backward(model, seed):
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    (model(inputs) - inputs[:, :2].sin()).square().mean().backward()


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def steps(model, optimizer, which, scheduler=None):
    for seed in which:
        backward(model, seed)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_groups_hold_every_trained_parameter_once():
    model = adapted()
    (group,) = parameter_groups(model.named_parameters(), RATE)
    assert group["names"] == list(trained(model))
    assert [id(p) for p in group["params"]] == [id(p) for p in trained(model).values()]
    assert group["lr"] == RATE


def test_lora_plus_gives_the_rates_of_pefts():
    model = adapted()
    peft = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16.0)
    expected = {id(p): group["lr"] for group in peft.param_groups for p in group["params"]}
    groups = parameter_groups(model.named_parameters(), RATE, lora_plus_ratio=16.0)
    ours = {name: g["lr"] for g in groups for name in g["names"]}
    assert len(groups) == 2
    for name, parameter in trained(model).items():
        assert ours[name] == (16 * RATE if "lora_B" in name else RATE)
        if "lora_" in name:
            assert ours[name] == expected[id(parameter)]


def test_task_rates_scale_sgds_update_exactly():
    names = {"a": "base.lora_A.language/grammar.weight", "b": "base.lora_A.language/style.weight", "c": "base.head"}
    tensors = {name: nn.Parameter(torch.ones(4)) for name in names.values()}
    groups = parameter_groups(tensors.items(), 1.0, task_rates={"language/grammar": 0.25})
    assert [group["lr"] for group in groups] == [0.25, 1.0]
    optimizer = optimizer_of("sgd", groups)
    for parameter in tensors.values():
        parameter.grad = torch.full((4,), 0.5)
    optimizer.step()
    moved = {key: (1 - tensors[name].detach()).tolist() for key, name in names.items()}
    assert moved == {"a": [0.125] * 4, "b": [0.5] * 4, "c": [0.5] * 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "`lr` should be a number above 0. Found 0.0"),
        ({"lora_plus_ratio": 0.5}, "at least 1. Found 0.5"),
        ({"task_rates": {"nobody": 1.0}}, "Found none of nobody"),
        ({"task_rates": {"default": -1.0}}, "task_rates\\[default\\]"),
        ({"task_rates": {"default": 1.0, "lora_A": 1.0}}, "of one task. Found .* default, lora_A"),
    ],
)
def test_groups_name_the_fault(options, message):
    with pytest.raises(InputError, match=message):
        parameter_groups(adapted().named_parameters(), **{"lr": RATE, **options})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {}, "Did you mean `adamw`"),
        ("muon", {"low": 0.1}, "options momentum, weight_decay. Found `low`"),
        ("adaptive_momentum", {"low": 0.9, "high": 0.5}, "low=0.9, high=0.5"),
    ],
)
def test_names_and_options_are_checked(name, options, message):
    with pytest.raises(InputError, match=message):
        optimizer_of(name, parameter_groups(adapted().named_parameters(), RATE), **options)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_loss_falls_and_groups_stay_as_they_were(name):
    model = adapted()
    groups = parameter_groups(model.named_parameters(), RATE)
    keys = [set(group) for group in groups]
    optimizer = optimizer_of(name, groups)
    assert [set(group) for group in groups] == keys
    losses = []
    for _ in range(60):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        loss = optimizer.step(lambda x=inputs: closure(model, x))
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


def closure(model, inputs):
    model.zero_grad()
    loss = (model(inputs) - inputs[:, :2].sin()).square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in OPTIMISERS] + [("sgd", {"momentum": 0.9}), ("adaptive_momentum", {"low": 0.9})],
)
def test_state_resumes_from_flat_tensors(name, options):
    """As the checkpoint keeps it: `<index>.<key>` to tensor, nothing else of the optimiser."""

    def made():
        model = adapted()
        groups = parameter_groups(model.named_parameters(), RATE, lora_plus_ratio=4.0)
        optimizer = optimizer_of(name, groups, **options)
        return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))

    model, optimizer, scheduler = made()
    whole = steps(model, optimizer, range(12), scheduler)
    model, optimizer, scheduler = made()
    steps(model, optimizer, range(5), scheduler)
    saved = {
        f"{index}.{key}": value.clone()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    weights = {key: tensor.detach().clone() for key, tensor in trained(model).items()}
    again, restored, timer = made()
    with torch.no_grad():
        for key, parameter in trained(again).items():
            parameter.copy_(weights[key])
    state = restored.state_dict()
    state["state"] = {}
    for key, value in load(save(saved)).items():
        index, _, entry = key.partition(".")
        state["state"].setdefault(int(index), {})[entry] = value
    restored.load_state_dict(state)
    timer.load_state_dict(scheduler.state_dict())
    for group, rate in zip(restored.param_groups, timer.get_last_lr(), strict=True):
        group["lr"] = rate
    assert_same(steps(again, restored, range(5, 12), timer), whole)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_adaptive_momentum_with_one_bound_is_adamw_bit_for_bit(beta):
    model, other = adapted(), adapted()
    ours = AdaptiveMomentum(trained(model).values(), RATE, low=beta, high=beta, weight_decay=0.1)
    theirs = torch.optim.AdamW(trained(other).values(), RATE, betas=(beta, 0.999), weight_decay=0.1)
    assert_same(steps(model, ours, range(15)), steps(other, theirs, range(15)))


def test_adaptive_momentum_with_near_bounds_is_near_adamw():
    """The general path, not the short cut."""
    model, other = adapted(), adapted()
    ours = AdaptiveMomentum(trained(model).values(), RATE, low=0.9 - 1e-7, high=0.9, weight_decay=0.1)
    theirs = torch.optim.AdamW(trained(other).values(), RATE, weight_decay=0.1)
    one, two = steps(model, ours, range(15)), steps(other, theirs, range(15))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=2e-5, rtol=1e-4)


def test_adaptive_momentum_hand_count():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = optimizer_of("adaptive_momentum", [{"params": [parameter], "lr": 1.0}], low=0.2, high=0.8, beta2=0.5)
    mean, square, decay, place = torch.zeros(2), torch.zeros(2), 1.0, torch.zeros(2)
    gradients = [torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]), torch.tensor([0.0, 3.0]), torch.zeros(2)]
    betas = [0.5, 0.2, 0.5, 0.5]  # no mean yet, against it, across it, no gradient
    for step, (gradient, beta) in enumerate(zip(gradients, betas, strict=True), 1):
        parameter.grad = gradient.clone()
        optimizer.step()
        mean, square, decay = beta * mean + (1 - beta) * gradient, (square + gradient**2) / 2, decay * beta
        place = place - mean / (1 - decay) / ((square / (1 - 0.5**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), place)
        if step == 2:  # a turn: the mean points with the new gradient at once
            assert mean[0] < 0


def test_adaptive_momentum_takes_a_gradient_of_zeros_first():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optimizer_of("adaptive_momentum", [{"params": [parameter], "lr": 1.0}])
    parameter.grad = torch.zeros(2)
    optimizer.step()
    assert parameter.tolist() == [1, 1]


def test_muon_steps_by_orthogonal_matrices_and_adamw_takes_the_rest():
    model, other = adapted(), adapted()
    groups = parameter_groups(model.named_parameters(), RATE)
    optimizer = optimizer_of("muon", groups)
    assert isinstance(optimizer, MuonAdamW)
    rest = {name: p for name, p in trained(other).items() if "lora_" not in name}
    adamw = torch.optim.AdamW(rest.values(), RATE, weight_decay=0.0, fused=True)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    backward(model, 0)
    backward(other, 0)
    optimizer.step()
    adamw.step()
    for name, parameter in trained(model).items():
        if "lora_" in name:
            change = (before[name] - parameter.detach()) / (RATE * 0.2 * max(parameter.shape) ** 0.5)
            values = torch.linalg.svdvals(change)
            assert values.min() > 0.5
            assert values.max() < 1.5
        else:
            assert torch.equal(parameter, rest[name]), name
    named = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(named) == sorted(trained(model))
    assert {key for state in optimizer.state.values() for key in state} == {
        "momentum_buffer", "step", "exp_avg", "exp_avg_sq",
    }  # fmt: skip


def test_muon_leaves_parameters_without_names_to_adamw_and_follows_a_schedule():
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = optimizer_of("muon", [{"params": [parameter], "lr": 1.0}])
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    parameter.grad = torch.ones(3, 2)
    for expected in (0.0, -0.5):
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(parameter.detach(), torch.full((3, 2), expected))


def test_muon_of_matrices_alone():
    parameter = nn.Parameter(torch.eye(3))
    optimizer = optimizer_of("muon", [{"params": [parameter], "names": ["x.lora_A.default.weight"], "lr": 1.0}])
    parameter.grad = torch.eye(3)
    optimizer.step()
    assert "momentum_buffer" in optimizer.state[parameter]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert len(optimizer.state) == 1


def test_lora_fa_holds_a_and_is_pefts_up_to_its_bfloat16():
    model, other = adapted(), adapted()
    optimizer = optimizer_of("lora_fa", parameter_groups(model.named_parameters(), RATE))
    start = {name: p.detach().clone() for name, p in trained(model).items()}
    named = trained(other)
    group = {
        "params": list(named.values()),
        "names": list(named),
        "scaling_factors": [1.0] * len(named),
        "betas": (0.9, 0.999),
    }
    theirs = LoraFAOptimizer([group], lr=RATE, eps=1e-8)
    ours, expected = steps(model, optimizer, range(5)), steps(other, theirs, range(5))
    for name, tensor in ours.items():
        if "lora_A" in name:
            assert torch.equal(tensor, start[name])
        else:
            moved, wanted = tensor - start[name], expected[name] - start[name]
            assert (moved - wanted).norm() < 0.03 * wanted.norm(), name


def test_lora_fa_wants_both_matrices():
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "names": ["x.lora_B.default.weight"], "lr": 1.0}]
    with pytest.raises(InputError, match=r"Found alone: x\.lora_B"):
        optimizer_of("lora_fa", groups)


def test_meter_counts_directions_and_updates_apart():
    meter = ConflictMeter()
    assert all(rate != rate for rate in meter.rates())
    rows = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
    helps, hurts = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    meter.update(rows, helps, helps)
    meter.update(rows, helps, hurts)
    meter.update(rows, hurts, hurts)
    meter.update(rows, helps, torch.zeros(2))  # nothing moved, nobody hurt
    assert meter.rates() == (0.25, 0.5)
    meter.update(rows, torch.tensor([1.0, 0.5 - 1e-8]), helps)  # rounding is no conflict
    other = ConflictMeter()
    other.load_state_dict(meter.state_dict())
    assert other.rates() == meter.rates() == (0.2, 0.4)
    with pytest.raises(InputError, match=r"Found \(2, 2\), \(2,\), \(3,\)"):
        meter.update(rows, helps, torch.zeros(3))
