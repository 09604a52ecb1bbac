"""The cases of `benchmarks.engine`: what is run, over which adapters, and what the issue of this engine promised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from adapterhub.route import Route
from benchmarks._models import ATTENTION, SEVEN, Setting

GATES = {1: (1.0,), 2: (0.6, 0.4), 3: (0.5, 0.3, 0.2), 4: (0.4, 0.3, 0.2, 0.1)}
MIXED_RANKS = (8, 16, 32, 8)
CONTEXT = 32  # tokens in the KV cache of a decoding step, and of a prompt that is continued
PROMPT = 64  # tokens of a prefill


@dataclass(frozen=True)
class Work:
    """One case: a batch, and what is done with it.

    Args:
        kind: One decoding step, one prefill, or a whole generation.
        distinct: Adapters in the batch; row i uses number i and the k - 1 behind it.
        k: Adapters a row.
        rows: Rows of the batch.
        bound: The most that it may cost, × base; None where nothing was promised.
        loop: Whether PEFT also runs it adapter by adapter.
    """

    kind: Literal["decode", "prefill", "generate"]
    distinct: int
    k: int = 1
    rows: int = 16
    bound: float | None = None
    loop: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.kind}, {self.rows} rows, {self.distinct} adapters, k = {self.k}"

    @property
    def tokens(self) -> int:
        """Tokens of a row that the timed pass reads; of a generation, its prompt."""
        return {"decode": 1, "prefill": PROMPT, "generate": CONTEXT}[self.kind]

    def routes(self, names: Sequence[str]) -> list[Route]:
        """One a row."""
        return [
            Route(tuple(names[(row + i) % self.distinct] for i in range(self.k)), GATES[self.k])
            for row in range(self.rows)
        ]


@dataclass(frozen=True)
class Group:
    """The cases of one setting; they share a base and an arena that holds `adapters` of them throughout."""

    setting: Setting
    works: tuple[Work, ...]
    adapters: int = 16
    new_tokens: int = 12


def groups(*, full: bool, peers: bool) -> list[Group]:
    """What is run; in full, 64 adapters are in the arena also where a batch uses fewer."""
    found = [
        Group(_attention(full), _attention_works(full), 64 if full else 16, 24),
        Group(_seven(torch.float32), _seven_works(full), 64 if full else 16, 24),
        Group(_seven(torch.bfloat16), _bfloat16_works(full), 16, 24),
    ]
    if not full:
        small = Setting("256 x 2, q k v o, ranks 8-32", 256, 2, 704, ATTENTION, MIXED_RANKS, 2048)
        works = (Work("decode", 4, loop=True), Work("generate", 4), Work("generate", 16), Work("prefill", 16, 3))
        found.append(Group(small, works, new_tokens=16))
    if peers:  # what the library `adapters` can adapt in Llama
        works = (Work("decode", 4), Work("decode", 16), Work("generate", 16))
        found.append(Group(_attention(full, ATTENTION[:3]), works, new_tokens=24))
    return found


def _attention(full: bool, targets: tuple[str, ...] = ATTENTION) -> Setting:
    name, layers = ("84M", 12) if full else ("768 x 4", 4)
    letters = " ".join(target[0] for target in targets)
    return Setting(f"{name}, {letters}, ranks 8-32", 768, layers, 2048, targets, MIXED_RANKS)


def _seven(dtype: torch.dtype) -> Setting:
    name = f"512 x 8, seven linears, rank 8, {str(dtype).removeprefix('torch.')}"
    return Setting(name, 512, 8, 1408, SEVEN, (8,), grouped=False, dtype=dtype)


def _attention_works(full: bool) -> tuple[Work, ...]:
    if not full:
        return (Work("decode", 16, 4),)
    return (
        Work("decode", 16, bound=1.12, loop=True),
        Work("decode", 16, 2),
        Work("decode", 16, 4, bound=1.15),
        Work("decode", 1),
        Work("decode", 4, loop=True),
        Work("decode", 64, 1, 64, bound=1.25),
        Work("prefill", 16, bound=1.12),
        Work("prefill", 16, 3, bound=1.20),
        Work("generate", 4),
        Work("generate", 16),
    )


def _seven_works(full: bool) -> tuple[Work, ...]:
    short = (Work("decode", 16, bound=1.12), Work("decode", 16, 3, bound=1.25))
    if not full:
        return short
    return (
        *short,
        Work("decode", 1),
        Work("decode", 4, loop=True),
        Work("decode", 4, 3),
        Work("decode", 64, 1, 64, bound=1.25),
        Work("prefill", 16, bound=1.12),
        Work("prefill", 16, 3, bound=1.20),
        Work("generate", 16),
    )


def _bfloat16_works(full: bool) -> tuple[Work, ...]:
    short = (Work("decode", 16, bound=1.30), Work("decode", 16, 3, bound=1.50))
    return (*short, Work("decode", 4), Work("prefill", 16), Work("prefill", 16, 3)) if full else short
