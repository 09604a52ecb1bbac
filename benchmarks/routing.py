"""Does the router find the right task among all of a data folder, does it know when there is none, and may it grow?

`--data DIR` holds the tasks, one of them utterances that no task covers. A task's support is 20, 5, 1 or 0 of its
training inputs and its description; its test inputs are asked. In the main rows neither has an instruction. In the rows
"instruction" support stands behind the first sentence of the description (in a variant only every second example does)
and what is asked is in a user's wording. Accuracies are means over tasks, and over draws of the support.

- The router and LDA know a query's task from its support only: statistics and calibration are those of the tasks of the
  other four of five folds, made as the shipped background is made, and all tasks are registered. "No background" is
  the router on statistics of the support alone; the retrained head is a logistic regression on the support of all
  tasks, whose strength is chosen on validation inputs.
- Calibration: on tasks that came after it. Conformal sets are promised to cover 95, 90 and 80 %; "wrongly none" is
  promised to be at most 5 %.
- None: what all tasks score together (of the other methods the best score) against utterances that no task covers
  (where a task of the folder classifies such utterances,
  they cannot be told apart from its own, so a hub of the 150 intents of that task is shown too) and against tasks that
  are not registered: half of the tasks make the background, 70 % of the others are registered.
- Growth: the second half of the tasks is registered one by one into the first, without a gradient and, in "grown",
  within one epoch; beside it hubs whose statistics are made anew at each step.

Without `--full`: every second task, without instruction, one draw. Encodings are kept in `--cache DIR`.
"""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import SentenceEncoder
from benchmarks._routing_data import BARE, BEHIND, Corpus, Encodings, Sizes, read_corpus
from benchmarks._routing_figures import Interval, interval, mean
from benchmarks._routing_growth import ALONE_FRESH, ALONE_GROWN, GROWN, REFITTED, WAYS, Growth, grow
from benchmarks._routing_plot import examples, plot
from benchmarks._routing_rivals import TRAINING_FREE
from benchmarks._routing_trials import (
    DESCRIBED,
    RETRAINED,
    ROUTER,
    Calibrated,
    Later,
    Trial,
    calibrated,
    halves,
    intents,
    later,
    left_out,
    refused,
    trial,
)  # fmt: skip
from benchmarks.report import Target, arguments, has_data, save

QUESTION = "Does the router find the right task, does it know when there is none, and may it grow?"
COUNTS = (20, 5, 1, 0)
CENTROID = "nearest centroid"
SHORT, FULL = Sizes(32, 32, 8, 10, 200), Sizes(128, 60, 8, 50, 1200)

Doubles = NDArray[np.float64]
Row = dict[str, object]
Pairs = dict[str, tuple[float, float]]  # AUROC and false alarms by method


def main() -> None:
    args = arguments(QUESTION)
    if not has_data("routing", args):
        return
    with tempfile.TemporaryDirectory() as temporary:
        encodings = Encodings(SentenceEncoder(cache_size=0), args.cache or Path(temporary))
        corpus = read_corpus(args.data, FULL if args.full else SHORT, encodings, full=args.full)
    folds = [later(corpus, draw) for draw in range(5 if args.full else 1)]
    splits = halves(corpus, 20 if args.full else 3)
    rows: list[Row] = []
    targets: list[Target] = []
    for wording in corpus.tracks:
        draws = folds if wording == BARE else folds[:2]
        for count in COUNTS:
            found = _Block(corpus, wording, count, draws, splits)
            rows += found.rows()
            targets += found.targets()
    if corpus.intents:
        found_intents = intents(corpus)
        rows += [_row(f"150 intents, 20 examples: {method}", accuracy=figures[:1], foreign=figures[1:])
                 for method, figures in found_intents.items()]  # fmt: skip
        targets.append(Target("none: AUROC, out-of-scope utterances against 150 intents",
                              found_intents[f"{ROUTER}, refitted"][1], 0.96, "higher"))  # fmt: skip
    growth = grow(corpus, folds[0], 20)
    rows += _grown(growth)
    targets += _grown_targets(growth)
    save("routing", QUESTION, rows, targets, ("top-1",), folder=args.results)
    plot(args.results / "routing.png", rows, COUNTS)


