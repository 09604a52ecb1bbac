"""What is forgotten when tasks are learned one after another?

Five tasks, each with an adapter of its own, and all with one that they share: with nothing kept of the older tasks,
with replay of 100 rows in all, GEM, EWC, distillation, and replay beside EWC. Each adapter is trained as in
`benchmarks.training`, in fewer steps. ACC is the mean value of all tasks at the end, BWT how much the earlier ones have
changed since they were learned, and forgetting how far they are below their best (Lopez-Paz and Ranzato 2017; Chaudhry
et al. 2018).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from adapterhub.evaluation import Mean, Record, Trace
from adapterhub.training.continual import ContinualScores
from benchmarks._training_families import REPAIR
from benchmarks._training_jobs import Done, done
from benchmarks._training_runs import KEEPS, OWN, Family, Job
from benchmarks.report import Target, arguments, has_data, save

QUESTION = "What is forgotten when five tasks are learned one after another?"
FIVE = Job("sequence", Family("sequence", REPAIR.tasks[:5]), OWN, 0, 100, 100, 200)
TWO = replace(FIVE, family=Family("sequence", REPAIR.tasks[:2]), examples=32, steps=20, test_rows=20)
SEEDS = (0, 1, 2)

Row = dict[str, object]


def main() -> None:
    args = arguments(QUESTION)
    if not has_data("continual", args):
        return
    base, seeds = (FIVE, SEEDS) if args.full else (TWO, SEEDS[:1])
    jobs = [replace(base, method=method, seed=seed) for method in (OWN, *KEEPS) for seed in seeds]
    found = done(jobs, args)
    targets = [Target(f"largest fall of a task with {OWN}, points", _largest_fall(found), 0.0)]
    save("continual", QUESTION, _table(found), targets, (), folder=args.results)


def _table(found: Done) -> list[Row]:
    rows: list[Row] = []
    for method in (OWN, *KEEPS):
        scores = [ContinualScores.from_matrix(_matrix(held)) for job, held in found.items() if job.method == method]
        rows.append({
            "method": method,
            "mean value at the end (ACC), points": str(Mean.of(one.acc for one in scores)),
            "backward transfer (BWT)": str(Mean.of(one.bwt or 0.0 for one in scores)),
            "forgetting": str(Mean.of(one.forgetting or 0.0 for one in scores)),
        })  # fmt: skip
    return rows


def _matrix(records: Sequence[Record]) -> list[list[float]]:
    """Values in points, a row after each task; a task before its turn was not measured."""
    held = [one for one in records if isinstance(one, Trace)]
    return [[100 * dict(zip(t.steps, t.values, strict=True)).get(step, math.nan) for t in held]
            for step in range(1, len(held) + 1)]  # fmt: skip


def _largest_fall(found: Done) -> float:
    matrices = [_matrix(held) for job, held in found.items() if job.method == OWN]
    return max(m[place][place] - m[-1][place] for m in matrices for place in range(len(m)))


if __name__ == "__main__":
    main()
