"""What do the weightings of tasks that share an adapter give, and what do they cost?

Each is the way in which the tasks of a group train the group's adapter (`benchmarks.training` says how, and what
`single-task` is); the runs are shorter than there. All of them are also run on a pair that conflicts by construction
(`_training_pair.py`), under three optimisers. The plain sum is always a row. A step's update hurts a task if it raises
the task's loss to first order. One learning rate serves all optimisers; by root mean square Muon steps a fifth of it.
Times are CPU times of one thread: of the group's steps, the tasks' own, and the looks at validation rows. Runs follow
each other for hours, and the machine's pace may change by a tenth meanwhile: ratios that lie closer say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub.evaluation import BASELINE, REFERENCE, Outcome, Trace
from adapterhub.training.weighting import WEIGHTINGS
from benchmarks._training_families import REPAIR
from benchmarks._training_families import SHORT as TWO
from benchmarks._training_jobs import done, of, together
from benchmarks._training_pair import RATES, TASKS
from benchmarks._training_plots import plot_traces
from benchmarks._training_runs import PAIR, Family, Job
from benchmarks._training_tables import method_table, pair_table
from benchmarks.report import Target, arguments, has_data, save

QUESTION = "What do the weightings of tasks that share an adapter give, and what do they cost?"
STATIC = ("static",)  # is the sum, unless weights are given
OPTIMISERS = ("adaptive_momentum", "muon")  # also tried on the eight tasks, beside AdamW
SURGERY = "upgrad"
DRAWN = (REFERENCE, SURGERY, "mgda")  # losses of all of them would hide each other


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Args:
        family: The tasks.
        seeds: Of the runs.
        examples: Training rows a task.
        weightings: Beside the sum.
        steps: Steps a task.
        test_rows: Test rows a task at most.
    """

    family: Family
    seeds: tuple[int, ...]
    examples: int
    weightings: tuple[str, ...]
    steps: int
    test_rows: int

    def jobs(self) -> list[Job]:
        """The runs; those of the pair, which are short, first."""
        methods = (REFERENCE, *self.weightings)
        found = [Job("pair", Family(PAIR, ()), m, 0, 0, 0, 0, o) for o in RATES for m in methods]
        base = Job("together", self.family, REFERENCE, 0, self.examples, self.steps, self.test_rows)
        found += [replace(base, method=method) for method in (BASELINE, *methods)]
        found += [replace(base, method=m, optimiser=o) for o in OPTIMISERS for m in (BASELINE, REFERENCE)]
        return [replace(job, seed=seed) for job in found for seed in self.seeds]


SHORT = Plan(TWO, (0,), 32, (SURGERY,), 20, 20)
FULL = Plan(
    REPAIR, (0, 1, 2), 100, tuple(name for name in WEIGHTINGS if name not in (REFERENCE, *STATIC)), 80, 200
)  # fmt: skip


def main() -> None:
    args = arguments(QUESTION)
    if not has_data("weightings", args):
        return
    plan = FULL if args.full else SHORT
    found = done(plan.jobs(), args)
    eight = together(found, plan.family, plan.steps)
    traces = [one for one in of(eight, Trace) if one.task == ""]
    rows = method_table(of(eight, Outcome), traces=traces)
    pair = pair_table(of(found, Trace), PAIR, TASKS)
    title = "A pair that conflicts: falls of the losses, 1 is solved"
    save("weightings", QUESTION, rows, _targets(pair), (), folder=args.results, tables={title: pair})
    if args.full:
        plot_traces(args.results / "weightings_weights.png", _moving(of(eight, Trace)), "weight")
        shown = [one for one in of(eight, Trace) if one.method.partition(",")[0] in DRAWN]
        plot_traces(args.results / "weightings_losses.png", shown, "validation_loss")


def _targets(pair: Sequence[dict[str, object]]) -> list[Target]:
    """Surgery hurts no task to first order under plain SGD, where the update is the direction."""
    row = next(row for row in pair if str(row["weighting"]) == f"{SURGERY}, sgd")
    name = f"pair, {SURGERY}, sgd: steps whose update hurts a task, %"
    return [Target(name, float(str(row["steps whose update does"]).rstrip("%")), 0.0)]


def _moving(traces: Sequence[Trace]) -> list[Trace]:
    """Those of methods under which a weight changes on the way."""
    weights = [one for one in traces if one.name == "weight"]
    methods = {one.method for one in weights if len(set(one.values)) > 1}
    return [one for one in weights if one.method in methods]


if __name__ == "__main__":
    main()