class _Block:
    """One wording and one size of support: every method, over draws of the support."""

    def __init__(
        self, corpus: Corpus, wording: str, count: int, draws: Sequence[Sequence[Later]], splits: Sequence[Later]
    ) -> None:
        self._main = wording == BARE
        self._case = examples(wording, count)
        self._count, self._behind = count, wording == BEHIND
        trials = [trial(corpus, wording, count, draw, folds) for draw, folds in enumerate(draws)]
        self._methods = list(trials[0].scores)
        self._accuracy = {name: _accuracies(trials, name) for name in self._methods}
        self._calibrated = calibrated(trials)
        self._foreign = {name: _mean_pair([refused(found, name) for found in trials]) for name in self._methods}
        absent: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for split in left_out(corpus, wording, count, splits) if self._main else ():
            for name, pair in split.items():
                absent[name].append(pair)
        self._absent = {name: _mean_pair(pairs) for name, pairs in absent.items()}

    def _over(self, name: str, other: str) -> Interval:
        """How much a method's top-1 is above another's."""
        return interval(self._accuracy[name][0] - self._accuracy[other][0])

    def rows(self) -> list[Row]:
        base = CENTROID if self._count else DESCRIBED
        return [
            _row(
                f"{self._case}: {name}",
                accuracy=[float(by_task.mean()) for by_task in self._accuracy[name]],
                over=None if name == base else self._over(name, base),
                calibrated=self._calibrated if name == ROUTER else None,
                foreign=self._foreign[name],
                absent=self._absent.get(name, ()),
            )
            for name in self._methods
        ]

    def targets(self) -> list[Target]:
        found = self._accuracy_targets()
        if not self._main:
            return found
        made = self._calibrated
        found.append(Target(f"{self._case}: calibration error", made.error, 0.05))
        found += [
            Target(f"{self._case}: sets that cover {1 - alpha:.0%}, off by", abs(covered - 1 + alpha), 0.02)
            for alpha, covered in made.covered.items()
        ]
        found.append(Target(f"{self._case}: wrongly none", made.missed[0.05], 0.05))
        if self._count == 20:
            found.append(Target("none: AUROC, out-of-scope utterances against all tasks", self._foreign[ROUTER][0],
                                0.96, "higher"))  # fmt: skip
            found.append(Target("none: AUROC, tasks left out", self._absent[ROUTER][0], 0.76, "higher"))
        return found

    def _accuracy_targets(self) -> list[Target]:
        margins = [(DESCRIBED, 0.0)]
        if self._count:
            others = [name for name in (*TRAINING_FREE, RETRAINED) if name != CENTROID]
            margins = [(CENTROID, 0.02)] + [(name, 0.0) for name in (*others, DESCRIBED)]
        return [
            Target(f"{self._case}: top-1 above {name}", self._over(ROUTER, name).mean, margin, "higher")
            for name, margin in margins
        ]


def _accuracies(trials: Sequence[Trial], name: str) -> list[Doubles]:
    """(N,) top-1, top-3 and top-5 of each task, mean over draws."""
    return [np.mean([found.accuracy(name, k) for found in trials], axis=0) for k in (1, 3, 5)]


def _mean_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return mean([first for first, _ in pairs]), mean([second for _, second in pairs])


def _row(
    case: str,
    accuracy: Sequence[float] = (),
    over: Interval | None = None,
    calibrated: Calibrated | None = None,
    foreign: Sequence[float] = (),
    absent: Sequence[float] = (),
) -> Row:
    def at(figures: Sequence[float], place: int) -> object:
        return figures[place] if place < len(figures) else "-"

    sets = calibrated and [f"{calibrated.covered[a]:.3f} ({calibrated.size[a]:.1f})" for a in calibrated.covered]
    return {
        "case": case,
        "top-1": at(accuracy, 0),
        "top-3": at(accuracy, 1),
        "top-5": at(accuracy, 2),
        "top-1 above the centroid (95 %)": str(over) if over else "-",
        "ECE": calibrated.error if calibrated else "-",
        "covered by sets for 95 % (size)": sets[0] if sets else "-",
        "90 %": sets[1] if sets else "-",
        "80 %": sets[2] if sets else "-",
        "wrongly none": calibrated.missed[0.05] if calibrated else "-",
        "AUROC out of scope": at(foreign, 0),
        "false alarms": at(foreign, 1),
        "AUROC tasks left out": at(absent, 0),
        "their false alarms": at(absent, 1),
    }


def _grown(growth: Growth) -> list[Row]:
    last = len(growth.steps) - 1
    return [
        _row(f"{growth.steps[0]} tasks among {growth.steps[step]}: {way}", accuracy=[growth.accuracy[way][step]])
        for step in (0, last // 2, last)
        for way in WAYS
    ]


def _grown_targets(growth: Growth) -> list[Target]:
    def behind(grown: str, fresh: str) -> float:
        pairs = zip(growth.accuracy[grown], growth.accuracy[fresh], strict=True)
        return max(made - kept for kept, made in pairs)

    return [
        Target("growth: old tasks' top-1 below a refitted hub, worst step", behind(GROWN, REFITTED), 0.01),
        Target("growth without a background: below a fresh hub, worst step", behind(ALONE_GROWN, ALONE_FRESH), 0.01),
        Target("growth: rows of old tasks that moved", growth.moved, 0),
        Target("growth: registering a task, ms CPU beside its encoding", growth.milliseconds, 10),
    ]


if __name__ == "__main__":
    main()
