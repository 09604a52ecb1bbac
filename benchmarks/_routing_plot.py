"""Accuracy against the number of examples, a line for each method."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks._routing_data import BARE, BEHIND, MIXED

Row = dict[str, object]


def examples(wording: str, count: int) -> str:
    """How the rows of a wording and a size of support begin."""
    begin = f"{count} example{'' if count == 1 else 's'}"
    return begin if wording == BARE else f"{wording}, {begin}"


def plot(path: Path, rows: Sequence[Row], counts: Sequence[int]) -> None:
    """One panel for each wording that was measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    values = {str(row["case"]): row["top-1"] for row in rows}
    panels = [(title, lines) for title in (BARE, BEHIND, MIXED) if (lines := _lines(values, title, counts))]
    figure, found = pyplot.subplots(1, len(panels), figsize=(1.5 + 4.5 * len(panels), 4), sharey=True, squeeze=False)
    for axes, (title, lines) in zip(found[0], panels, strict=True):
        for method, points in lines.items():
            places = [counts[::-1].index(count) for count, _ in points]
            axes.plot(places, [value for _, value in points], marker="o", ms=3, label=method,
                      lw=2.5 if method == "router" else 1)  # fmt: skip
        axes.set_xticks(range(len(counts)), [str(count) for count in counts[::-1]])
        axes.set_xlabel("examples of a task")
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    found[0][0].set_ylabel("top-1")
    found[0][0].set_ylim(bottom=0)
    found[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _lines(values: dict[str, object], wording: str, counts: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
    """By method, (examples, top-1) of one wording."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for count in counts:
        begin = f"{examples(wording, count)}: "
        for case, value in values.items():
            if case.startswith(begin) and isinstance(value, float):
                lines.setdefault(case.removeprefix(begin), []).append((count, value))
    return lines
