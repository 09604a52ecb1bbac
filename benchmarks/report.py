"""What every benchmark shares: its arguments, its targets, and the files that it leaves in `results/`."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks._measure import Spread

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "numpy")
STARTED = os.getloadavg()  # before this process made any load of its own


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
    """The command line; `peer_env` maps the name of a peer to the Python of its own environment."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--full", action="store_true", help="everything, not only what fits into a minute")
    parser.add_argument("--data", type=Path, help="folder of task data")
    parser.add_argument("--cache", type=Path, help="folder that keeps encodings between runs; by default none does")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write to; by default the committed one"
    )
    parser.add_argument(
        "--peer-env", action="append", default=[], metavar="NAME=PYTHON",
        help="also measure a peer that has an environment of its own: adapters or vllm; may be repeated",
    )  # fmt: skip
    found = parser.parse_args()
    pairs = [text.partition("=") for text in found.peer_env]
    wrong = [name for name, _, python in pairs if not python]
    if wrong:
        parser.error(f"--peer-env should be NAME=PYTHON. Found {', '.join(wrong)}.")
    found.peer_env = {name: python for name, _, python in pairs}
    return found


def has_data(name: str, args: argparse.Namespace) -> bool:
    """Whether there is a folder of task data; if not, that is said.

    Args:
        name: Of the benchmark.
        args: Of its command line.
    """
    if args.data is None:
        print(f"benchmarks.{name} needs a folder of task data: --data DIR. Nothing was measured.")
    return args.data is not None


def save(
    name: str,
    question: str,
    rows: list[dict[str, object]],
    targets: list[Target],
    bars: Sequence[str],
    *,
    folder: Path,
    versions: Mapping[str, str] | None = None,
    measured: Mapping[str, float] | None = None,
    tables: Mapping[str, list[dict[str, object]]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `NAME.json` and the table and the plot made from it, and print the table.

    The plot has a group of bars for each row, labelled by its first column, one bar for each of the columns `bars`;
    without columns there is none.

    Args:
        name: Of the files.
        question: What the benchmark asks.
        rows: Of the table, all with the same columns: texts, numbers, and `Spread` of repeated figures.
        targets: What was promised.
        bars: Columns that are drawn; what is not a number is left out.
        folder: Where to write.
        versions: Versions of peers from other environments.
        measured: The machine's limits, measured in the same run.
        tables: Further tables by title.
        notes: What stands below the first table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "question": question,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "measured": dict(measured or {}),
        "versions": {package: version(package) for package in PACKAGES} | dict(versions or {}),
        "commit": _commit(),
        "load": {"before": _rounded(STARTED), "after": _rounded(os.getloadavg())},
        "rows": _plain_rows(rows),
        **({"tables": {title: _plain_rows(found) for title, found in tables.items()}} if tables else {}),
        **({"notes": list(notes)} if notes else {}),
        "targets": [asdict(target) | {"holds": target.holds} for target in targets],
    }
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = markdown(question, rows, targets, tables or {}, notes)
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    if bars:
        plot(folder / f"{name}.png", question, rows, bars)
    print(table)


def plot(path: Path, question: str, rows: list[dict[str, object]], bars: Sequence[str]) -> None:
    """Horizontal bars, the first row on top; lines show the spread."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    height = 0.8 / len(bars)
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.25 * len(rows) * (1 + len(bars) / 2)))
    for number, column in enumerate(bars):
        shift = (number - (len(bars) - 1) / 2) * height
        drawn = [(place + shift, _spread(row[column])) for place, row in enumerate(rows)]
        places = [(place, spread) for place, spread in drawn if spread is not None]
        values = [spread.median for _, spread in places]
        ends = [[s.median - s.min for _, s in places], [s.max - s.median for _, s in places]]
        found = axes.barh([place for place, _ in places], values, height, xerr=ends, label=column,
                          error_kw={"lw": 0.7})  # fmt: skip
        axes.bar_label(found, labels=[f"{value:.2f}" for value in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [str(next(iter(row.values()))) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(question, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if len(bars) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.set_xlabel(bars[0])
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def markdown(
    question: str,
    rows: list[dict[str, object]],
    targets: list[Target],
    tables: Mapping[str, list[dict[str, object]]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The rows as a table with its notes, then the targets, then further tables by title."""
    lines = [f"# {question}", "", *_table(rows)]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    lines += ["", "| target | value | bound | holds |", "|---|---|---|---|"] if targets else []
    for t in targets:
        bound = f"{'≤' if t.better == 'lower' else '≥'} {t.target:g}"
        lines.append(f"| {t.name} | {t.value:.3f} | {bound} | {'yes' if t.holds else '**no**'} |")
    for title, found in (tables or {}).items():
        lines += ["", f"## {title}", "", *_table(found)]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, object]]) -> list[str]:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]


def _cell(value: object) -> str:
    if isinstance(value, Spread):
        return f"{_figure(value.median)} ({_figure(value.min)}–{_figure(value.max)})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    """Two decimals, and none where they say nothing."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _plain_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{column: _plain(value) for column, value in row.items()} for row in rows]


def _plain(value: object) -> object:
    return asdict(value) if isinstance(value, Spread) else value


def _spread(value: object) -> Spread | None:
    if isinstance(value, int | float):
        return Spread(value, value, value)
    return value if isinstance(value, Spread) else None


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
