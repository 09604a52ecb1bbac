"""Do tasks that share an adapter gain by it, and does none lose?

`--data DIR` holds the tasks. The base is the bundled one, frozen. Every adapter is a LoRA of rank 8 on all linear
modules, trained with AdamW at one peak rate, 8 rows a step, the best of five looks at up to 50 validation rows kept;
nothing was tuned to a method. `single-task` trains each task alone for as many steps as the others have in all; `sum`
trains the group's adapter on the sum of the losses for half of them, each step on a batch of every task, and then each
task's own on top of it for the other half: the same rows are read as often. Values are on test rows: exact match where
the data is measured by it, F1 of the words of other answers that have several, accuracy of classes, F1 of entities;
beside them, what an answer that repeats the input would reach. Gains are in points, of 100.

Families (`_training_families.py`) have eight tasks each. What is asked in one's test is in no other's training.

Each run is a process with one thread, as many at once as there are cores; times are CPU times. With `--cache DIR` what
is there already is not run again. Bytes are counted on disk.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.evaluation import BASELINE, REFERENCE, Outcome, Trace, ceiling_of, summarise
from benchmarks._measure import Spread
from benchmarks._training_families import GUIDE, REPAIR, REWRITING
from benchmarks._training_families import SHORT as TWO
from benchmarks._training_jobs import Done, done, of, together
from benchmarks._training_plots import plot_examples
from benchmarks._training_runs import Family, Job
from benchmarks._training_tables import (
    Sizes,
    examples_table,
    guide_notes,
    guide_table,
    guide_targets,
    size_table,
    steps_table,
)
from benchmarks._training_world import copied, read_family
from benchmarks.report import Target, arguments, has_data, plot, save

QUESTION = "Do tasks that share an adapter gain by it, and does none lose?"
GAIN = "gain over a single-task adapter, points, with its 95 % interval"

Row = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Args:
        families: Tasks that are trained together.
        seeds: Of the runs.
        examples: Training rows a task.
        fewer: Smaller numbers of them, for the first family.
        short: Fewer steps, for the first family with all numbers of examples.
        steps: Steps a task.
        test_rows: Test rows a task at most.
    """

    families: tuple[Family, ...]
    seeds: tuple[int, ...]
    examples: int
    fewer: tuple[int, ...]
    short: int
    steps: int
    test_rows: int

    def jobs(self) -> list[Job]:
        """The runs."""
        both, first = (BASELINE, REFERENCE), self.families[0]
        found = [self._job(family, method) for family in self.families for method in both]
        found += [replace(self._job(first, method), examples=size, steps=self.short)
                  for size in (*self.fewer, self.examples) for method in both]  # fmt: skip
        return [replace(job, seed=seed) for job in found for seed in self.seeds]

    def _job(self, family: Family, method: str) -> Job:
        return Job("together", family, method, 0, self.examples, self.steps, self.test_rows)


SHORT = Plan((TWO,), (0,), 32, (16,), 10, 20, 20)
FULL = Plan((REPAIR, REWRITING, GUIDE), (0, 1, 2), 100, (25, 50), 80, 300, 200)


def main() -> None:
    args = arguments(QUESTION)
    if not has_data("training", args):
        return
    plan = FULL if args.full else SHORT
    found = done(plan.jobs(), args)
    rows: list[Row] = []
    notes: list[str] = []
    targets: list[Target] = []
    for family in plan.families:
        outcomes = of(together(found, family, plan.steps), Outcome)
        copies = _copies(plan, family, args.data)
        rows += [
            {"family": family.name, **row, "the input itself": copies.get(str(row["task"]), "–")}
            for row in guide_table(outcomes, REFERENCE)
        ]
        notes += [f"{family.name}: {note}" for note in guide_notes(outcomes, REFERENCE)]
        targets += [replace(each, name=f"{family.name}: {each.name}") for each in guide_targets(outcomes, REFERENCE)]
    first = plan.families[0]
    short = of(together(found, first, plan.short), Outcome)
    tables = {
        f"Number of examples, `{first.name}`, {plan.short} steps": examples_table(short),
        f"Number of steps, `{first.name}`": steps_table({
            plan.short: [one for one in short if one.examples == plan.examples],
            plan.steps: of(together(found, first, plan.steps), Outcome),
        }),
        "Size": size_table(_sizes(found, first), (1, 8, 64, 1000)),
    }  # fmt: skip
    save("training", QUESTION, rows, targets, (), folder=args.results, tables=tables, notes=notes)
    _plots(plan, found, args.results)


def _plots(plan: Plan, found: Done, folder: Path) -> None:
    bars: list[Row] = []
    for family in plan.families:
        outcomes = of(together(found, family, plan.steps), Outcome)
        for gain in summarise(outcomes)[0].summaries[0].ledger.gains:
            scale = 100 / (ceiling_of(gain.measure.metric) or 100)
            place = gain.interval
            ends = (gain.gain, gain.gain) if place is None else (place.low, place.high)
            bars.append({"task": gain.measure.task, GAIN: Spread(scale * gain.gain, *(scale * end for end in ends))})
    plot(folder / "training.png", QUESTION, bars, (GAIN,))
    short = of(together(found, plan.families[0], plan.short), Outcome)
    plot_examples(folder / "training_examples.png", short)


def _copies(plan: Plan, family: Family, data: Path) -> dict[str, str]:
    """By task, what an answer that repeats the input reaches."""
    values = {task.card.name: copied(task) for task in read_family(data, family.name, family.tasks, plan.test_rows)}
    return {name: f"{value:.3f}" for name, value in values.items() if value is not None}


def _sizes(found: Done, family: Family) -> Sizes:
    """Of the first run with a group's adapter."""
    records = next(held for job, held in found.items() if (job.family, job.method) == (family, REFERENCE))
    held = {one.task: int(one.values[0]) for one in records if isinstance(one, Trace) and one.name == "bytes"}
    return Sizes(held.pop(""), held)


if __name__ == "__main__":
    main()
