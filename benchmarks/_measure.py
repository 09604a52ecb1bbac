"""Repeated, interleaved measurement: process CPU time with one thread, then wall time with two."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

BASE = "base"
THREADS = {"cpu": 1, "wall": 2}
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Case:
    """What is timed, `steps` times in a row, and what is around it without being timed.

    Args:
        run: One step.
        around: Entered before the steps and left after them.
        settle: Whether one step that is not timed runs first inside it.
        steps: Steps in one sample; the sample is their mean.
    """

    run: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    settle: bool = False
    steps: int = 1


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of repeated figures."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def interleaved(cases: Mapping[str, Case], repeats: int, clock: str = "cpu") -> dict[str, list[float]]:
    """Milliseconds of one step of every case: all cases in turn, `repeats` times.

    Args:
        cases: By name; each ran before.
        repeats: Samples of each case.
        clock: `cpu` (process time, one thread) or `wall` (two threads). The clocks never take turns: the second
            thread would still spin, and be counted, while the first works alone.
    """
    torch.set_num_threads(THREADS[clock])
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            with case.around():
                if case.settle:
                    case.run()
                begin = now()
                for _ in range(case.steps):
                    case.run()
                took = 1000 * (now() - begin) / case.steps
            times[name].append(took)
    return times


def ratios(times: Mapping[str, Sequence[float]], name: str, to: str = BASE) -> Spread:
    """How many times the cost of `to`, pairing what ran in the same turn."""
    return Spread.of([a / b for a, b in zip(times[name], times[to], strict=True)])


def bandwidth() -> float:
    """Bytes a second that come from memory: the faster of a large read and a large copy."""
    block = torch.ones(64 << 20)  # 256 MB, eight times a large last-level cache
    other = torch.empty_like(block)
    read = min(_seconds(block.sum) for _ in range(4))
    copy = min(_seconds(lambda: other.copy_(block)) for _ in range(4))
    return max(block.nbytes / read, 2 * block.nbytes / copy)


def matmul_rate(shapes: Sequence[tuple[int, int]], tokens: int, dtype: torch.dtype) -> float:
    """FLOP a second of the base's own products, (tokens, d_in) by (d_in, d_out), with operands in the cache."""
    work, spent = 0.0, 0.0
    for d_out, d_in in sorted(set(shapes)):
        x, weight = torch.randn(tokens, d_in).to(dtype), torch.randn(d_out, d_in).to(dtype)
        spent += min(_seconds(lambda x=x, w=weight: torch.nn.functional.linear(x, w)) for _ in range(6))
        work += 2 * tokens * d_in * d_out
    return work / spent


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
