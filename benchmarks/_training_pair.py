"""Two tasks that conflict on one LoRA: what each weighting makes of them, under each optimiser.

A frozen random transformer; two teacher LoRAs that pull apart (correlation -0.3) say what each task wants of its last
hidden states; one student LoRA of half their rank serves both, without heads, on texts of the same words. The second
loss is a twentieth of the first.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from adapterhub.training.optimisers import ConflictMeter, optimizer_of, parameter_groups
from adapterhub.training.weighting import GradientWeighting, LossWeighting, flat_gradient, weighting_of

HIDDEN, LAYERS, VOCABULARY = 48, 2, 64
RANK, TEACHER_RANK = 4, 8
TASKS, SCALES = ("first", "second"), (1.0, 0.05)
TOKENS, ROWS, HELD, STEPS = 16, 8, 128, 150
PASS = 15  # steps that count as a pass over the data
RATES = {"sgd": 3.0, "adamw": 3e-3, "adaptive_momentum": 3e-3}
APART = -0.3


@dataclass(frozen=True)
class Found:
    """One run.

    Args:
        falls: Of each held-out loss, as a share of what it was: 1 is solved, below 0 is worse than at the start.
        directions: Share of the steps whose direction hurt a task to first order.
        updates: Share of the steps whose update did.
        seconds: CPU time of a step.
    """

    falls: tuple[float, ...]
    directions: float
    updates: float
    seconds: float


class Pair:
    """The two tasks and the student.

    Args:
        seed: Of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=TOKENS,
        )  # fmt: skip
        base = LlamaModel(config).eval()
        lora = LoraConfig(r=TEACHER_RANK, lora_alpha=TEACHER_RANK, target_modules=["q_proj", "v_proj", "o_proj"])
        self._model = get_peft_model(base, lora)
        self._weights = {n: w for n, w in self._model.named_parameters() if w.requires_grad}
        student = {name: self._halved(name, weight) for name, weight in self._weights.items()}
        teachers = self._teachers()
        pools = [self._texts(STEPS * ROWS) for _ in TASKS]
        held = [self._texts(HELD) for _ in TASKS]
        self._data = [self._labelled(t, texts) for t, texts in zip(teachers, pools, strict=True)]
        self._held = [self._labelled(t, texts) for t, texts in zip(teachers, held, strict=True)]
        self.validation = [self._labelled(t, self._texts(ROWS)) for t in teachers]
        self._put(student)
        self.parameters = dict(self._weights)

    def batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Each step's texts and targets of both tasks."""
        for start in range(0, STEPS * ROWS, ROWS):
            yield [(texts[start : start + ROWS], wanted[start : start + ROWS]) for texts, wanted in self._data]

    def losses(self, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The scaled losses of both tasks."""
        return [
            scale * (self._hidden(texts) - wanted).square().mean()
            for scale, (texts, wanted) in zip(SCALES, batches, strict=True)
        ]

    @torch.no_grad()
    def held(self) -> list[float]:
        """The losses on held-out texts."""
        return [loss.item() for loss in self.losses(self._held)]

    def _hidden(self, texts: Tensor) -> Tensor:
        return self._model(input_ids=texts).last_hidden_state

    def _texts(self, count: int) -> Tensor:
        return torch.randint(VOCABULARY, (count, TOKENS), generator=self._random)

    def _teachers(self) -> list[dict[str, Tensor]]:
        """Weights of two LoRAs whose deltas correlate by `APART`: one A, and two Bs."""
        one, two = {}, {}
        for name, weight in self._weights.items():
            drawn = torch.randn(weight.shape, generator=self._random) / HIDDEN**0.5
            if ".lora_A." in name:
                one[name] = two[name] = drawn
            else:
                other = torch.randn(weight.shape, generator=self._random) / HIDDEN**0.5
                one[name], two[name] = 8 * drawn, 8 * (APART * drawn + (1 - APART**2) ** 0.5 * other)
        return [one, two]

    def _halved(self, name: str, fresh: Tensor) -> Tensor:
        """A student of half the rank: where A and B are both zero, so are their gradients."""
        half = torch.zeros_like(fresh)
        if ".lora_A." in name:
            half[:RANK] = fresh.detach()[:RANK]
        return half

    @torch.no_grad()
    def _labelled(self, teacher: dict[str, Tensor], texts: Tensor) -> tuple[Tensor, Tensor]:
        self._put(teacher)
        return texts, torch.cat([self._hidden(part) for part in texts.split(256)])

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(weights[name])


def run(weighting: str, optimiser: str, seed: int) -> Found:
    """Train the student.

    Args:
        weighting: A name of `WEIGHTINGS`.
        optimiser: A name of `RATES`.
        seed: Of the pair.
    """
    pair = Pair(seed)
    weigh = weighting_of(weighting, TASKS, targets=dict.fromkeys(TASKS, 0.5), seed=seed)
    groups = parameter_groups(pair.parameters.items(), RATES[optimiser])
    optimizer = optimizer_of(optimiser, [*groups, *_learned(weigh)])
    weights, meter, start = list(pair.parameters.values()), ConflictMeter(), pair.held()
    begin = time.process_time()
    for step, batches in enumerate(pair.batches(), start=1):
        _step(pair, weigh, optimizer, weights, batches, meter)
        if step % PASS == 0:
            weigh.epoch()
            weigh.observe({t: 1 - now / old for t, now, old in zip(TASKS, pair.held(), start, strict=True)})
    seconds = (time.process_time() - begin) / STEPS
    falls = tuple(1 - now / old for now, old in zip(pair.held(), start, strict=True))
    return Found(falls, *meter.rates(), seconds)


def _step(
    pair: Pair,
    weigh: LossWeighting | GradientWeighting,
    optimizer: torch.optim.Optimizer,
    weights: Sequence[Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    meter: ConflictMeter,
) -> None:
    losses = pair.losses(batches)
    rows = torch.stack([flat_gradient(loss, weights) for loss in losses])
    values = torch.stack([loss.detach() for loss in losses])
    optimizer.zero_grad()
    if isinstance(weigh, LossWeighting):
        values.requires_grad_()
        weigh(values).backward()
        assert values.grad is not None
        direction = values.grad @ rows
    else:
        validation = None
        if weigh.needs_validation_gradient:
            validation = flat_gradient(torch.stack(pair.losses(pair.validation)).sum(), weights)
        direction = weigh(rows, values, validation)
    before = torch.cat([weight.detach().flatten() for weight in weights])
    for weight, part in zip(weights, torch.split(direction, [w.numel() for w in weights]), strict=True):
        weight.grad = part.view_as(weight)
    optimizer.step()
    meter.update(rows, direction, before - torch.cat([weight.detach().flatten() for weight in weights]))
    if isinstance(weigh, LossWeighting) and (weigh.needs_losses_after_step or weigh.needs_validation_losses):
        with torch.no_grad():
            after = torch.stack(pair.losses(batches))
        (weigh.observe_after_step if weigh.needs_losses_after_step else weigh.observe_validation)(after)


def _learned(weigh: LossWeighting | GradientWeighting) -> list[dict[str, object]]:
    learned = list(weigh.parameters())
    return [{"params": learned, "names": ["weighting"] * len(learned), "lr": 3e-3}] if learned else []
