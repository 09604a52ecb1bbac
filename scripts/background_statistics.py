"""Make the router's background statistics from a folder of task data.

    python scripts/background_statistics.py DATA [--out adapterhub/router/background.npz]

DATA holds `<any path>/task.json` (with `licence` and `description`) beside `train.jsonl` and `validation.jsonl` (an
`input` a line), and a `prompts.json` of {task: ["wording with {input}", ...]}; wordings of further tasks are in
`wordings.json` beside this script. Only sums and scores are written, no text and no vector of one. Left out are tasks
without training data and those whose licence is non-commercial.

Of eight inputs of a task six are bare, one stands behind the first sentence of the task's description, and one is in a
user's wording. So the covariance within tasks knows what an instruction does to a text: queries that are worded unlike
the examples are then routed better (top-1 of 89 tasks, 20 examples behind a description, queries in a user's wording:
46 % with bare inputs, 52 % with these), bare ones equally well.

The calibration is cross-fitted: the tasks are dealt into five parts, and held-out inputs of each part, of eight seven
bare and one in a user's wording, are scored under the statistics of the other parts. All tasks are in the hub, with 20,
5, 1 and 0 bare inputs and their descriptions; for 5 and 1 four times, with other inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import SentenceEncoder
from adapterhub.router import Background, Calibration, Epoch, Sums
from adapterhub.router._calibration import Block

EXAMPLES = 128  # training inputs a task in the sums: 2 points of top-1 above 32
WEIGHT = 0.25  # of the covariance within tasks beside a hub's own, so that a few thousand examples of a hub are heard
DRAWS = {20: 1, 5: 4, 1: 4, 0: 1}  # how often support is drawn, by the number of bare inputs of a task
HELD_OUT = 8  # validation inputs a task to calibrate with
PARTS = 5
BEHIND, WORDED = 1, 5  # which of eight inputs stand behind the description, and in a wording
# Its file says CC BY, but it is cut from ASSET, which is CC BY-NC.
LEFT_OUT = {"task111-asset-sentence-simplification"}


@dataclass(frozen=True)
class TaskSample:
    name: str
    train: NDArray[np.float64]
    held_out: NDArray[np.float64]
    description: NDArray[np.float64]


def permissive(folder: Path, card: dict[str, str]) -> bool:
    return "-NC" not in card["licence"] and folder.name not in LEFT_OUT and (folder / "train.jsonl").exists()


def read_wordings(data: Path) -> dict[str, list[str]]:
    """How users ask for each task: of a folder of data, and of this folder."""
    own = json.loads(Path(__file__).with_name("wordings.json").read_text(encoding="utf-8"))
    given = json.loads((data / "prompts.json").read_text(encoding="utf-8"))
    return {name: [wording] for name, wording in own.items()} | given


def wordings_of(name: str, wordings: dict[str, list[str]]) -> list[str]:
    """The wordings of a task that say more than its input; the bare input if there are none."""
    found = wordings.get(name, wordings.get(name.rsplit("/", 1)[-1], []))
    return [wording for wording in found if wording != "{input}"] or ["{input}"]


def begin(description: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.!?])\s", description)[0]


def heard(inputs: Sequence[str], description: str, wordings: Sequence[str]) -> list[str]:
    """The inputs as a hub may hear them: of eight one behind the description, one in a wording, six bare."""
    texts = list(inputs)
    for turn, text in enumerate(inputs):
        if turn % 8 == BEHIND:
            texts[turn] = f"{begin(description)} {text}"
        elif turn % 8 == WORDED:
            texts[turn] = wordings[turn // 8 % len(wordings)].replace("{input}", text)
    return texts


def asked(inputs: Sequence[str], wordings: Sequence[str]) -> list[str]:
    """The inputs as users may send them: of eight one in a wording, seven bare."""
    texts = list(inputs)
    for turn in range(WORDED, len(texts), 8):
        texts[turn] = wordings[turn // 8 % len(wordings)].replace("{input}", texts[turn])
    return texts


def bare(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bare inputs among those of a task."""
    turn = np.arange(len(vectors)) % 8
    return vectors[(turn != BEHIND) & (turn != WORDED)]


def summed(samples: Iterable[TaskSample], dimension: int) -> Sums:
    """The statistics of a background of these tasks."""
    sums = Sums.of((task.train for task in samples), dimension)
    return replace(sums, scatter=WEIGHT * sums.scatter, freedom=WEIGHT * sums.freedom)


def sample(path: Path, count: int) -> list[str]:
    """Random inputs of a file."""
    with path.open(encoding="utf-8") as lines:
        inputs = [json.loads(line)["input"] for line in lines]
    random.Random(0).shuffle(inputs)
    return inputs[:count]


def read(data: Path, encoder: SentenceEncoder) -> list[TaskSample]:
    found = read_wordings(data)
    samples = []
    for path in sorted(data.rglob("task.json")):
        folder = path.parent
        card = json.loads(path.read_text(encoding="utf-8"))
        if not permissive(folder, card):
            print(f"left out: {folder.relative_to(data)} ({card['licence']})")
            continue
        name = folder.relative_to(data).as_posix()
        wordings = wordings_of(name, found)
        given = heard(sample(folder / "train.jsonl", EXAMPLES), card["description"], wordings)
        held_out = asked(sample(folder / "validation.jsonl", HELD_OUT), wordings)
        vectors = (encoder.encode(texts).astype(np.float64) for texts in (given, held_out, [card["description"]]))
        train, queries, described = vectors
        samples.append(TaskSample(name, train, queries, described[0]))
        print(f"{len(samples):3d} {name}", flush=True)
    return samples


def calibrate(samples: Sequence[TaskSample], dimension: int) -> Calibration:
    """Score each part's held-out inputs under the statistics of the other parts, in a hub of all tasks."""
    order = list(samples)
    random.Random(0).shuffle(order)
    blocks: dict[int, list[Block]] = {count: [] for count in DRAWS}
    for turn in range(PARTS):
        rest = (task for place, task in enumerate(order) if place % PARTS != turn)
        epoch = Epoch.fit(summed(rest, dimension))
        places = range(turn, len(order), PARTS)
        queries = epoch.lift(np.concatenate([order[place].held_out for place in places]))
        answers = np.repeat(places, [len(order[place].held_out) for place in places])
        for count, draws in DRAWS.items():
            for draw in range(draws):
                rows = [_row(epoch, task, count, (turn, draw, place)) for place, task in enumerate(order)]
                blocks[count].append((queries @ np.stack(rows).T, answers))
    return Calibration.of(blocks)


def _row(epoch: Epoch, task: TaskSample, count: int, seed: Sequence[int]) -> NDArray[np.float64]:
    """The row of a task with so many of its bare inputs."""
    inputs = bare(task.train)
    drawn = inputs[np.random.default_rng(seed).permutation(len(inputs))[:count]]
    return epoch.row(len(drawn), drawn.sum(axis=0), task.description)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("adapterhub/router/background.npz"))
    arguments = parser.parse_args()
    encoder = SentenceEncoder()
    samples = read(arguments.data, encoder)
    sums = summed(samples, encoder.dimension)
    calibration = calibrate(samples, encoder.dimension)
    Background(encoder.fingerprint, sums, calibration).save(arguments.out)
    print(f"{len(samples)} tasks, {arguments.out.stat().st_size:,} bytes")
    print(f"temperature {calibration.temperature:.2f}, null {calibration.null}")
    for alpha in (0.01, 0.05, 0.1, 0.2):
        print(alpha, *calibration.bounds(alpha, 8))


if __name__ == "__main__":
    main()
