"""What every benchmark shares: its arguments, repeated measurement, and the files that it leaves in `results/`."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
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


def save(name: str, question: str, rows: list[dict[str, object]], targets: list[Target], bars: Sequence[str]) -> None:
    """Write `results/NAME.json` and the table and the plot made from it, and print the table.

    The plot has a group of bars for each row, labelled by its first column, one bar for each of the columns `bars`.
    """
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
    plot(RESULTS / f"{name}.png", question, rows, bars)
    print(table)


def plot(path: Path, question: str, rows: list[dict[str, object]], bars: Sequence[str]) -> None:
    """Horizontal bars, the first row on top."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    height = 0.8 / len(bars)
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.25 * len(rows) * (1 + len(bars) / 2)))
    for number, column in enumerate(bars):
        places = [row + (number - (len(bars) - 1) / 2) * height for row in range(len(rows))]
        drawn = axes.barh(places, [float(str(row[column])) for row in rows], height=height, label=column)
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    axes.set_yticks(range(len(rows)), [str(next(iter(row.values()))) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(question, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1)) if len(
        bars
    ) > 1 else axes.set_xlabel(bars[0])
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


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
