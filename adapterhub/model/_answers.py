"""From the numbers of a head to answers with scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from adapterhub.model._prediction import Answer, Entity
from adapterhub.task import Task
from adapterhub.training import align_words, split_words

__all__ = ["classified", "entities", "number", "sequences"]

Scored = tuple[list[Answer], list[float]]


def classified(logits: torch.Tensor, labels: Sequence[str], count: int) -> Scored:
    """The likeliest labels, best first.

    Args:
        logits: (labels,).
        labels: Names of the labels.
        count: At most so many.
    """
    best = logits.float().softmax(-1).sort(descending=True, stable=True)
    chosen = best.indices[:count].tolist()
    return [labels[i] for i in chosen], best.values[:count].tolist()


def number(logits: torch.Tensor) -> Scored:
    """The one number of a regression head, (1,), with score 1."""
    return [float(logits.reshape(-1)[0])], [1.0]


def sequences(
    result: Any, tokenizer: PreTrainedTokenizerBase, start: int, limits: Sequence[int], count: int
) -> list[Scored]:
    """Generated texts of each row with the probability of their tokens, the end token included.

    Args:
        result: What `generate` returned with scores, `count` rows an input.
        tokenizer: Turns ids into text.
        start: Length of the prompts, in tokens.
        limits: At most so many new tokens in each row.
        count: Answers a row.
    """
    new = result.sequences[:, start:]
    if count > 1:
        log_probabilities = result.sequences_scores.float()
    else:
        log_probabilities = _log_probability(result.scores, new, tokenizer, limits)
    found: list[Scored] = []
    for row, limit in enumerate(limits):
        block = slice(row * count, (row + 1) * count)
        texts = tokenizer.batch_decode(new[block, :limit], skip_special_tokens=True)
        best: dict[Answer, float] = {}
        for text, score in zip(texts, log_probabilities[block].exp().clamp(0, 1).tolist(), strict=True):
            # Two token sequences may spell one text: it keeps the better score.
            best.setdefault(text.strip(), score)
        ranked = sorted(best.items(), key=lambda pair: -pair[1])
        found.append(([text for text, _ in ranked], [score for _, score in ranked]))
    return found


def _log_probability(
    scores: Sequence[torch.Tensor], new: torch.Tensor, tokenizer: PreTrainedTokenizerBase, limits: Sequence[int]
) -> torch.Tensor:
    """Log probability of each greedy row, (rows,): its tokens up to and with the end token, at most its limit."""
    steps = torch.stack(list(scores), dim=1).float().log_softmax(-1)  # (rows, steps, vocabulary)
    chosen = steps.gather(-1, new.unsqueeze(-1)).squeeze(-1)  # (rows, steps)
    beyond = torch.arange(new.shape[1], device=new.device) >= torch.tensor(limits, device=new.device).unsqueeze(1)
    padding = new.eq(-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # the first one is the end token, which counts
        padding &= padding.cumsum(-1) > 1
    return torch.where(beyond | padding, 0.0, chosen).sum(-1)


def entities(
    logits: torch.Tensor, task: Task, text: str, prompt: str, tokenizer: PreTrainedTokenizerBase, *, last: bool
) -> Scored:
    """Spans of BIO tags, the surest first; a span that opens with an `I-` tag counts as if it opened with `B-`.

    Args:
        logits: (tokens, labels) of the prompt.
        task: The card, with its tags.
        text: The input.
        prompt: The input in the card's template.
        tokenizer: The one that made the tokens.
        last: Whether a word's last token stands for it (decoders) or its first.
    """
    offset = task.prompt.index("{text}")
    words = split_words(text)
    _, tokens = align_words(tokenizer, prompt, [(start + offset, end + offset) for _, start, end in words], last=last)
    probabilities = logits.float().softmax(-1)[tokens]  # (words, labels)
    values, indices = probabilities.max(-1)
    spans: list[tuple[str, int, int, list[float]]] = []
    previous = "O"
    for (_, start, end), tag_index, value in zip(words, indices.tolist(), values.tolist(), strict=True):
        tag = task.labels[tag_index]
        kind = tag[2:]
        if tag.startswith("I-") and previous[2:] == kind and spans:
            label, begin, _, seen = spans[-1]
            spans[-1] = (label, begin, end, [*seen, value])
        elif tag != "O":
            spans.append((kind, start, end, [value]))
        previous = tag
    scored = [(Entity(text[s:e], label, s, e), sum(seen) / len(seen)) for label, s, e, seen in spans]
    scored.sort(key=lambda pair: -pair[1])
    return [entity for entity, _ in scored], [score for _, score in scored]
