"""Reptile: its formula, and a family of tasks that is learned faster from where it leads."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from adapterhub.errors import InputError
from adapterhub.training._reptile import Reptile, reptile_step


def test_a_step_goes_a_share_of_the_way_to_the_mean():
    start, ends = torch.tensor([0.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    torch.testing.assert_close(reptile_step(start, ends[0], 0.25), torch.tensor([0.25, 2.0]))
    torch.testing.assert_close(reptile_step(start, ends, 0.5), torch.tensor([1.0, 1.0]))
    assert torch.equal(reptile_step(start, ends[1], 1.0), ends[1])


def test_the_way_gets_shorter_step_by_step():
    reptile = Reptile(torch.zeros(1), epsilon=0.8, steps=4)
    found = [reptile.epsilon]
    for _ in range(3):
        before = reptile.weights.clone()
        torch.testing.assert_close(reptile.update(before + 1) - before, torch.tensor([found[-1]]))
        found.append(reptile.epsilon)
    assert found == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert reptile.weights.item() == pytest.approx(0.8 + 0.6 + 0.4)


def test_a_resumed_loop_goes_on_as_the_whole_one():
    torch.manual_seed(0)
    ends = torch.randn(6, 2, 5)
    whole, resumed = Reptile(torch.ones(5), steps=6), Reptile(torch.ones(5), steps=6)
    for number in range(6):
        if number == 3:
            resumed.load_state_dict(whole.state_dict())
        whole.update(ends[number])
        if number >= 3:
            resumed.update(ends[number])
    assert torch.equal(whole.weights, resumed.weights)


def test_the_start_is_copied():
    start = torch.zeros(2)
    Reptile(start, steps=1).update(torch.ones(2))
    assert torch.equal(start, torch.zeros(2))


class Family:
    """Sine waves of one frequency (Finn et al. 2017): y = a sin(x + b), 20 points each, a net of 40 hidden units."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
        self.shapes = {name: parameter.shape for name, parameter in self.net.named_parameters()}
        self.start = torch.nn.utils.parameters_to_vector(self.net.parameters()).detach()
        self.generator = torch.Generator().manual_seed(seed)

    def tasks(self, count):
        amplitude, phase = 1 + 3 * self._uniform(count, 1, 1), 3.14159 * self._uniform(count, 1, 1)
        inputs = 10 * self._uniform(count, 40, 1) - 5
        return inputs, amplitude * torch.sin(inputs + phase)

    def _uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def loss(self, weights, inputs, targets):
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return ((functional_call(self.net, named, (inputs,)) - targets) ** 2).mean()

    def adapt(self, weights, inputs, targets, steps):
        for _ in range(steps):
            weights = weights.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(weights, inputs, targets), weights)
            weights = weights - 0.02 * gradient
        return weights.detach()


def few_steps(seed):
    """Loss on unseen points after 8 steps on 20 of them, from Reptile's weights and from the random ones."""
    family = Family(seed)
    reptile = Reptile(family.start, epsilon=1.0, steps=300)
    for _ in range(300):
        inputs, targets = family.tasks(1)
        reptile.update(family.adapt(reptile.weights, inputs[0], targets[0], 8))
    inputs, targets = family.tasks(20)
    losses = []
    for start in (reptile.weights, family.start):
        ends = [family.adapt(start, x[:20], y[:20], 8) for x, y in zip(inputs, targets, strict=True)]
        losses.append(
            np.mean([family.loss(end, x[20:], y[20:]).item() for end, x, y in zip(ends, inputs, targets, strict=True)])
        )
    return losses


@pytest.mark.slow
def test_new_tasks_are_learned_in_fewer_steps_over_paired_seeds():
    found = np.array([few_steps(seed) for seed in range(5)])
    assert (found[:, 0] < found[:, 1]).all(), found
    assert (found[:, 0] / found[:, 1]).mean() < 0.8, found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(2, 4), 0.1), r"Found \(3,\) and \(2, 4\)"),
        ((torch.zeros(3), torch.zeros(0, 3), 0.1), r"Found \(3,\) and \(0, 3\)"),
        ((torch.zeros(3), torch.zeros(3), 0.0), r"in \(0, 1\]\. Found 0.0"),
        ((torch.zeros(3), torch.full((3,), float("nan")), 0.1), "finite weights"),
    ],
)
def test_a_step_that_leads_nowhere_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        reptile_step(*arguments)


def test_a_loop_outside_its_range_is_refused():
    with pytest.raises(InputError, match="at least 1 step"):
        Reptile(torch.zeros(1), steps=0)
    with pytest.raises(InputError, match="at least 1 step"):
        Reptile(torch.zeros(1), epsilon=1.5, steps=3)
    done = Reptile(torch.zeros(1), steps=1)
    done.update(torch.ones(1))
    with pytest.raises(InputError, match="was given 1 steps"):
        done.update(torch.ones(1))
    with pytest.raises(InputError, match="has 1 weights"):
        done.load_state_dict({"weights": torch.zeros(2), "step": torch.tensor(0)})
