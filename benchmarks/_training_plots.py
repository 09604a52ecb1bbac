"""Learning curves, weight trajectories and accuracy against examples, from measured outcomes and traces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.evaluation import Outcome, Trace, size_curve
from benchmarks._training_tables import average_curve

COLUMNS = 4


def plot_examples(path: Path, outcomes: Sequence[Outcome]) -> None:
    """A panel for each task and one for their mean, a line with error bars (one sd) for each method."""
    points = size_curve(outcomes)
    measures = sorted({one.measure for one in points})
    methods = sorted({one.method for one in points})
    sizes = sorted({one.examples for one in points})
    figure, panels = _panels(len(measures) + 1)
    for axes, measure in zip(panels, measures, strict=False):
        for method in methods:
            held = [one for one in points if (one.measure, one.method) == (measure, method)]
            _line(axes, method, [p.examples for p in held], [p.value.mean for p in held], [p.value.sd for p in held])
        axes.set_title(f"{measure.task}\n{measure.metric}", fontsize=8, loc="left")
    for method in methods:
        curve = average_curve(outcomes, method)
        _line(panels[len(measures)], method, list(curve), [m.mean for m in curve.values()],
              [m.sd for m in curve.values()])  # fmt: skip
    panels[len(measures)].set_title("mean of all tasks, points", fontsize=8, loc="left")
    for axes in panels[: len(measures) + 1]:
        axes.set_xscale("log")
        axes.set_xticks(sizes, labels=[str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("examples of a task", fontsize=7)
    _save(path, figure, panels, len(measures) + 1)


def plot_traces(path: Path, traces: Sequence[Trace], name: str) -> None:
    """One kind of trace over the steps: learning curves by `validation_…` or `loss`, weights by `weight`.

    A panel for each method where the traces differ by task (a line for each task), else one panel with a line for each
    method; a line is the mean over seeds at the steps that all seeds have, its band their smallest and largest.
    """
    held = [one for one in traces if one.name == name]
    if not held:
        raise ValueError(f"A plot needs a trace. Found none named {name!r} among {sorted({t.name for t in traces})}.")
    by_task = name == "weight"
    panels_of = sorted({one.method if by_task else one.task for one in held})
    figure, panels = _panels(len(panels_of))
    for axes, title in zip(panels, panels_of, strict=False):
        inside = [one for one in held if (one.method if by_task else one.task) == title]
        for label in sorted({one.task if by_task else one.method for one in inside}):
            _band(axes, label, [one for one in inside if (one.task if by_task else one.method) == label])
        axes.set_title(title or name, fontsize=8, loc="left")
        axes.set_xlabel("steps", fontsize=7)
    panels[0].set_ylabel(name, fontsize=8)
    _save(path, figure, panels, len(panels_of))


def _panels(count: int) -> tuple[Any, list[Any]]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines = -(-count // COLUMNS)
    figure, found = pyplot.subplots(lines, min(count, COLUMNS), figsize=(1.5 + 3 * min(count, COLUMNS), 2.6 * lines),
                                    squeeze=False)  # fmt: skip
    return figure, list(found.ravel())


def _line(axes: Any, label: str, x: Sequence[float], y: Sequence[float], sd: Sequence[float | None]) -> None:
    if x:
        axes.errorbar(x, y, [one or 0.0 for one in sd], marker="o", ms=3, lw=1, capsize=2, label=label)


def _band(axes: Any, label: str, traces: Sequence[Trace]) -> None:
    common = sorted(set.intersection(*({*one.steps} for one in traces)))
    if not common:
        return
    values = np.array([[dict(zip(one.steps, one.values, strict=True))[step] for step in common] for one in traces])
    (line,) = axes.plot(common, values.mean(axis=0), lw=1, label=label)
    if len(values) > 1:
        axes.fill_between(common, values.min(axis=0), values.max(axis=0), alpha=0.15, color=line.get_color(), lw=0)


def _save(path: Path, figure: Any, panels: list[Any], used: int) -> None:
    from matplotlib import pyplot

    for axes in panels[used:]:
        axes.set_visible(False)
    for axes in panels[:used]:
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[min(COLUMNS, used) - 1].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
