"""One step on shared weights: the direction is its formula, and what it keeps is kept."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, softmax
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from adapterhub.errors import InputError
from adapterhub.training.continual import EWC, Distilled, Keeping, distillation_loss, fisher_diagonal, gem_direction
from adapterhub.training.continual._keeping import check_keep


class Toy:
    """A small net, a task for each direction of a plane: on which side of a line does a point lie?"""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        self.parameters = list(self.net.parameters())

    def loss(self, batch):
        return cross_entropy(self.net(batch[0]), batch[1])

    def logits(self, batch):
        return self.net(batch[0])

    def accuracy(self, batch):
        return (self.net(batch[0]).argmax(-1) == batch[1]).float().mean().item()


def task(number, rows=200, seed=0):
    """Inputs around a centre of their own, so that one net can serve all tasks if it is not allowed to forget."""
    generator = torch.Generator().manual_seed(1000 * number + seed)
    centre = torch.zeros(6)
    centre[2 + number] = 3.0
    inputs = torch.randn(rows, 6, generator=generator) + centre
    sign = 1 if number % 2 == 0 else -1
    return inputs, (sign * inputs[:, 0] > 0).long()


def flat(loss, parameters):
    return torch.cat([grad.reshape(-1) for grad in torch.autograd.grad(loss, parameters)])


def direction(parameters, keeping, *losses):
    """What a step follows, from the loss of the new task and those of the batches that keep the older ones."""
    rows = torch.stack([flat(loss, parameters) for loss in losses])
    return keeping(rows, torch.tensor([loss.item() for loss in losses]))


def moved(toy):
    """Weights away from where the step took its copy, as in the middle of a run."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in toy.parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_without_anything_to_keep_it_is_the_loss():
    toy = Toy()
    found = direction(toy.parameters, Keeping("new", {}), toy.loss(task(0)))
    torch.testing.assert_close(found, flat(toy.loss(task(0)), toy.parameters))


def test_replay_adds_the_mean_loss_of_the_memories():
    toy = Toy()
    keeping = Keeping("new", {"replay": ["a", "b"]}, strengths={"replay": 0.5})
    found = direction(toy.parameters, keeping, *(toy.loss(task(number)) for number in range(3)))
    total = toy.loss(task(0)) + 0.5 * (toy.loss(task(1)) + toy.loss(task(2))) / 2
    torch.testing.assert_close(found, flat(total, toy.parameters))


def test_distillation_compares_with_the_model_as_it_was():
    toy, before = Toy(), Toy()
    distilled = Distilled(toy.parameters, toy.logits, temperature=3.0)
    keeping = Keeping("new", {"distillation": ["a", "b"]}, strengths={"distillation": 2.0})
    moved(toy)
    weights = parameters_to_vector(toy.parameters).detach().clone()
    batches = task(0), task(1)  # the new rows may stand in for remembered ones
    found = direction(toy.parameters, keeping, toy.loss(task(0)), *map(distilled, batches))
    kept = sum(distillation_loss(toy.logits(batch), before.logits(batch), 3.0) for batch in batches)
    torch.testing.assert_close(found, flat(toy.loss(task(0)) + 2.0 * kept / 2, toy.parameters))
    assert torch.equal(parameters_to_vector(toy.parameters), weights)


def test_the_weights_come_back_where_the_old_model_fails():
    toy = Toy()

    def failing(batch):
        raise RuntimeError

    distilled = Distilled(toy.parameters, failing)
    moved(toy)
    weights = parameters_to_vector(toy.parameters).detach().clone()
    with pytest.raises(RuntimeError):
        distilled(task(0))
    assert torch.equal(parameters_to_vector(toy.parameters), weights)


def springs(toy, batch, strength):
    def log_likelihoods(rows):
        return -cross_entropy(toy.net(rows[0]), rows[1], reduction="none")

    ewc = EWC(strength)
    ewc.add_task(toy.parameters, fisher_diagonal(log_likelihoods, [batch], toy.parameters))
    return ewc


def test_ewc_adds_its_penalty():
    toy = Toy()
    ewc = springs(toy, task(1), 7.0)
    keeping = Keeping("new", {}, parameters=toy.parameters, ewc=ewc)
    found = direction(toy.parameters, keeping, toy.loss(task(0)))
    torch.testing.assert_close(found, flat(toy.loss(task(0)), toy.parameters))  # the springs are at rest
    moved(toy)
    found = direction(toy.parameters, keeping, toy.loss(task(0)))
    total = toy.loss(task(0)) + ewc.penalty(toy.parameters)
    torch.testing.assert_close(found, flat(total, toy.parameters))


