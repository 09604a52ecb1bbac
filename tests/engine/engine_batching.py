"""What the tests of continuous batching compare with, and gates that hold a batcher where a test wants it."""

from __future__ import annotations

import random
import threading
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from adapterhub.engine import Engine
from adapterhub.route import Route


def prompts(rng: random.Random, rows: int) -> list[list[int]]:
    """Token ids of different lengths."""
    return [[rng.randrange(2, 96) for _ in range(rng.randint(1, 24))] for _ in range(rows)]


def alone(engine: Engine, ids: list[int], route: Route, *, seed: int | None = None, **options: Any) -> list[int]:
    """The new tokens of `generate` for one row alone, up to its end."""
    if seed is not None:
        torch.manual_seed(seed)
    row = torch.tensor([ids])
    output = engine.generate(row, torch.ones_like(row), [route], **options)
    tokens: list[int] = output.sequences[0, len(ids) :].tolist()
    eos = options.get("eos_token_id", 1)
    ends = [i for i, token in enumerate(tokens) if token in (eos if isinstance(eos, list) else [eos])]
    return tokens[: ends[0] + 1] if ends else tokens


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One or two letters for each id of the test bases, so that a stop string may begin and end within a token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<pad>", "<eos>", *letters, *(a + b for a in letters for b in "aeo")][:96]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


class Gate(LogitsProcessor):
    """Lets its row, and so the whole batch, take one step for each `open`."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

    def open(self, steps: int = 10_000) -> None:
        self.steps.release(steps)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.arrived.release()
        assert self.steps.acquire(timeout=60)
        return scores


class Note(LogitsProcessor):
    """Writes its name into a list at its row's first step."""

    def __init__(self, name: str, names: list[str]) -> None:
        self.name, self.names, self.first = name, names, True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first:
            self.names.append(self.name)
            self.first = False
        return scores
