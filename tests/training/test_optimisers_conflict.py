"""Two tasks that conflict on one small LoRA: what the plain sum does, what UPGrad mends, and what momentum undoes."""

import statistics

import pytest
import torch

from adapterhub.training.optimisers import ConflictMeter, optimizer_of, parameter_groups
from adapterhub.training.weighting import LossWeighting, flat_gradient, weighting_of

WIDTH, RANK, STEPS, SEEDS = 32, 4, 150, 5


class Problem:
    """A frozen two-layer network with a LoRA on its first layer, and a teacher LoRA for each of two tasks.

    The teachers pull apart (correlation -0.3), the tasks' inputs share a part of their space, and the second loss is
    a twentieth of the first.
    """

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.first, self.last = self.draw(WIDTH, WIDTH), self.draw(WIDTH, WIDTH)
        one, two = (self.draw(WIDTH, RANK) @ self.draw(RANK, WIDTH) * (WIDTH / RANK) ** 0.5 for _ in range(2))
        self.teachers = (one, -0.3 * one + (1 - 0.3**2) ** 0.5 * two)
        self.a = torch.nn.Parameter(self.draw(RANK, WIDTH))
        self.b = torch.nn.Parameter(torch.zeros(WIDTH, RANK))
        axes, part = torch.linalg.qr(self.draw(WIDTH, WIDTH))[0], int(0.6 * WIDTH)
        self.inputs = (axes[:, :part] @ axes[:, :part].T, axes[:, -part:] @ axes[:, -part:].T)
        self.held = [self.batch(512) for _ in range(2)]

    def draw(self, rows, columns):
        return torch.randn(rows, columns, generator=self.generator) / WIDTH**0.5

    def batch(self, rows):
        return torch.randn(rows, WIDTH, generator=self.generator)

    def answer(self, inputs, delta):
        return torch.tanh(inputs @ (self.first + delta).T) @ self.last.T

    def losses(self, batches):
        return [
            scale * (self.answer(x @ own, self.b @ self.a) - self.answer(x @ own, teacher)).square().mean()
            for x, own, teacher, scale in zip(batches, self.inputs, self.teachers, (1.0, 0.05), strict=True)
        ]


def run(weighting, optimiser, rate, seed, rows):
    """Relative falls of the two held-out losses, and the rates of conflicting directions and updates."""
    problem = Problem(seed)
    parameters = [problem.a, problem.b]
    names = ["x.lora_A.default.weight", "x.lora_B.default.weight"]
    optimizer = optimizer_of(optimiser, parameter_groups(zip(names, parameters, strict=True), rate))
    weigh, meter = weighting_of(weighting, ("one", "two")), ConflictMeter()
    start = [loss.item() for loss in problem.losses(problem.held)]
    for _ in range(STEPS):
        losses = problem.losses([problem.batch(rows) for _ in range(2)])
        gradients = torch.stack([flat_gradient(loss, parameters) for loss in losses])
        values = torch.stack(losses).detach()
        if isinstance(weigh, LossWeighting):
            weigh(values)
            direction = weigh.weights() @ gradients
        else:
            direction = weigh(gradients, values)
        before = torch.nn.utils.parameters_to_vector(parameters).detach()
        for parameter, part in zip(parameters, direction.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
        meter.update(gradients, direction, before - torch.nn.utils.parameters_to_vector(parameters).detach())
    end = [loss.item() for loss in problem.losses(problem.held)]
    return [1 - late / early for late, early in zip(end, start, strict=True)], meter.rates()


@pytest.mark.slow
def test_under_sgd_the_sum_hurts_the_small_task_and_upgrad_does_not():
    for seed in range(SEEDS):
        (one, two), (directions, updates) = run("sum", "sgd", 0.3, seed, rows=512)
        assert one > 0.4
        assert two < -0.1
        assert directions == updates > 0.8
        (one, two), (directions, updates) = run("upgrad", "sgd", 0.3, seed, rows=512)
        assert one > 0.1
        assert two > -0.03
        assert directions == updates == 0


@pytest.mark.slow
def test_adamw_undoes_upgrad_and_adaptive_momentum_less_so():
    rates = []
    for seed in range(SEEDS):
        pair = [run("upgrad", name, 3e-3, seed, rows=128) for name in ("adamw", "adaptive_momentum")]
        for (one, _), (directions, _) in pair:
            assert one > 0.7
            assert directions == 0
        rates.append([updates for _, (_, updates) in pair])
    adamw, adaptive = (statistics.median(column) for column in zip(*rates, strict=True))
    assert adamw > 0.3
    assert adaptive < 0.75 * adamw
    assert all(two < one for one, two in rates)
