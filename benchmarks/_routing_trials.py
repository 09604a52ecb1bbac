"""Tasks that come after the statistics and the calibration were made: how they are found, and what is refused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapterhub.router import Calibration, Sums
from adapterhub.router._calibration import posterior
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
    """

    scores: dict[str, Doubles]
    answers: Answers
    foreign: dict[str, Doubles]
    parts: list[tuple[Answers, Calibration]]

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
    others = _others(tasks, given, descriptions, count)
    scores |= {name: scorer(queries) for name, scorer in others.items()}
    averaged = {name: np.stack(found) for name, found in foreign.items()}
    return Trial(scores, answers, averaged | {n: f(corpus.foreign)[None] for n, f in others.items()}, parts)


def _others(tasks: Sequence[Vectors], given: list[Doubles], descriptions: Doubles, count: int) -> dict[str, Scores]:
    """What is made of the support of all tasks at once, and knows no task from before."""
    found: dict[str, Scores] = {}
    if count:
        found[RETRAINED] = Head.train(given, [task.validation for task in tasks])
    dimension = descriptions.shape[1]
    if sum(map(len, given)) - len(given) >= dimension:
        alone = Hub.of(given, descriptions, Sums.of(given, dimension))
        found[ALONE] = lambda queries: plda(alone, queries)
    return found


def refused(trial: Trial, method: str) -> tuple[float, float]:
    """AUROC of the best score against foreign texts, and their false alarms; mean over the folds."""
    best = trial.scores[method].max(axis=1)
    blocks = trial.foreign[method]
    rows = [rows for rows, _ in trial.parts] if len(blocks) > 1 else [np.arange(len(best))]
    pairs = [(best[own], block.max(axis=1)) for own, block in zip(rows, blocks, strict=True)]
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
            confidence.append(chances.max(axis=1))
            right.append(chances.argmax(axis=1) == answers)
            for alpha in ALPHAS:
                within = 1 - chances <= calibration.set_bound(alpha, tasks)
                covered[alpha].append(within[np.arange(len(answers)), answers])
                size[alpha].append(within.sum(axis=1))
                missed[alpha].append(scores.max(axis=1) < calibration.threshold(alpha))
    error = calibration_error(np.concatenate(confidence), np.concatenate(right))
    shares = ({a: float(np.mean(np.concatenate(v))) for a, v in found.items()} for found in (covered, size, missed))
    return Calibrated(error, *shares)


def left_out(corpus: Corpus, wording: str, count: int, splits: int) -> Iterator[dict[str, tuple[float, float]]]:
    """AUROC and false alarms on tasks that are not in the registry.

    In each split half of the tasks make the background; of the others, which no statistic knows, 70 % are registered.
    """
    tasks = corpus.tracks[wording]
    dimension = corpus.foreign.shape[1]
    for split in range(splits):
        order = np.random.default_rng(100 + split).permutation(len(tasks))
        half = len(order) // 2
        absent = order[len(order) - round(ABSENT * (len(order) - half)) :]
        present = order[half : len(order) - len(absent)]
        known = [sample for place in order[:half] if (sample := corpus.background[place]) is not None]
        given = support(tasks, count, split)
        descriptions = np.stack([tasks[place].description for place in present])
        hub = Hub.of([given[place] for place in present], descriptions, summed(known, dimension))
        own, foreign = (np.concatenate([tasks[place].test for place in places]) for places in (present, absent))
        methods: dict[str, Scorer] = {ROUTER: plda, DESCRIBED: description}
        methods |= TRAINING_FREE if count else {}
        found = {}
        for name, scorer in methods.items():
            pair = scorer(hub, own).max(axis=1), scorer(hub, foreign).max(axis=1)
            found[name] = auroc(*pair), false_alarms(*pair)
        yield found


def intents(corpus: Corpus) -> dict[str, tuple[float, float, float]]:
    """Top-1, AUROC and false alarms of a hub of intents against utterances that belong to none of them."""
    queries, answers = asked(corpus.intents)
    given = [task.pool for task in corpus.intents]
    dimension = corpus.foreign.shape[1]
    known = (sample for place, sample in enumerate(corpus.background) if sample and place != corpus.intents_of)
    background, own = summed(known, dimension), Sums.of(given, dimension)
    descriptions = np.stack([task.description for task in corpus.intents])
    hubs = {ROUTER: Hub.of(given, descriptions, background)}
    hubs |= {f"{ROUTER}, refitted": Hub.of(given, descriptions, background + own)}
    hubs |= {ALONE: Hub.of(given, descriptions, own)}
    found = {name: _separated(plda, hub, queries, answers, corpus.foreign) for name, hub in hubs.items()}
    for name, scorer in (TRAINING_FREE | {DESCRIBED: description}).items():
        found[name] = _separated(scorer, hubs[ROUTER], queries, answers, corpus.foreign)
    return found


def _separated(
    scorer: Scorer, hub: Hub, queries: Doubles, answers: Answers, foreign: Doubles
) -> tuple[float, float, float]:
    scores = scorer(hub, queries)
    pair = scores.max(axis=1), scorer(hub, foreign).max(axis=1)
    return float(np.mean(ranks(scores, answers) < 1)), auroc(*pair), false_alarms(*pair)
