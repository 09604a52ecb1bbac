"""What the bare base model answers, without any adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.evaluation._rows import EvaluationRow
from adapterhub.model import RoutedModel
from adapterhub.route import Route
from adapterhub.task import Task
from adapterhub.training import encode_prompt

__all__ = ["base_answers"]


def base_answers(model: RoutedModel, task: Task, rows: Sequence[EvaluationRow]) -> list[object]:
    r"""The base's answers to a batch of rows.

    Generation: greedy text for the task's prompt. Classification: the label that is likeliest as the continuation of
    `<prompt>\n=>`, by mean log-probability of its tokens; a base without an LM head says the first label.
    Token classification: no entity, for the base has no head. Regression: 0.

    Args:
        model: Holds base, tokenizer and engine.
        task: The card.
        rows: A batch.
    """
    if task.head == "generation":
        return [p.predictions[0] for p in model.base_predictions([row.text for row in rows], task)]
    if task.head == "classification":
        return [_likeliest_label(model, task, row.text) for row in rows]
    if task.head == "token-classification":
        return [["O"] * len(row.words) for row in rows]
    return [0.0] * len(rows)


def _likeliest_label(model: RoutedModel, task: Task, text: str) -> str:
    """Rank the labels by their mean log-probability after the prompt."""
    if "lm_head" not in model.engine.base.modules:
        return task.labels[0]
    prompt = f"{task.format(text)}\n=>"
    opened = encode_prompt(model.tokenizer, prompt)
    ids, mask = model.encode([f"{prompt} {label}" for label in task.labels], "right")
    rows = model.engine.forward(ids, mask, [Route()] * len(task.labels))
    values = []
    for logits, row, length in zip(rows, ids, mask.sum(-1).tolist(), strict=True):
        # A tokenizer may join the prompt's end with the label: what both share is the prompt.
        pairs = enumerate(zip(opened, row[:length].tolist(), strict=False))
        start = next((place for place, (ours, theirs) in pairs if ours != theirs), len(opened))
        steps = logits[start - 1 : length - 1].float().log_softmax(-1)  # (label tokens, vocabulary)
        values.append(steps.gather(-1, row[start:length, None]).mean())
    return task.labels[int(torch.stack(values).argmax())]
