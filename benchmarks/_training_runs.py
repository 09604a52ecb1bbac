"""What the training benchmarks train: each job is a process of its own, with one thread, and leaves its records."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adapterhub.evaluation import BASELINE, Record, Trace
from adapterhub.registry import Registry
from adapterhub.training import FitResult, Sharing, Trainer
from adapterhub.training.continual import ContinualLearner
from benchmarks import _training_pair
from benchmarks._training_world import LONGEST, VALIDATION, Given, Judge, fresh_registry, outcome, read_family

RANK, RATE, ROWS = 8, 3e-3, 8  # of the adapters; peak learning rate; rows of a step
LOOKS = 5  # evaluations of a run
TARGET = 0.8  # of the `threshold` weighting, for every task
BUFFER = 100  # rows that continual learning remembers in all
PAIR = "pair"
OWN = "own adapters"  # continual learning's default; the others share one
KEEPS: Mapping[str, Mapping[str, float]] = {  # each way's λ; none is tuned, EWC's are two ends
    "shared, nothing kept": {},
    "shared, replay": {"replay": 1.0},
    "shared, GEM": {"gem": 1.0},
    "shared, EWC (λ 1e2)": {"ewc": 1e2},
    "shared, EWC (λ 1e4)": {"ewc": 1e4},
    "shared, distillation": {"distillation": 1.0},
    "shared, replay + EWC (λ 1e2)": {"replay": 1.0, "ewc": 1e2},
}


@dataclass(frozen=True)
class Family:
    """Tasks that are trained together.

    Args:
        name: Of the group.
        tasks: Their folders.
    """

    name: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        kind: `together` trains a family's tasks, `sequence` learns them one after another, `pair` trains the pair
            that conflicts by construction.
        family: The tasks.
        method: `single-task`, or the weighting under which a group's adapter is trained; of a sequence `own adapters`
            or a key of `KEEPS`.
        seed: Of the sample of rows, of fresh weights and of the order.
        examples: Training rows a task.
        steps: Steps a task; with a group half of them are the group's, each with a batch of every task.
        test_rows: Test rows a task at most.
        optimiser: Of the group's adapter and of the tasks'.
    """

    kind: str
    family: Family
    method: str
    seed: int
    examples: int
    steps: int
    test_rows: int
    optimiser: str = "adamw"

    @property
    def label(self) -> str:
        """What the tables call the method."""
        return self.method if self.optimiser == "adamw" else f"{self.method}, {self.optimiser}"


def run(job: Job, data: Path) -> list[Record]:
    """Do a job.

    Args:
        job: What to do.
        data: The folder of task data.
    """
    torch.set_num_threads(1)
    if job.kind == "pair":
        return _pair(job)
    tasks = read_family(data, job.family.name, job.family.tasks, job.test_rows)
    with fresh_registry() as registry:
        return _KINDS[job.kind](job, tasks, registry)


