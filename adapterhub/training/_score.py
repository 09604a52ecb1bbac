"""Loss and metric of each head, in training and on the validation rows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss
from transformers import GenerationConfig

from adapterhub.training._batches import Batch, by_length
from adapterhub.training._encode import IGNORED, Features

__all__ = ["METRICS", "Score", "batch_loss", "evaluate", "exact_match"]

METRICS = {
    "generation": "validation_exact_match",
    "classification": "validation_accuracy",
    "token-classification": "validation_token_accuracy",
    "regression": "validation_mae",
}


@dataclass(frozen=True)
class Score:
    """What the validation rows say.

    Args:
        loss: Mean loss, by answer token, text, word or value.
        metric: The head's metric; None for generation, which is decoded only at the end.
    """

    loss: float
    metric: float | None

    def key(self, head: str) -> tuple[float, float]:
        """Less is better: by the metric where every validation measures it, then by the loss."""
        if self.metric is None:
            return self.loss, 0.0
        return (self.metric if head == "regression" else -self.metric), self.loss


def batch_loss(model: Any, batch: Batch, head: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run one batch.

    Args:
        model: The base with the adapter.
        batch: Rows on the model's device.
        head: The card's head.

    Returns:
        The mean loss (a scalar), the outputs that count (items, classes) or (items,) and their labels (items,).
    """
    labels = batch.labels
    options: dict[str, int] = {}
    if head == "generation":
        # The LM head is a good part of a small model: it runs only from the first answer token on.
        first = int((labels != IGNORED).any(dim=0).int().argmax())
        labels = labels[:, first:]
        if _keeps_logits(type(model.get_base_model()).forward):
            options["logits_to_keep"] = labels.shape[1] + 1
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options).logits.float()
    if head == "regression":
        return mse_loss(logits[:, 0], labels), logits[:, 0], labels
    if head == "generation":
        logits = logits[:, -labels.shape[1] - 1 : -1]
    if head != "classification":
        chosen = labels != IGNORED
        logits, labels = logits[chosen], labels[chosen]
    return cross_entropy(logits, labels), logits, labels


@functools.cache
def _keeps_logits(forward: Callable[..., object]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


@torch.no_grad()
def evaluate(model: Any, batches: Sequence[Batch], head: str) -> Score:
    """Mean loss and metric over batches.

    Args:
        model: The base with the adapter.
        batches: Rows on the model's device.
        head: The card's head.
    """
    loss, points, count = 0.0, 0.0, 0
    for batch in batches:
        mean, outputs, labels = batch_loss(model, batch, head)
        loss += mean.item() * labels.numel()
        count += labels.numel()
        if head == "regression":
            points += (outputs - labels).abs().sum().item()
        elif head != "generation":
            points += (outputs.argmax(-1) == labels).sum().item()
    return Score(loss / max(count, 1), None if head == "generation" else points / max(count, 1))


@torch.no_grad()
def exact_match(
    model: Any, tokenizer: Any, rows: Sequence[Features], *, new_tokens: int, length: int, batch_size: int
) -> float:
    """Share of the rows whose greedy answer is one of the accepted ones, white space aside.

    Args:
        model: The base with the adapter, on its device.
        tokenizer: The base's tokenizer.
        rows: Features of a generation task.
        new_tokens: Longest answer.
        length: The base's context, in tokens.
        batch_size: Rows that are decoded together.
    """
    right = 0
    for batch in by_length(rows, batch_size):
        prompts = [row.ids[: row.prompt] for row in batch]
        width = max(map(len, prompts))
        padded = [[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in prompts]
        masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        found = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(masks, device=model.device),
            generation_config=GenerationConfig(
                max_new_tokens=max(1, min(new_tokens, length - width)),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            ),
        )
        texts = tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
        right += sum(
            _folded(text) in {_folded(answer) for answer in row.example.answers}
            for text, row in zip(texts, batch, strict=True)
        )
    return right / max(len(rows), 1)


def _folded(text: str) -> str:
    return " ".join(text.split())
