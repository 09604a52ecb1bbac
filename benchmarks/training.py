"""Do tasks that share an adapter gain by it, does none lose, and what do size, speed and memory of old tasks look like?

`--data DIR` holds the tasks. The base is the bundled one, frozen. Every adapter is a LoRA of rank 8 on all linear
modules, trained with AdamW at one peak rate, 8 rows a step, the best of five looks at 50 validation rows kept; nothing
was tuned to a method. `single-task` trains each task alone for as many steps as the others have in all; the others
train the group's adapter for half of them, each step on a batch of every task, and then each task's own on top of it
for the other half: the same rows are read as often. They are named after the weighting under which the group was
trained. "On top" is a group that is there already: each task's own steps are all of its budget, the group's as many
more. Values are on test rows: exact match where the data is measured by it, F1 of the words of other answers that have
several, accuracy of classes, F1 of entities. Gains are in points, of 100.

Families (`_training_plan.py`) have eight tasks each: `repair` the error types of one grammar benchmark, `rewriting`
data sets that ask for a sentence to be written anew, `extraction` such that ask for a part of a text, and `guide` a
task for each of the guide's eight, which have little in common. What is asked in one's test is in no other's training.
A family of tasks on single words (antonyms, hypernyms, plurals, sums) was left out: the base is at nought on half of
them.

Weightings are compared on the first family in shorter runs, and on a pair that conflicts by construction
(`_training_pair.py`) under three optimisers. Five tasks are learned in sequence, each with an adapter of its own, and
all with one that they share. Size is counted on disk, speed measured as `_training_serving.py` says.

Each run is a process with one thread, as many at once as there are cores; times are CPU times. With `--cache DIR` what
is there already is not run again.
"""

import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from adapterhub.evaluation import (
    BASELINE,
    REFERENCE,
    Mean,
    Outcome,
    Record,
    Trace,
    ceiling_of,
    read_records,
    summarise,
    write_records,
)
from adapterhub.training.continual import ContinualScores
from benchmarks._measure import Spread
from benchmarks._training_pair import TASKS
from benchmarks._training_plan import FULL, SHORT, Plan
from benchmarks._training_plots import plot_examples, plot_traces
from benchmarks._training_runs import KEEPS, OWN, PAIR, WHOLE, Family, Job, named, run
from benchmarks._training_serving import SEPARATE, TOLD, serving_times
from benchmarks._training_tables import (
    Sizes,
    examples_table,
    guide_notes,
    guide_table,
    guide_targets,
    method_table,
    pair_table,
    size_table,
    speed_table,
)
from benchmarks.report import Target, arguments, plot, save

QUESTION = "Do tasks that share an adapter gain by it, and does none lose?"
GAIN = "gain over a single-task adapter, points, with its 95 % interval"

Row = dict[str, object]
Done = Mapping[Job, list[Record]]
Kind = TypeVar("Kind", Outcome, Trace)


def main() -> None:
    args = arguments(QUESTION)
    if args.data is None:
        print("benchmarks.training needs a folder of task data: --data DIR. Nothing was measured.")
        return
    plan = FULL if args.full else SHORT
    with tempfile.TemporaryDirectory() as scratch:
        jobs = plan.jobs()
        done = dict(zip(jobs, _records(jobs, args.data, args.cache or Path(scratch)), strict=True))
        times = {
            name: serving_times(Path(scratch) / name, large=large, repeats=5 if args.full else 1)
            for name, large in (("6M", False), ("84M", True))
            if args.full or not large
        }
    _save(plan, done, times, args.results)


def _records(jobs: Sequence[Job], data: Path, cache: Path) -> list[list[Record]]:
    """What each job left; those without a file in the cache are run."""
    paths = [cache / f"{named(job)}.jsonl" for job in jobs]
    missing = [(job, path) for job, path in zip(jobs, paths, strict=True) if not path.is_file()]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._training_runs"])
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        running = [pool.submit(_run, job, data, path) for job, path in missing]
        for count, one in enumerate(as_completed(running), start=1):
            print(f"{count} of {len(running)}: {one.result()}", file=sys.stderr)
    return [read_records([path]) for path in paths]


def _run(job: Job, data: Path, path: Path) -> str:
    write_records(path, run(job, data))
    return path.stem


def _save(plan: Plan, done: Done, times: dict[str, dict[str, dict[str, Spread]]], folder: Path) -> None:
    rows: list[Row] = []
    notes: list[str] = []
    targets: list[Target] = []
    for family in plan.families:
        for method in (REFERENCE, REFERENCE + WHOLE):
            found = [one for one in _main_runs(plan, done, family) if one.method in (BASELINE, method)]
            if not any(one.method == method for one in found):
                continue
            rows += [{"family": f"{family.name}: {method}", **row} for row in guide_table(found, method)]
            notes += [f"{family.name}, {method}: {note}" for note in guide_notes(found, method)]
            targets += [replace(t, name=f"{family.name}, {method}: {t.name}") for t in guide_targets(found, method)]
    sequence = _sequence_table(done)
    if sequence:
        targets.append(Target(f"five in sequence: largest fall of a task with {OWN}", _largest_fall(done), 0.0))
    for base, conditions in times.items():
        spreads = conditions["cold"]
        faster = spreads[SEPARATE].median / spreads[TOLD].median
        targets.append(Target(f"speed, {base}, cold: eight models / hub (the guide's claim)", faster, 10.0, "higher"))
    save("training", QUESTION, rows, targets, (), folder=folder,
         tables=_tables(plan, done, sequence, times), notes=notes)  # fmt: skip
    _plots(plan, done, folder)