def test_gem_projects_and_ways_add_up():
    toy, before = Toy(), Toy()
    ewc, distilled = springs(toy, task(1), 7.0), Distilled(toy.parameters, toy.logits)
    sources = {"gem": ["a", "b"], "distillation": ["a as it was", "b as it was"]}
    keeping = Keeping("new", sources, parameters=toy.parameters, ewc=ewc, strengths=dict.fromkeys(sources, 0.5))
    train(toy, Keeping("new", {}), lambda: [toy.loss(task(1))], steps=60)
    memories = task(1), task(3)
    losses = [toy.loss(task(0)), *map(toy.loss, memories), *map(distilled, memories)]
    found = direction(toy.parameters, keeping, *losses)
    rows = torch.stack([flat(toy.loss(memory), toy.parameters) for memory in memories])
    kept = sum(distillation_loss(toy.logits(memory), before.logits(memory)) for memory in memories) / 2
    plain = flat(toy.loss(task(0)) + ewc.penalty(toy.parameters) + 0.5 * kept, toy.parameters)
    assert (rows @ plain).min() < 0  # else there is nothing to project
    torch.testing.assert_close(found, gem_direction(plain, rows), rtol=1e-4, atol=1e-6)
    assert (rows @ found).min() > -1e-5


def test_a_gradient_that_is_not_finite_gives_no_direction():
    rows = torch.tensor([[1.0, 0.0], [torch.nan, 1.0]])
    found = Keeping("new", {"gem": ["old"]})(rows, torch.ones(2))
    assert found.isnan().all()


def train(toy, keeping, losses, steps=300):
    optimizer = torch.optim.Adam(toy.parameters, lr=0.01)
    for _ in range(steps):
        found = direction(toy.parameters, keeping, *losses())
        for parameter in toy.parameters:
            parameter.grad = torch.empty_like(parameter)
        vector_to_parameters(found, [parameter.grad for parameter in toy.parameters])
        optimizer.step()


def run(keep, seed):
    """Two tasks in sequence with opposite rules; the first's accuracy after the second, and the second's."""
    toy, first, second = Toy(seed), task(0, seed=seed), task(1, seed=seed)
    train(toy, Keeping("first", {}), lambda: [toy.loss(first)])
    remembered = tuple(part[:40] for part in first)
    loss = Distilled(toy.parameters, toy.logits) if keep == "distillation" else toy.loss
    keeping = Keeping("second", {keep: ["first"]} if keep else {})
    train(toy, keeping, lambda: [toy.loss(second), *([loss(remembered)] if keep else [])])
    return toy.accuracy(task(0, 500, seed + 50)), toy.accuracy(task(1, 500, seed + 50))


@pytest.mark.slow
def test_what_is_kept_is_forgotten_less_over_paired_seeds():
    ways = {"nothing": "", "replay": "replay", "gem": "gem", "distillation": "distillation"}
    found = {name: np.array([run(keep, seed) for seed in range(5)]) for name, keep in ways.items()}
    plain = found.pop("nothing")
    assert plain[:, 1].min() > 0.9
    assert plain[:, 0].mean() < 0.5
    for name, scores in found.items():
        assert (scores[:, 0] - plain[:, 0] > 0.3).all(), (name, scores)
        assert (scores.mean(axis=0) > 0.75).all(), (name, scores)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (None, [3.5, 1.5]),  # half of it with the weight that task one needs
        (1.0, [2.0, 3.0]),
        (20.0, [2.0, 3.0]),
    ],
)
def test_ewc_learns_with_the_weights_that_the_old_task_does_not_need(strength, expected):
    """Task one is y = 2 x₀; task two sees x₀ and x₁ alike, and either weight would do."""
    generator = torch.Generator().manual_seed(0)
    inputs, noise = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    weights = torch.nn.Parameter(torch.tensor([2.0, 0.0], dtype=torch.float64))

    def log_likelihoods(rows):
        return -0.5 * (rows * weights[0] - 2 * rows - noise) ** 2

    def loss(rows):
        return 0.5 * ((rows * weights.sum() - 5 * rows) ** 2).mean()

    ewc = EWC(strength or 0.0)
    ewc.add_task([weights], fisher_diagonal(log_likelihoods, [inputs], [weights]))
    keeping = Keeping("two", {}, parameters=[weights], ewc=None if strength is None else ewc)
    optimizer = torch.optim.SGD([weights], lr=0.05)
    for _ in range(600):
        weights.grad = direction([weights], keeping, loss(inputs))
        optimizer.step()
    assert weights.tolist() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("reply", r"`keep` should be among .* Found 'reply'. Did you mean `replay`\?"),
        (("gem", "replay"), "Found both. Choose one"),
    ],
)
def test_what_does_not_go_together_is_refused(keep, message):
    with pytest.raises(InputError, match=message):
        check_keep(keep)


def test_the_old_model_says_what_it_said():
    """The swap of weights against a whole copy of the net, over some steps."""
    toy, before = Toy(), Toy()
    distilled, keeping = Distilled(toy.parameters, toy.logits), Keeping("new", {"distillation": ["new as it was"]})
    optimizer = torch.optim.AdamW(toy.parameters, lr=0.01)
    for _ in itertools.repeat(None, 3):
        found = direction(toy.parameters, keeping, toy.loss(task(0)), distilled(task(0)))
        expected = flat(
            toy.loss(task(0)) + distillation_loss(toy.net(task(0)[0]), before.net(task(0)[0])), toy.parameters
        )
        torch.testing.assert_close(found, expected)
        for parameter in toy.parameters:
            parameter.grad = torch.empty_like(parameter)
        vector_to_parameters(found, [parameter.grad for parameter in toy.parameters])
        optimizer.step()
    assert not torch.allclose(softmax(toy.net(task(0)[0]), -1), softmax(before.net(task(0)[0]), -1))