def _together(job: Job, tasks: Sequence[Given], registry: Registry) -> list[Record]:
    alone = job.method == BASELINE
    trainer = _trainer(job, tasks, registry, job.steps if alone else job.steps // 2)
    data = {task.card.name: task.sample(job.examples, job.seed) for task in tasks}
    cards = {task.card.name: task.card for task in tasks}
    begin = time.process_time()
    results = trainer.fit(data, cards, group=None if alone else job.family.name)
    facts = {
        "examples": job.examples,
        "steps": job.steps,
        "seconds": (time.process_time() - begin) / len(tasks),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    judge = Judge(registry)
    found: list[Record] = [outcome(task, judge, job.label, job.seed, **facts) for task in tasks]
    found += _bytes_on_disk(job, registry)
    if not alone:
        found += _traces(job, results[job.family.name])
    return found


def _sequence(job: Job, tasks: Sequence[Given], registry: Registry) -> list[Record]:
    """A trace for each task: its value after each task from its own on."""
    trainer = _trainer(job, tasks, registry, job.steps)
    learner = ContinualLearner(trainer, replay_buffer_size=BUFFER)
    values: dict[str, dict[int, float]] = {task.card.name: {} for task in tasks}
    first = tasks[0].card.name
    for place, task in enumerate(tasks, start=1):
        shared = None if job.method == OWN or task is tasks[0] else first
        rows, keep = task.sample(job.examples, job.seed), KEEPS.get(job.method, {})
        learner.learn_new_task(task.card.name, rows, task.card, shared=shared, keep=tuple(keep), strength=keep)
        judge = Judge(registry)
        for known in tasks[:place]:
            values[known.card.name][place] = judge.measure(known)[0]
    return [Trace(job.label, job.seed, "value", tuple(v), tuple(v.values()), name) for name, v in values.items()]


def _pair(job: Job) -> list[Record]:
    found = _training_pair.run(job.method, job.optimiser, job.seed)
    facts = {"direction_conflict": found.directions, "conflict": found.updates, "step_seconds": found.seconds}
    steps = (_training_pair.STEPS,)
    traces: list[Record] = [Trace(job.label, job.seed, name, steps, (value,), PAIR) for name, value in facts.items()]
    falls = zip(_training_pair.TASKS, found.falls, strict=True)
    return traces + [Trace(job.label, job.seed, "fall", steps, (value,), f"{PAIR}/{task}") for task, value in falls]


_KINDS: Mapping[str, Callable[[Job, Sequence[Given], Registry], list[Record]]] = {
    "together": _together,
    "sequence": _sequence,
}


def _trainer(job: Job, tasks: Sequence[Given], registry: Registry, steps: int) -> Trainer:
    names = [task.card.name for task in tasks]
    weighting = "sum" if job.kind == "sequence" or job.method == BASELINE else job.method
    targets = dict.fromkeys(names, TARGET) if weighting == "threshold" else None
    return Trainer(
        registry,
        rank=RANK,
        learning_rate=RATE,
        batch_size=ROWS,
        max_steps=steps,
        max_length=LONGEST,
        evaluate_every=max(1, steps // LOOKS),
        # A sequence ends where it ends: its learner takes one task's rows at a time.
        validation=0.0 if job.kind == "sequence" else {task.card.name: task.validation for task in tasks},
        validation_rows=VALIDATION,
        seed=job.seed,
        optimiser=job.optimiser,
        sharing=Sharing(weighting=weighting, targets=targets),
        progress=False,
    )


def _traces(job: Job, group: FitResult) -> list[Record]:
    """What the group's run recorded on its way: losses, weights, conflicts."""
    found: list[Record] = []
    for name, looks in group.tasks.items():
        steps = tuple(look.step for look in looks)
        losses = [look.validation_loss for look in looks]
        found.append(Trace(job.label, job.seed, "validation_loss", steps, tuple(x or 0.0 for x in losses), name))
    steps = tuple(look.step for look in group.history)
    for place, name in enumerate(group.tasks):
        if all(group.weights) and group.weights:
            found.append(Trace(job.label, job.seed, "weight", steps, tuple(w[place] for w in group.weights), name))
    if group.conflicts is None:
        return found
    facts = dict(zip(("direction_conflict", "conflict"), group.conflicts, strict=True))
    return found + [Trace(job.label, job.seed, name, (group.steps,), (value,)) for name, value in facts.items()]


def _bytes_on_disk(job: Job, registry: Registry) -> list[Record]:
    """Bytes of each adapter folder; of the base under an empty name."""
    sizes = {"": _size(registry.root / "_base")}
    for task in registry.under(""):
        path = registry.adapter_path(task.name)
        if path is not None:
            sizes[task.name] = _size(path)
    return [Trace(job.label, job.seed, "bytes", (0,), (float(size),), name) for name, size in sizes.items()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.resolve().rglob("*") if path.is_file())


def named(job: Job) -> str:
    """A file's name for a job, the same for the same job."""
    parts = asdict(job) | {"family": f"{job.family.name}-{len(job.family.tasks)}"}
    return "_".join(str(part).replace(" ", "-").replace(",", "") for part in parts.values())
