"""Tasks that come after the statistics and the calibration were made: how they are found, and what is refused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.router import Calibration, Sums
from adapterhub.router._calibration import posterior, together
from adapterhub.router._fit import Way, chosen, way_alone, ways_beside
from benchmarks._routing_data import Corpus, Vectors
from benchmarks._routing_figures import (
    ALPHAS,
    auroc,
    by_task,
    calibration_error,
    false_alarms,
    mean,
    ranks,
)  # fmt: skip
from benchmarks._routing_rivals import TRAINING_FREE, Head, Hub, Scorer, description, plda
from scripts.background_statistics import calibrate, summed

Doubles = NDArray[np.float64]
Answers = NDArray[np.intp]
Scores = Callable[[Doubles], Doubles]  # queries (b, d) to (b, N)

FOLDS = 5
ROUTER, RETRAINED, DESCRIBED, ALONE = "router", "retrained linear head", "description only", "router, no background"
ABSENT = 0.3  # of the tasks that the background does not know, in the trials of "none"


@dataclass(frozen=True)
class Later:
    """Some tasks, and what was made of the others before these came."""

    places: Answers
    sums: Sums
    calibration: Calibration


def later(corpus: Corpus, draw: int) -> list[Later]:
    """Deal the tasks into five folds; each comes later than the other four."""
    order = np.random.default_rng(draw).permutation(len(corpus.background))
    return [_after(corpus, order, fold) for fold in np.array_split(order, FOLDS)]


def _after(corpus: Corpus, order: Answers, fold: Answers) -> Later:
    gone = set(fold.tolist())
    known = [sample for place in order if place not in gone and (sample := corpus.background[place]) is not None]
    dimension = corpus.foreign.shape[1]
    return Later(fold, summed(known, dimension), calibrate(known, dimension))


def support(tasks: Sequence[Vectors], count: int, draw: int) -> list[Doubles]:
    """Examples of each task; those of a smaller count are among those of a larger."""
    return [
        task.pool[np.random.default_rng((draw, place)).permutation(len(task.pool))[:count]]
        for place, task in enumerate(tasks)
    ]


def asked(tasks: Sequence[Vectors]) -> tuple[Doubles, Answers]:
    """(b, d) queries of all tasks and (b,) whose they are."""
    return np.concatenate([task.test for task in tasks]), np.repeat(
        np.arange(len(tasks)), [len(task.test) for task in tasks]
    )


@dataclass(frozen=True)
class Trial:
    """One draw of support in one wording, scored by every method.

    Args:
        scores: By method, (b, N).
        answers: (b,) the true tasks.
        foreign: By method, (f, N) of texts that belong to none.
        parts: The rows of `scores` that belong to each fold, and the fold's calibration.
        count: Examples of a task.
        alone: The calibration of the router without a background.
    """

    scores: dict[str, Doubles]
    answers: Answers
    foreign: dict[str, Doubles]
    parts: list[tuple[Answers, Calibration]]
    count: int
    alone: Calibration | None = None

    def accuracy(self, method: str, k: int) -> Doubles:
        """(N,) share of each task's queries for which it is among the first k."""
        scores = self.scores[method]
        return by_task(ranks(scores, self.answers) < k, self.answers, scores.shape[1])


def trial(corpus: Corpus, wording: str, count: int, draw: int, folds: Sequence[Later]) -> Trial:
    """Score all queries; the router's and LDA's statistics are those from before the query's task came."""
    tasks = corpus.tracks[wording]
    queries, answers = asked(tasks)
    given = support(tasks, count, draw)
    descriptions = np.stack([task.description for task in tasks])
    methods: dict[str, Scorer] = {ROUTER: plda, DESCRIBED: description}
    methods |= TRAINING_FREE if count else {}
    scores = {name: np.empty((len(queries), len(tasks))) for name in methods}
    foreign: dict[str, list[Doubles]] = {name: [] for name in methods}
    parts = []
    for fold in folds:
        hub = Hub.of(given, descriptions, fold.sums)
        rows = np.flatnonzero(np.isin(answers, fold.places))
        parts.append((rows, fold.calibration))
        for name, scorer in methods.items():
            scores[name][rows] = scorer(hub, queries[rows])
            foreign[name].append(scorer(hub, corpus.foreign))
    averaged = {name: np.stack(found) for name, found in foreign.items()}
    # What is made of the support of all tasks at once, and knows no task from before.
    others: dict[str, Scores] = {}
    if count:
        others[RETRAINED] = Head.train(given, [task.validation for task in tasks])
    calibration = None
    if sum(map(len, given)) - len(given) >= descriptions.shape[1]:
        others[ALONE], calibration = alone(given, descriptions)
    scores |= {name: scorer(queries) for name, scorer in others.items()}
    averaged |= {name: scorer(corpus.foreign)[None] for name, scorer in others.items()}
    return Trial(scores, answers, averaged, parts, count, calibration)


def alone(given: Sequence[Doubles], descriptions: Doubles) -> tuple[Scores, Calibration | None]:
    """The router on statistics of the support alone."""
    own = Sums.of(given, descriptions.shape[1])
    hub, calibration = refitted(given, descriptions, own, [way_alone(own)])
    return (lambda queries: plda(hub, queries)), calibration


def refitted(
    given: Sequence[Doubles], descriptions: Doubles, sums: Sums, ways: Sequence[Way]
) -> tuple[Hub, Calibration | None]:
    """A hub whose epoch is made of its own support, in the way that `Router.refit` chooses; `sums` are for LDA."""
    way, calibration = chosen_way(given, descriptions, ways)
    return Hub.of(given, descriptions, sums, way(Sums.of(given, descriptions.shape[1]))), calibration


