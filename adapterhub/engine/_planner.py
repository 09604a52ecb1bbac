"""Which plan is cheapest for a bank's rows: a cost rule over shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from adapterhub.engine._forms import Blocked, Dense, Form, Packed, Rows, Segmented
from adapterhub.engine._kernel import Kernel, applies
from adapterhub.engine._library import Native
from adapterhub.errors import InputError

__all__ = ["KINDS", "Costs", "Kind", "check_kind", "choose", "costs", "make"]

Kind = Literal["dense", "packed", "blocked", "segment", "kernel"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Costs:
    """Estimated microseconds of one pass through one module, by plan; infinite where a plan does not apply."""

    dense: float
    packed: float
    blocked: float
    segment: float
    kernel: float

    @property
    def best(self) -> Kind:
        """The cheapest."""
        return min(KINDS, key=lambda kind: getattr(self, kind))


@dataclass(frozen=True)
class _Rates:
    """What one thread does, in microseconds, and in bytes or multiply-adds a microsecond.

    Args:
        call: One small operation, called from Python inside a model.
        product: One matrix product, beside what it computes.
        segment: One operation of a segment.
        few: Matrix products with at most 64 rows.
        many: Those with more.
        batched: Batched products with several tokens a row.
        kernel: The kernel's products.
        read: Bytes read from memory.
        streamed: The same where the kernel asks for them ahead.
        cached: Bytes read or written near the core.
    """

    call: float
    product: float
    segment: float
    few: float
    many: float
    batched: float
    kernel: float
    read: float = 21e3
    streamed: float = 30e3
    cached: float = 40e3


# Measured on one core of a server CPU (AVX-512) at widths 512 to 1,408, in models whose weights are not in the cache.
# Ratios between the plans are what matters; they change little between machines, and a fixed rule gives the same plan,
# so the same rounding, at every run.
_FULL = _Rates(call=10.0, product=10.0, segment=7.0, few=26e3, many=42e3, batched=33e3, kernel=60e3)
_HALF = _Rates(call=9.0, product=15.0, segment=22.0, few=55e3, many=160e3, batched=60e3, kernel=75e3)


def costs(rows: Rows, tokens: int, uses: int, native: Native | None) -> Costs:
    """Estimate each plan for one pass.

    Args:
        rows: The rows of a bank.
        tokens: Tokens a row.
        uses: Passes that will share what a plan gathers.
        native: The compiled kernel, where it may be used.
    """
    rule = _Rule(rows, tokens, uses)
    kernel = rule.kernel() if _has_kernel(rows, native) else math.inf
    return Costs(rule.dense(), rule.packed(), rule.blocked(), rule.segment(), kernel)


def choose(rows: Rows, tokens: int, uses: int, forced: Kind | None = None, native: Native | None = None) -> Kind:
    """The plan for rows of a bank: the cheapest, or the one that was asked for.

    Tokens are always read densely: a lookup costs less than any gathering. Blocks hold one token a row; a pass of more
    is packed. What the kernel does not know takes the cheapest other plan.
    """
    if rows.tokens:
        return "dense"
    if forced == "blocked" and tokens > 1:
        return "packed"
    if forced is None or (forced == "kernel" and not _has_kernel(rows, native)):
        return costs(rows, tokens, uses, native).best
    return forced


def check_kind(kind: str | None, native: Native) -> None:
    """Raise InputError where a plan is asked for that there is not."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"A plan is one of {', '.join(KINDS)}. Found {kind!r}. Leave it out for the cheapest.")
    if kind == "kernel" and native.functions is None:
        raise InputError(f"The plan `kernel` needs the compiled kernel. Found {native.state}. Leave the plan out.")


def make(kind: Kind, rows: Rows, tokens: int, native: Native | None = None) -> Form:
    """A plan's form for rows of a bank."""
    if kind == "kernel":
        assert native is not None
        assert native.functions is not None
        return Kernel(rows, tokens, native.functions)
    if kind == "packed":
        return Packed(rows, tokens)
    if kind == "blocked":
        return Blocked(rows)
    return Dense(rows) if kind == "dense" else Segmented(rows)


def _has_kernel(rows: Rows, native: Native | None) -> bool:
    return native is not None and applies(rows) and native.functions is not None


class _Rule:
    """The cost rule for one bank's rows and one shape. Threads share what is read and computed, not the calls."""

    def __init__(self, rows: Rows, tokens: int, uses: int) -> None:
        self.layout, self.tokens, self.uses = rows.layout, tokens, uses
        self.size = rows.down.dtype.itemsize
        self.half = self.size == 2
        self.rates = _HALF if self.half else _FULL
        self.width = rows.down.shape[1] + rows.up.shape[1]
        self.threads = 1 if rows.down.is_cuda else torch.get_num_threads()
        self.gemm = self.rates.few if self.layout.rows * tokens <= 64 else self.rates.many

    def dense(self) -> float:
        layout, rates = self.layout, self.rates
        gates = 0 if layout.common is not None else 3 if self.half else 2
        joined = layout.ranks * self.width * self.size if len(layout.runs) > 1 else 0
        products = layout.rows * self.tokens * layout.ranks * self.width / self.gemm
        return products / self.threads + 2 * rates.product + gates * rates.call + self._once(joined)

    def packed(self) -> float:
        ranks = self.layout.rows * self.layout.row_ranks * self.width
        if self.tokens > 1:
            products = ranks * self.tokens / self.rates.batched
            return products / self.threads + 2 * self.rates.product + self._once(ranks * self.size)
        held = ranks * max(self.size, 4)
        calls = 3 if self.half else 2  # what is widened is shared by modules that read the same tensor
        return held / self.rates.read / self.threads + calls * self.rates.call + self._once(held)

    def blocked(self) -> float:
        if self.tokens > 1:
            return math.inf
        count, rank, users = self.layout.block_shape
        held = count * rank * self.width * max(self.size, 4)
        moved = 2.5 * count * users * self.width * max(self.size, 4)
        work = held * (1 + 0.2 * users) / self.rates.read + moved / self.rates.cached
        return work / self.threads + (6 if self.half else 4) * self.rates.call + self._once(held)

    def segment(self) -> float:
        segments = self.layout.segments
        ranks: int = sum((span.stop - span.start) * part.rank for span, part, _ in segments)
        work = ranks * self.tokens * self.width / self.gemm
        return work / self.threads + 2 * len(segments) * self.rates.segment

    def kernel(self) -> float:
        """What it reads and what it computes overlap; nothing is gathered."""
        layout, rates = self.layout, self.rates
        read = layout.ranks * self.width * self.size / rates.streamed
        work = layout.all_ranks * self.tokens * self.width / rates.kernel
        return max(read, work) / self.threads + rates.call

    def _once(self, gathered: int) -> float:
        """Gathering bytes: read, written, and read again, shared by the passes."""
        return (3 * gathered / self.rates.read + (4 * self.rates.call if gathered else 0)) / self.uses
