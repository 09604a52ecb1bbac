"""What every benchmark shares: its arguments, repeated measurement, and the files that it leaves in `results/`."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Target:
    """A figure that was promised: `better` is `lower` or `higher`."""

    name: str
    value: float
    target: float
    better: str = "lower"

    @property
    def holds(self) -> bool:
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


def arguments(question: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--full", action="store_true", help="everything, not only what fits into a minute")
    parser.add_argument("--data", type=Path, help="folder of task data")
    return parser.parse_args()


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Process CPU milliseconds of each case: all cases in turn, `repeats` times; median, minimum and maximum."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(repeats):
        for name, run in cases.items():
            begin = time.process_time()
            run()
            times[name].append(1000 * (time.process_time() - begin))
    return {
        name: {"median_ms": statistics.median(found), "min_ms": min(found), "max_ms": max(found)}
        for name, found in times.items()
    }


def save(name: str, question: str, rows: list[dict[str, object]], targets: list[Target]) -> None:
    """Write `results/NAME.json` and the table made from it, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    found = {
        "question": question,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in PACKAGES},
        "commit": _commit(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "rows": rows,
        "targets": [asdict(target) | {"holds": target.holds} for target in targets],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = markdown(question, rows, targets)
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


def markdown(question: str, rows: list[dict[str, object]], targets: list[Target]) -> str:
    """The rows as a table, then the targets."""
    heads = list(rows[0])
    lines = [f"# {question}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    lines += ["", "| target | value | bound | holds |", "|---|---|---|---|"] if targets else []
    for t in targets:
        bound = f"{'≤' if t.better == 'lower' else '≥'} {t.target:g}"
        lines.append(f"| {t.name} | {t.value:.3f} | {bound} | {'yes' if t.holds else '**no**'} |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