def chosen_way(given: Sequence[Doubles], descriptions: Doubles, ways: Sequence[Way]) -> tuple[Way, Calibration | None]:
    """How `Router.refit` makes the statistics of a hub, and their calibration."""
    known = list(zip(given, descriptions, strict=True))
    return chosen(known, ways, lambda kept: Sums.of(kept, descriptions.shape[1]))


def fit(scores: Doubles, calibration: Calibration | None) -> Doubles:
    """(b,) how well any task fits: what all score together where that is calibrated, else the best score."""
    return scores.max(axis=1) if calibration is None else together(scores, calibration.temperature)


def refused(trial: Trial, method: str) -> tuple[float, float]:
    """AUROC against foreign texts, and their false alarms; mean over the folds."""
    scores, blocks = trial.scores[method], trial.foreign[method]
    parts: list[tuple[Answers, Calibration | None]] = [
        (np.arange(len(scores)), trial.alone if method == ALONE else None)
    ]
    if len(blocks) > 1:
        parts = [(rows, calibration if method == ROUTER else None) for rows, calibration in trial.parts]
    pairs = [(fit(scores[rows], made), fit(block, made)) for (rows, made), block in zip(parts, blocks, strict=True)]
    return mean([auroc(*pair) for pair in pairs]), mean([false_alarms(*pair) for pair in pairs])


@dataclass(frozen=True)
class Calibrated:
    """What a calibration promised and gave, on tasks that came after it; shares by alpha."""

    error: float
    covered: dict[float, float]
    size: dict[float, float]
    missed: dict[float, float]


def calibrated(trials: Sequence[Trial]) -> Calibrated:
    confidence, right = [], []
    covered, size, missed = ({alpha: [] for alpha in ALPHAS} for _ in range(3))  # type: ignore[var-annotated]
    for found in trials:
        tasks = found.scores[ROUTER].shape[1]
        for rows, calibration in found.parts:
            scores, answers = found.scores[ROUTER][rows], found.answers[rows]
            chances = posterior(scores, tasks, calibration.temperature, calibration.null)[0]
            sums = together(scores, calibration.temperature)
            confidence.append(chances.max(axis=1))
            right.append(chances.argmax(axis=1) == answers)
            for alpha in ALPHAS:
                bound = next(b for b in calibration.bounds(alpha, tasks) if b.examples <= found.count)
                within = 1 - chances <= bound.miss
                covered[alpha].append(within[np.arange(len(answers)), answers])
                size[alpha].append(within.sum(axis=1))
                missed[alpha].append(sums < bound.threshold)
    error = calibration_error(np.concatenate(confidence), np.concatenate(right))
    shares = ({a: float(np.mean(np.concatenate(v))) for a, v in found.items()} for found in (covered, size, missed))
    return Calibrated(error, *shares)


def halves(corpus: Corpus, splits: int) -> list[Later]:
    """Splits of the tasks: statistics and calibration of one half, and the places of the other."""
    found = []
    for split in range(splits):
        order = np.random.default_rng(100 + split).permutation(len(corpus.background))
        found.append(_after(corpus, order, order[len(order) // 2 :]))
    return found


def left_out(
    corpus: Corpus, wording: str, count: int, splits: Sequence[Later]
) -> Iterator[dict[str, tuple[float, float]]]:
    """AUROC and false alarms on tasks that are not in the registry.

    In each split half of the tasks make the background; of the others, which no statistic knows, 70 % are registered.
    """
    tasks = corpus.tracks[wording]
    for split, half in enumerate(splits):
        number = round(ABSENT * len(half.places))
        present, absent = half.places[:-number], half.places[-number:]
        given = support(tasks, count, split)
        descriptions = np.stack([tasks[place].description for place in present])
        hub = Hub.of([given[place] for place in present], descriptions, half.sums)
        own, foreign = (np.concatenate([tasks[place].test for place in places]) for places in (present, absent))
        methods: dict[str, Scorer] = {ROUTER: plda, DESCRIBED: description}
        methods |= TRAINING_FREE if count else {}
        found = {}
        for name, scorer in methods.items():
            made = half.calibration if name == ROUTER else None
            pair = fit(scorer(hub, own), made), fit(scorer(hub, foreign), made)
            found[name] = auroc(*pair), false_alarms(*pair)
        yield found


def intents(corpus: Corpus) -> dict[str, tuple[float, float, float]]:
    """Top-1, AUROC and false alarms of a hub of intents against utterances that belong to none of them."""
    queries, answers = asked(corpus.intents)
    given = [task.pool for task in corpus.intents]
    dimension = corpus.foreign.shape[1]
    known = [sample for place, sample in enumerate(corpus.background) if sample and place != corpus.intents_of]
    background, own = summed(known, dimension), Sums.of(given, dimension)
    descriptions = np.stack([task.description for task in corpus.intents])
    hub = Hub.of(given, descriptions, background)
    routers: dict[str, tuple[Hub, Calibration | None]] = {
        ROUTER: (hub, calibrate(known, dimension)),
        f"{ROUTER}, refitted": refitted(given, descriptions, background, ways_beside(background)),
        ALONE: refitted(given, descriptions, own, [way_alone(own)]),
    }
    others = {name: (scorer, hub, None) for name, scorer in (TRAINING_FREE | {DESCRIBED: description}).items()}
    found = {}
    for name, (scorer, of, made) in ({n: (plda, *each) for n, each in routers.items()} | others).items():
        scores = scorer(of, queries)
        pair = fit(scores, made), fit(scorer(of, corpus.foreign), made)
        found[name] = float(np.mean(ranks(scores, answers) < 1)), auroc(*pair), false_alarms(*pair)
    return found
