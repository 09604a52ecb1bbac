"""A loop without a base model: tasks that share a matrix and have a head each, trained in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adapterhub.training._balance import Balance
from adapterhub.training._checkpoint import Checkpoint
from adapterhub.training._encode import Features
from adapterhub.training._examples import Example
from adapterhub.training._loop import Loop
from adapterhub.training._score import Score
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit

WORDS, SIZE, LABELS = 12, 5, 3


class Bag(nn.Module):
    """The mean of a text's word vectors under a head."""

    def __init__(self, shared: nn.Parameter, seed: int) -> None:
        super().__init__()
        self.shared = shared
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Parameter(torch.randn(SIZE, LABELS, generator=generator))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        vectors = self.shared[input_ids] * attention_mask[:, :, None]
        return SimpleNamespace(logits=vectors.sum(1) / attention_mask.sum(1, keepdim=True) @ self.head)


def features(name: str, count: int, seed: int, noise: float = 0.0) -> list[Features]:
    """Rows whose first word decides the label, but for a share of them that a coin does."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        ids = torch.randint(1, WORDS, (int(torch.randint(2, 6, (1,), generator=generator)),), generator=generator)
        label = int(torch.randint(LABELS, (1,), generator=generator))
        if torch.rand((), generator=generator) >= noise:
            label = int(ids[0]) % LABELS
        found.append(Features(Example(f"{name} row {number + 1}", "", label=label), ids.tolist(), []))
    return found


def settings(**options: object) -> Settings:
    """Settings of a short run."""
    known = {"learning_rate": 0.1, "batch_size": 4, "steps": 40, "every": 2, "warmup": 0.0, "decay": "linear",
             "patience": None, "seed": 0, "mixed_precision": "no"}  # fmt: skip
    return Settings(**known | options)  # type: ignore[arg-type]


class Bench:
    """A loop with all that it trains, made afresh for each run.

    Args:
        noise: Tasks and the share of their rows without a rule.
        weighting: From the names of the tasks.
        sampler: From the numbers of rows.
        folder: Where checkpoints go.
        options: Of `settings`.
    """

    def __init__(
        self,
        noise: Mapping[str, float],
        *,
        weighting: Callable[[list[str]], object] = lambda _: None,
        sampler: Callable[[dict[str, int]], object] = lambda _: None,
        folder: Path | None = None,
        **options: object,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shared = nn.Parameter(torch.randn(WORDS, SIZE, generator=generator))
        models = {name: Bag(self.shared, seed) for seed, name in enumerate(noise)}
        self.heads = {name: model.head for name, model in models.items()}
        self.units = [
            Unit(name, model, "classification", 0, features(name, 24, seed, noise[name]),
                 features(name, 20, seed + 50, noise[name]), {"head": model.head})
            for seed, (name, model) in enumerate(models.items())
        ]  # fmt: skip
        made = settings(**options)
        self.balance = Balance(weighting(list(noise)), [self.shared], {n: [h] for n, h in self.heads.items()})  # type: ignore[arg-type]
        self.loop = Loop(
            Accelerator(cpu=True), self.units, {"shared": self.shared}, self.balance, made,
            sampler=sampler({unit.name: len(unit.rows) for unit in self.units}),  # type: ignore[arg-type]
            checkpoint=None if folder is None else Checkpoint(folder, {"steps": made.steps}),
        )  # fmt: skip
        self.drawn: list[list[str]] = []
        step = self.loop.step

        def watched(batches):  # type: ignore[no-untyped-def]
            self.drawn.append(list(batches))
            return step(batches)

        self.loop.step = watched  # type: ignore[method-assign]

    def run(self, *, resume: bool = False, kill: int = -1) -> Bench:
        """Train; with `kill` the power fails after that step."""

        def report(step: int, loss: float) -> None:
            if step == kill:
                raise KeyboardInterrupt

        self.loop.run(resume, report)
        return self

    def weights(self) -> list[Tensor]:
        """All that was trained, copied."""
        return [weight.detach().clone() for weight in (self.shared, *self.heads.values())]

    def scripted(self, script: Mapping[str, list[float]]) -> Bench:
        """Let each look find these losses, whatever the weights are."""
        every = self.loop._settings.every

        def score(name: str) -> Score:
            return Score(script[name][self.loop.progress.step // every - 1], None)

        self.loop._watch.score = score  # type: ignore[method-assign]
        return self
