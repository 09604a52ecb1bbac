"""Train the adapters of the bundled registry, measure them, and register those that earn their place.

    python scripts/build_registry.py --data DIR --work DIR [--registry registry] [--task NAME ...]

For each task: rows from its builder in `task_data`, an adapter on the embedded base, its metric on the builder's test
rows, beside the bare base. An adapter that does not beat the base is not registered.
"""

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from task_data import BUILDERS, Row

from adapterhub.evaluation import TaskReport, evaluate, read_evaluation_rows
from adapterhub.model import RoutedModel
from adapterhub.registry import Registry
from adapterhub.training import Trainer

SETTINGS: dict[str, dict[str, object]] = {
    "knowledge/question-answering": {"epochs": 1},
    "knowledge/world-knowledge": {"epochs": 45, "rank": 32},
    "language/grammar": {"epochs": 5},
    "language/named-entities": {"epochs": 2},
    "language/sentiment": {"epochs": 2, "method": "bottleneck", "rank": 32},
    "language/translation-en-de": {"epochs": 4},
    "reasoning/logic": {"epochs": 2},
    "reasoning/math": {"epochs": 10, "batch_size": 64, "learning_rate": 1.5e-3},
    "reasoning/spatial": {"epochs": 1},
}
DEFAULTS: dict[str, object] = {"rank": 16, "learning_rate": 2e-3, "batch_size": 32, "mixed_precision": "bf16"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of task data")
    parser.add_argument("--work", type=Path, required=True, help="folder for rows, checkpoints and adapters")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--task", action="append", choices=sorted(BUILDERS), help="only these tasks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from checkpoints")
    return parser.parse_args()


def write_rows(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def train(name: str, splits: dict[str, list[Row]], args: argparse.Namespace) -> tuple[Path, float]:
    """The folder of a fresh adapter, and the seconds that it took."""
    registry = Registry(args.registry)
    out = args.work / "adapters"
    shutil.rmtree(out / name, ignore_errors=True)
    trainer = Trainer(
        registry,
        **{**DEFAULTS, **SETTINGS[name]},
        validation={name: splits["validation"]},
        checkpoints=args.work / "checkpoints",
        resume=args.resume,
    )
    result = trainer.fit({name: splits["train"]}, register=False, out=out)[name]
    return result.folder, result.seconds


def measure(name: str, folder: Path, test: list[Row], args: argparse.Namespace) -> TaskReport:
    """Base, own adapter and routed on the test rows, in a registry that holds the new adapter."""
    trial = args.work / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(args.registry, trial, ignore=shutil.ignore_patterns(".catalog"))
    registry = Registry(trial)
    task = registry.add(replace(registry[name], adapter=None, sha256=None), folder, replace=True)
    rows = read_evaluation_rows(write_rows(args.work / "rows" / name / "test.jsonl", test), task)
    return evaluate(RoutedModel.from_pretrained(registry=registry), {name: rows})[0]


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    for name in args.task or sorted(BUILDERS):
        splits = BUILDERS[name](args.data)
        folder, seconds = train(name, splits, args)
        report = measure(name, folder, splits["test"], args)
        print(json.dumps(asdict(report) | {"margin": report.margin, "seconds": round(seconds)}), flush=True)
        if report.margin <= 0:
            print(f"{name}: not registered, for it does not beat the bare base", flush=True)
            continue
        registry = Registry(args.registry)
        metrics = {report.metric: round(report.own, 4)}
        card = replace(registry[name], metrics=metrics, adapter=None, sha256=None)
        registry.add(card, folder, replace=True)


if __name__ == "__main__":
    main()
