"""Do memory and latency stay bounded when far more adapters are on disk than fit into memory?

Adapters of a tiny base: 500 by default, with host memory for 300 of them; with --full 10,000, and host memory for
1,000. The arena holds 64. A request is one row of 16 tokens through one adapter. One thread; wall time, and CPU time in
the means, which the cliff's targets are held against.

- Zipf traffic (weight 1/rank): which tier served how many requests, and the time of a warm request (in the arena), of
  one from host memory, and of a cold one (from disk: the first from its PEFT folder, later ones from the packed cache).
- Memory: what the process holds before the traffic, after half of it and after all of it.
- The cliff: uniform traffic over as many adapters as the arena holds, twice and four times as many, in turns. Where an
  arena is as large as 1/n of what is asked for, a share 1 - 1/n of the requests misses; a slope is a time that grows as
  this share does, and no faster.
"""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.engine import Engine
from adapterhub.route import Route
from benchmarks._models import MODEL_ID, Setting, linear_widths
from benchmarks.report import Target, arguments, save

QUESTION = "Do memory and latency stay bounded when far more adapters are on disk than fit into memory?"
SETTING = Setting("tiny", 128, 2, 352, ("q_proj", "v_proj"), (8,), vocabulary=512)
ARENA, RANK, TOKENS = 64, 8, 16
TIMES, TURNS = (1, 2, 4), 5
TIERS = ("arena", "host", "packed cache", "PEFT folder")

Row = dict[str, object]
Times = tuple[float, float]  # milliseconds, CPU and wall


def main() -> None:
    args = arguments(QUESTION)
    count, hosted, requests = (10_000, 1_000, 40_000) if args.full else (500, 300, 4_000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        base = SETTING.base()
        folders = SETTING.adapters(Path(temporary) / "adapters", count, base)
        names = list(folders)
        widths = linear_widths(base, SETTING.targets).values()
        size = 4 * RANK * sum(d_in + d_out for d_out, d_in in widths)  # bytes of an adapter in float32
        host = size * hosted
        with Engine(base, model_id=MODEL_ID, arena_ranks=ARENA * RANK, host_bytes=host,
                    cache=Path(temporary) / "cache") as engine:  # fmt: skip
            for name, folder in folders.items():
                engine.add(name, folder)
            rows, targets = _zipf(engine, names, requests, host + ARENA * size)
            found = _cliff(engine, names, requests // 2)
    save("tiers", QUESTION, rows + found[0], targets + found[1], ("p50, ms", "p99, ms"), folder=args.results)


def _zipf(engine: Engine, names: Sequence[str], requests: int, budget: int) -> tuple[list[Row], list[Target]]:
    weights = 1 / torch.arange(1, len(names) + 1, dtype=torch.float64)
    random = torch.Generator().manual_seed(2)
    order = torch.randperm(len(names), generator=random).tolist()
    drawn = torch.multinomial(weights, requests, replacement=True, generator=random).tolist()
    times: dict[str, list[Times]] = defaultdict(list)
    before = _resident()
    half = 0.0
    for number, draw in enumerate(drawn):
        tier, took = _request(engine, names[order[draw]])
        times[tier].append(took)
        if number == requests // 2:
            half = _resident()
    after = _resident()
    cold = times["packed cache"] + times["PEFT folder"]
    rows = [_row(f"Zipf, served from: {tier}", times[tier], len(times[tier]) / requests) for tier in TIERS]
    rows.append(_row("Zipf, cold (packed cache or PEFT folder)", cold, len(cold) / requests))
    rows.append(_row("Zipf, all", [took for found in times.values() for took in found], 1.0))
    rows[-1]["memory above the start, MB"] = after - before
    return rows, [
        Target("memory taken beyond the budgets of arena and host, MB", after - before - budget / 1e6, 32),
        Target("memory growth in the second half of the traffic, MB", after - half, 8),
    ]


@dataclass(frozen=True)
class _Traffic:
    """Requests of uniform traffic: which tier served each, and how long it took."""

    served: list[tuple[str, Times]]

    @property
    def missed(self) -> float:
        return sum(tier != "arena" for tier, _ in self.served) / len(self.served)

    @property
    def mean(self) -> float:
        """Milliseconds of CPU time."""
        return statistics.fmean(cpu for _, (cpu, _) in self.served)

    def price(self, fits: "_Traffic") -> float:
        """What a miss adds, beside traffic that fits."""
        return (self.mean - fits.mean) / (self.missed - fits.missed)


def _cliff(engine: Engine, names: Sequence[str], requests: int) -> tuple[list[Row], list[Target]]:
    """The time of a request when the working set is as large as the arena, and larger."""
    random = torch.Generator().manual_seed(3)
    parts: dict[int, list[_Traffic]] = {n: [] for n in TIMES}
    for _ in range(TURNS):
        for n in TIMES:
            used = names[: n * ARENA]
            for name in used[:ARENA]:
                _request(engine, name)  # the arena is full of these, as if nobody had asked for others
            draws = torch.randint(len(used), (requests // TURNS,), generator=random).tolist()
            parts[n].append(_Traffic([_request(engine, used[draw]) for draw in draws]))
    one, two, four = (_Traffic([request for part in parts[n] for request in part.served]) for n in TIMES)
    rows = [
        _row(f"uniform over {n} × the arena, {traffic.missed:.0%} miss", [took for _, took in traffic.served], 1.0)
        for n, traffic in zip(TIMES, (one, two, four), strict=True)
    ]
    return rows, [
        Target("cliff: CPU time of a miss at 4 × / at 2 × the arena", four.price(one) / two.price(one), 1.25),
        Target("cliff: mean request at 4 × / at 1 × the arena", four.mean / one.mean, 2.0),
    ]


def _request(engine: Engine, name: str) -> tuple[str, Times]:
    """Which tier served it, and how long it took."""
    before = engine.stats
    ids = torch.full((1, TOKENS), 7)
    begin = time.process_time(), time.perf_counter()
    engine.forward(ids, torch.ones_like(ids), [Route.to(name)])
    took = 1000 * (time.process_time() - begin[0]), 1000 * (time.perf_counter() - begin[1])
    after = engine.stats
    if after.misses == before.misses:
        return "arena", took
    if after.host_hits > before.host_hits:
        return "host", took
    return ("packed cache" if after.packed_loads > before.packed_loads else "PEFT folder"), took


def _row(case: str, times: Sequence[Times], share: float) -> Row:
    cpu, wall = zip(*times, strict=True) if times else ((), ())
    return {
        "case": case,
        "share of requests": share,
        "requests": len(times),
        "p50, ms": _centile(wall, 50) if times else "-",
        "p99, ms": _centile(wall, 99) if times else "-",
        "mean, ms CPU": statistics.fmean(cpu) if times else "-",
        "memory above the start, MB": "-",
    }


def _centile(values: Sequence[float], percent: int) -> float:
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), percent / 100))


def _resident() -> float:
    """MB of memory that the process holds."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