def _tables(plan: Plan, done: Done, sequence: list[Row], times: dict[str, Any]) -> dict[str, list[Row]]:
    first = plan.families[0]
    traces = [one for one in _of(_brief(plan, done), Trace) if one.task == ""]
    methods = method_table(_of(_brief(plan, done), Outcome), traces=traces)
    for row in methods:
        row["group's step ÷ sum's"] = _step_ratio(traces, str(row["method"]))
    tables = {
        f"Weightings on the tasks of `{first.name}`, {plan.brief} steps": methods,
        "Weightings on a pair that conflicts: falls of the losses, 1 is solved": pair_table(
            _of(done, Trace), PAIR, TASKS
        ),
        f"Number of examples, `{first.name}`": examples_table(_curve(plan, done)) if plan.curve else [],
        f"Five tasks in sequence, {plan.brief} steps each, in points": sequence,
        "Size": size_table(_sizes(done, first), (1, 8, 64, 1000)),
        "Speed": [
            {"base": base, **row} for base, found in times.items() for row in speed_table(found, SEPARATE)
        ],
    }  # fmt: skip
    return {title: rows for title, rows in tables.items() if rows}


def _plots(plan: Plan, done: Done, folder: Path) -> None:
    bars: list[Row] = []
    for family in plan.families:
        found = [one for one in _main_runs(plan, done, family) if one.method in (BASELINE, REFERENCE)]
        for gain in summarise(found)[0].summaries[0].ledger.gains:
            scale = 100 / (ceiling_of(gain.measure.metric) or 100)
            place = gain.interval
            ends = (gain.gain, gain.gain) if place is None else (place.low, place.high)
            bars.append({"task": gain.measure.task, GAIN: Spread(scale * gain.gain, *(scale * end for end in ends))})
    plot(folder / "training.png", QUESTION, bars, (GAIN,))
    if plan.curve:
        plot_examples(folder / "training_examples.png", _curve(plan, done))
        traces = _of(_brief(plan, done), Trace)
        plot_traces(folder / "training_weights.png", traces, "weight")
        plot_traces(folder / "training_losses.png", traces, "validation_loss")


def _of(done: Done, kind: type[Kind]) -> list[Kind]:
    return [one for found in done.values() for one in found if isinstance(one, kind)]


def _main_runs(plan: Plan, done: Done, family: Family) -> list[Outcome]:
    return [one for one in _of(_runs(done, family, plan.steps), Outcome) if one.examples == plan.examples]


def _curve(plan: Plan, done: Done) -> list[Outcome]:
    found = _of(_runs(done, plan.families[0], plan.steps), Outcome)
    return [one for one in found if one.method in (BASELINE, REFERENCE)]


def _brief(plan: Plan, done: Done) -> Done:
    """The runs that compare weightings."""
    return _runs(done, plan.families[0], plan.brief)


def _runs(done: Done, family: Family, steps: int) -> Done:
    wanted = ("together", family, steps)
    return {job: found for job, found in done.items() if (job.kind, job.family, job.steps) == wanted}


def _sizes(done: Done, family: Family) -> Sizes:
    """Of the first run with a group's adapter."""
    found = next(
        records for job, records in done.items()
        if (job.kind, job.family, job.method) == ("together", family, REFERENCE)
    )  # fmt: skip
    held = {one.task: int(one.values[0]) for one in found if isinstance(one, Trace) and one.name == "bytes"}
    return Sizes(held.pop(""), held)


def _step_ratio(traces: Sequence[Trace], method: str) -> str | Spread:
    """CPU time of a step of the group's adapter, over the sum's with the same seed."""
    found = {name: {t.seed: t.values[0] for t in traces if (t.method, t.name) == (name, "step_seconds")}
             for name in (method, REFERENCE)}  # fmt: skip
    shared = sorted(found[method].keys() & found[REFERENCE].keys())
    return Spread.of([found[method][seed] / found[REFERENCE][seed] for seed in shared]) if shared else "–"


def _matrix(records: Sequence[Record]) -> list[list[float]]:
    """Values in points, a row after each task; a task before its turn was not measured."""
    held = [one for one in records if isinstance(one, Trace)]
    return [[100 * dict(zip(t.steps, t.values, strict=True)).get(step, math.nan) for t in held]
            for step in range(1, len(held) + 1)]  # fmt: skip


def _sequence_table(done: Done) -> list[Row]:
    rows: list[Row] = []
    for method in (OWN, *KEEPS):
        found = [
            ContinualScores.from_matrix(_matrix(records))
            for job, records in done.items()
            if (job.kind, job.method) == ("sequence", method)
        ]
        if found:
            rows.append({
                "method": method,
                "mean value at the end (ACC)": str(Mean.of(one.acc for one in found)),
                "backward transfer (BWT)": str(Mean.of(one.bwt or 0.0 for one in found)),
                "forgetting": str(Mean.of(one.forgetting or 0.0 for one in found)),
            })  # fmt: skip
    return rows


def _largest_fall(done: Done) -> float:
    matrices = [_matrix(found) for job, found in done.items() if (job.kind, job.method) == ("sequence", OWN)]
    return max(m[place][place] - m[-1][place] for m in matrices for place in range(len(m)))


if __name__ == "__main__":
    main()
