"""Make the router's background statistics from a folder of task data.

    python scripts/background_statistics.py DATA [--out adapterhub/router/background.npz]

DATA holds `<any path>/task.json` (with `licence` and `description`) beside `train.jsonl` and `validation.jsonl` (an
`input` a line), and a `prompts.json` of {task: ["wording with {input}", ...]}. Only sums and scores are written, no
text and no vector of one. Left out are tasks without training data and those whose licence is non-commercial.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import SentenceEncoder
from adapterhub.router import Background, Calibration, Epoch, Sums

EXAMPLES = 32  # training inputs a task in the sums
SUPPORT = 20  # of them in a task's row when calibrating: what a good card has
HELD_OUT = 8  # validation inputs a task to calibrate with
HUBS = 5
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


def sample(path: Path, wordings: list[str], count: int) -> list[str]:
    """Random inputs of a file, wrapped in the wordings by turns."""
    with path.open(encoding="utf-8") as lines:
        inputs = [json.loads(line)["input"] for line in lines]
    random.Random(0).shuffle(inputs)
    return [wordings[turn % len(wordings)].replace("{input}", text) for turn, text in enumerate(inputs[:count])]


def read(data: Path, encoder: SentenceEncoder) -> list[TaskSample]:
    prompts = json.loads((data / "prompts.json").read_text(encoding="utf-8"))
    samples = []
    for path in sorted(data.rglob("task.json")):
        folder = path.parent
        card = json.loads(path.read_text(encoding="utf-8"))
        if not permissive(folder, card):
            print(f"left out: {folder.relative_to(data)} ({card['licence']})")
            continue
        name = folder.relative_to(data).as_posix()
        wordings = prompts.get(name, ["{input}"])
        train, held_out = (
            encoder.encode(sample(folder / f"{split}.jsonl", wordings, count)).astype(np.float64)
            for split, count in (("train", EXAMPLES), ("validation", HELD_OUT))
        )
        samples.append(TaskSample(name, train, held_out, encoder.encode([card["description"]])[0].astype(np.float64)))
        print(f"{len(samples):3d} {name}", flush=True)
    return samples


def calibrate(samples: list[TaskSample], dimension: int) -> Calibration:
    """Score each hub's held-out inputs under the statistics of the tasks of the other hubs."""
    order = list(samples)
    random.Random(0).shuffle(order)
    scores, answers = [], []
    for turn in range(HUBS):
        hub = order[turn::HUBS]
        names = {task.name for task in hub}
        epoch = Epoch.fit(Sums.of((task.train for task in samples if task.name not in names), dimension))
        support = [task.train[:SUPPORT] for task in hub]
        rows = np.stack(
            [epoch.row(len(x), x.sum(axis=0), task.description) for x, task in zip(support, hub, strict=True)]
        )
        scores.append(epoch.lift(np.concatenate([task.held_out for task in hub])) @ rows.T)
        answers.append(np.repeat(np.arange(len(hub)), [len(task.held_out) for task in hub]))
    return Calibration.of(scores, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("adapterhub/router/background.npz"))
    arguments = parser.parse_args()
    encoder = SentenceEncoder()
    samples = read(arguments.data, encoder)
    sums = Sums.of((task.train for task in samples), encoder.dimension)
    calibration = calibrate(samples, encoder.dimension)
    Background(encoder.fingerprint, sums, calibration).save(arguments.out)
    print(f"{len(samples)} tasks, {arguments.out.stat().st_size:,} bytes, temperature {calibration.temperature}")
    print(
        {
            alpha: (round(calibration.threshold(alpha), 2), round(calibration.set_bound(alpha), 3))
            for alpha in (0.01, 0.05, 0.1, 0.2)
        }
    )


if __name__ == "__main__":
    main()
