"""What does it cost to load an adapter, and to activate adapters that are loaded, as ever more of them are known?

An adapter of 2.5 MB: rank 8 on all seven linears of a Llama of width 512 with 8 layers. Names beyond the folders on
disk point at the same folders again. The engine has next to no host memory here, so that a load goes to the disk (the
system's file cache is warm): `folder` reads, hashes and checks a PEFT folder and folds it, `packed` reads our own
cache. Activation is making the plan of a batch of 16 rows whose 10 adapters are in the arena. One thread; CPU and wall
time of the same calls, in turns over the numbers of known adapters. The targets are held against CPU time.

PEFT's figures are those of adapters that are loaded, since it knows no others: 10 and 30 by default, with --full up to
200 (filling takes minutes).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter

from adapterhub.engine import Engine
from adapterhub.route import Route
from benchmarks._measure import Spread
from benchmarks._models import MODEL_ID, SEVEN, Setting, twin
from benchmarks.report import Target, arguments, save

QUESTION = "What does an adapter cost to load and to activate, as ever more of them are known?"
SETTING = Setting("512 x 8", 512, 8, 1408, SEVEN, (8,), grouped=False)
FOLDERS = 24
ROWS, LOADED = 16, 10
KNOWN = (10, 1_000, 10_000)
NO_HOST = 1  # byte of host memory: too little for any adapter

Row = dict[str, object]
ACTIONS = ("load from a folder", "load from the packed cache", "activate", "hotswap")
CLOCKS = (time.process_time, time.perf_counter)
Times = tuple[float, float]  # milliseconds, CPU and wall


def main() -> None:
    args = arguments(QUESTION)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        base = SETTING.base()
        folders = list(SETTING.adapters(Path(temporary) / "adapters", FOLDERS, base).values())
        size = (folders[0] / "adapter_model.safetensors").stat().st_size / 1e6
        engines = {known: _engines(base, folders, known, Path(temporary) / f"cache{known}") for known in KNOWN}
        ours = _measured(engines, 21 if args.full else 9)
        for pair in engines.values():
            for engine in pair:
                engine.close()
        rows = [_row(f"engine, {known:,} known", times) for known, times in ours.items()]
        rows += _peft(twin(base), folders, (10, 30, 100, 200) if args.full else (10, 30))
    bars = tuple(f"{action}, ms CPU" for action in ACTIONS[:2])
    save("loading", f"{QUESTION} ({size:.1f} MB each)", rows, _targets(ours), bars, folder=args.results)


def _engines(base: Any, folders: Sequence[Path], known: int, cache: Path) -> tuple[Engine, Engine]:
    """One engine that reads folders, and one that finds all of its adapters in its packed cache."""
    ranks = 8 * LOADED
    pair = (
        Engine(twin(base), model_id=MODEL_ID, arena_ranks=ranks, host_bytes=NO_HOST, cache=None),
        Engine(twin(base), model_id=MODEL_ID, arena_ranks=ranks, host_bytes=NO_HOST, cache=cache),
    )
    for engine in pair:
        for number in range(known):
            engine.add(f"s{number:05d}", folders[number % len(folders)])
        for name in _names(known):
            _activate(engine, [Route.to(name)])
    return pair


def _names(known: int) -> list[str]:
    """Those of all known names that are used: as many as the arena holds, from the first to nearly the last."""
    return [f"s{number:05d}" for number in range(0, known, known // LOADED)][:LOADED]


def _measured(engines: dict[int, tuple[Engine, Engine]], repeats: int) -> dict[int, dict[str, list[Times]]]:
    times: dict[int, dict[str, list[Times]]] = {known: {action: [] for action in ACTIONS[:3]} for known in engines}
    for turn in range(repeats):
        for known, pair in engines.items():
            names = _names(known)
            name = names[turn % len(names)]
            for engine, action in zip(pair, ACTIONS, strict=False):
                engine.evict(name)
                times[known][action].append(_timed(lambda e=engine, n=name: _activate(e, [Route.to(n)])))
            routes = [Route.to(names[row % len(names)]) for row in range(ROWS)]
            _activate(pair[0], routes)  # whatever is missing is loaded
            times[known]["activate"].append(_timed(lambda e=pair[0], r=routes: _activate(e, r), 20))
    return times


def _activate(engine: Engine, routes: list[Route]) -> None:
    """Make the plan of a batch, loading what is missing."""
    with engine.planned(routes):
        pass


def _row(case: str, times: dict[str, list[Times]]) -> Row:
    row: Row = {"case": case}
    for action in ACTIONS:
        found = times.get(action)
        for clock, name in enumerate(("CPU", "wall")):
            row[f"{action}, ms {name}"] = "n/a" if found is None else Spread.of([pair[clock] for pair in found])
    return row


def _peft(model: Any, folders: Sequence[Path], counts: Sequence[int]) -> list[Row]:
    """PEFT's load, switch and hotswap when so many are loaded; the loads are the last five before."""
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="s00000")
    loads: list[Times] = []
    rows = []
    for number in range(1, max(counts)):
        name, folder = f"s{number:05d}", folders[number % len(folders)]
        loads.append(_timed(lambda n=name, f=folder: peft.load_adapter(f, adapter_name=n)))
        if number + 1 in counts:
            switches = [_timed(lambda i=i: peft.set_adapter(f"s{i:05d}")) for i in range(5)]
            swaps = [
                _timed(lambda i=i: hotswap_adapter(peft, folders[i], "s00000", torch_device="cpu"))
                for i in range(1, 6)
            ]  # fmt: skip
            times = dict(zip((ACTIONS[0], *ACTIONS[2:]), (loads[-5:], switches, swaps), strict=True))
            rows.append(_row(f"PEFT, {number + 1} loaded (activate: set_adapter)", times))
    return rows


def _targets(ours: dict[int, dict[str, list[Times]]]) -> list[Target]:
    bounds = {"load from a folder": 6, "load from the packed cache": 3, "activate": 1}
    cpu = {
        known: {action: statistics.median(pair[0] for pair in found) for action, found in times.items()}
        for known, times in ours.items()
    }
    found = [
        Target(f"{action}, {known:,} known, ms CPU", value, bounds[action])
        for known, values in cpu.items()
        for action, value in values.items()
    ]
    few, many = min(ours), max(ours)
    for action, value in cpu[few].items():
        found.append(Target(f"{action}: {many:,} known / {few} known", cpu[many][action] / value, 1.15))
    return found


def _timed(run: Callable[[], object], times: int = 1) -> Times:
    begin = [clock() for clock in CLOCKS]
    for _ in range(times):
        run()
    cpu, wall = (1000 * (clock() - start) / times for clock, start in zip(CLOCKS, begin, strict=True))
    return cpu, wall


if __name__ == "__main__":
    main()
