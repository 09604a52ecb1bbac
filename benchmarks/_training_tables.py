"""From measured outcomes to the tables of the training benchmarks: nothing in them is typed.

`guide_table` is the guide's benchmark table, earned: for each task a single-task adapter and the group's with the
task's on top of it, on the same budget, with the gain and where it lies. The others: value against number of examples,
all weightings with their cost, bytes of K models against one base and K adapters, seconds of one way against another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from adapterhub.evaluation import (
    BASELINE,
    REFERENCE,
    Gain,
    Mean,
    MethodSummary,
    Outcome,
    Section,
    Trace,
    ceiling_of,
    size_curve,
    summarise,
)
from benchmarks._measure import Spread
from benchmarks.report import Target

Row = dict[str, object]
NOTHING = "–"
POINTS = 4.6  # the guide's mean of eight gains


@dataclass(frozen=True)
class Sizes:
    """Bytes that were counted on disk.

    Args:
        base: Of the base model.
        adapters: Of each task's adapter folder; of a group's too, under the group's name.
    """

    base: int
    adapters: Mapping[str, int]


def guide_table(outcomes: Sequence[Outcome], method: str, baseline: str = BASELINE) -> list[Row]:
    """A row for each task, then their average; of one number of examples.

    Args:
        outcomes: Of both methods.
        method: Group and task adapters.
        baseline: The single-task adapter on the same budget.
    """
    section, found = _against(outcomes, method, baseline)
    rows: list[Row] = [_gain_row(section, gain) for gain in found.ledger.gains]
    average: Row = dict.fromkeys(rows[0], NOTHING) if rows else {}
    average |= {"task": f"average of {len({g.measure.task for g in found.ledger.gains})}"}
    if found.average is not None:
        average |= {"gain, points": _mean(found.average.value), "95 % interval": _place(found.average.interval, 1.0)}
    if found.delta is not None:
        average["Δm, %"] = f"{_mean(found.delta.value)} ({_place(found.delta.interval, 1.0)})"
    return [*rows, average]


def guide_notes(outcomes: Sequence[Outcome], method: str, baseline: str = BASELINE) -> list[str]:
    """What stands below the guide's table: the sign's convention, the kind of interval, saturated tasks, few seeds."""
    section, found = _against(outcomes, method, baseline)
    notes = list(section.notes)
    if found.delta is not None:
        notes.insert(0, f"Δm: {found.delta.convention}")
    places = [gain.interval for gain in found.ledger.gains if gain.interval is not None]
    if places:
        drawn = (
            "rows drawn again, seeds by Student's t" if places[0].kind == "student" else "rows and seeds drawn again"
        )
        notes.insert(1, f"intervals: paired bootstrap over {_seeds(places[0].seeds)} and the test rows; {drawn}")
        notes.insert(2, f"{found.ledger.by_chance:.1f} tasks are expected to be flagged as harmed by chance alone")
    return notes


def guide_targets(outcomes: Sequence[Outcome], method: str, baseline: str = BASELINE) -> list[Target]:
    """The average gain in points, and how many tasks are significantly below their baseline."""
    _, found = _against(outcomes, method, baseline)
    harmed = Target("tasks significantly below their single-task adapter", float(len(found.ledger.harmed)), 0.0)
    if found.average is None:
        return [harmed]
    return [
        Target("average gain over single-task adapters, points", found.average.value.mean, POINTS, "higher"),
        harmed,
    ]


def steps_table(outcomes: Mapping[int, Sequence[Outcome]]) -> list[Row]:
    """A row for each method and number of steps: the mean over tasks in points, and its spread over seeds.

    Args:
        outcomes: By number of steps a task.
    """
    rows: list[Row] = []
    for steps, held in sorted(outcomes.items()):
        for method in sorted({one.method for one in held}):
            mean = average_curve([one for one in held if one.method == method], method)
            rows += [{"method": method, "steps a task": steps, "mean of all, points": _mean(value, sign="")}
                     for value in mean.values()]  # fmt: skip
    return rows


def method_table(outcomes: Sequence[Outcome], baseline: str = BASELINE, reference: str = REFERENCE,
                 traces: Sequence[Trace] = (), conflict: str = "conflict") -> list[Row]:  # fmt: skip
    """All weightings side by side: Δm, mean rank, harmed tasks, rate of update conflicts, time and memory.

    Args:
        outcomes: Of one number of examples.
        baseline: The single-task results.
        reference: The plain sum, whose time and memory are 1.
        traces: Those named `conflict` are averaged over their steps, tasks and seeds.
        conflict: Name of the trace of the update-conflict rate.
    """
    section = _one(outcomes, baseline, reference)
    costs = {one.method: one for one in section.costs}
    ranks = {one.method: one.rank for one in section.ranks}
    summaries = {one.method: one for one in section.summaries}
    rates = {name: _mean_of(traces, name, conflict) for name in section.methods}
    rows: list[Row] = []
    for name in section.methods:
        found, cost = summaries.get(name), costs.get(name)
        delta = None if found is None else found.delta
        rows.append({
            "method": name,
            "Δm, %": NOTHING if delta is None else _mean(delta.value),
            "95 % interval": NOTHING if delta is None else _place(delta.interval, 1.0),
            "harmed": NOTHING if found is None else _harmed(found),
            "mean rank": f"{ranks[name]:.2f}" if name in ranks else NOTHING,
            "update conflicts": NOTHING if (rate := rates[name]) is None else f"{rate:.1%}",
            "time ÷ sum": NOTHING if cost is None or cost.seconds is None else _mean(cost.seconds, sign=""),
            "memory ÷ sum": NOTHING if cost is None or cost.peak_bytes is None else _mean(cost.peak_bytes, sign=""),
        })  # fmt: skip
    return rows


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _harmed(found: MethodSummary) -> str:
    return f"{len(found.ledger.harmed)} of {len(found.ledger.gains)}"


def examples_table(outcomes: Sequence[Outcome]) -> list[Row]:
    """Value against number of examples: a row for each task and method, then the mean over tasks in points."""
    points = size_curve(outcomes)
    sizes = sorted({one.examples for one in points})
    rows: list[Row] = []
    for measure, method in sorted({(one.measure, one.method) for one in points}):
        cells = {one.examples: str(one.value) for one in points if (one.measure, one.method) == (measure, method)}
        row: Row = {"task": measure.task, "metric": measure.metric, "method": method}
        rows.append(row | {f"{size} examples": cells.get(size, NOTHING) for size in sizes})
    for method in sorted({one.method for one in points}):
        found = average_curve(outcomes, method)
        means = {size: _mean(value, sign="") for size, value in found.items()}
        mean: Row = {"task": "mean of all", "metric": "points", "method": method}
        rows.append(mean | {f"{size} examples": means.get(size, NOTHING) for size in sizes})
    return rows


def average_curve(outcomes: Sequence[Outcome], method: str) -> dict[int, Mean]:
    """By number of examples, the mean over tasks in points; metrics without a largest value do not count.

    Only sizes at which a method was measured on all its tasks: a mean over others would not be on the same curve.
    """
    cells: dict[int, dict[int, dict[str, dict[str, float]]]] = {}
    for one in outcomes:
        ceiling = ceiling_of(one.metric)
        if one.method == method and one.examples is not None and one.left_out is None and ceiling is not None:
            seeds = cells.setdefault(one.examples, {})
            seeds.setdefault(one.seed, {}).setdefault(one.task, {})[one.metric] = 100 * one.value / ceiling
    every = {task for seeds in cells.values() for held in seeds.values() for task in held}
    whole = {size: [held for held in seeds.values() if held.keys() == every] for size, seeds in sorted(cells.items())}
    return {size: Mean.of(fmean(fmean(v.values()) for v in one.values()) for one in held)
            for size, held in whole.items() if held}  # fmt: skip


def size_table(sizes: Sizes, counts: Sequence[int]) -> list[Row]:
    """Bytes of K full models against one base and K adapters of the mean size that was counted.

    Args:
        sizes: Counted on disk.
        counts: Numbers of tasks; the count of the adapters itself is measured and not extrapolated.
    """
    total, held = sum(sizes.adapters.values()), len(sizes.adapters)
    rows: list[Row] = []
    for count in sorted({*counts, held}):
        hub = sizes.base + (total if count == held else round(count * total / held))
        rows.append({
            "tasks": count,
            "K full models, MB": f"{count * sizes.base / 1e6:,.1f}",
            "base + K adapters, MB": f"{hub / 1e6:,.1f}",
            "ratio": f"{count * sizes.base / hub:.1f}",
            "from": "files counted" if count == held else "mean adapter × K",
        })  # fmt: skip
    return rows


def speed_table(times: Mapping[str, Mapping[str, Spread]], reference: str) -> list[Row]:
    """Seconds of each way of serving under each condition, and how many times faster than the reference.

    Args:
        times: By condition (cold, warm, batch), by way of serving.
        reference: The way that is compared with: full models loaded and asked one after another.
    """
    return [
        {"case": f"{condition}: {way}", "seconds": spread,
         "faster than " + reference: times[condition][reference].median / spread.median}
        for condition, ways in times.items() for way, spread in ways.items()
    ]  # fmt: skip


def _one(outcomes: Sequence[Outcome], baseline: str, reference: str) -> Section:
    """The only section of outcomes of one number of examples."""
    sections = summarise(outcomes, baseline=baseline, reference=reference)
    if len(sections) > 1:
        raise ValueError(
            f"A table is of one number of examples. Found {[one.examples for one in sections]}. Choose one."
        )
    return sections[0]


def _against(outcomes: Sequence[Outcome], method: str, baseline: str) -> tuple[Section, MethodSummary]:
    """The two methods alone: a third one must not decide what is saturated, or which seeds are common."""
    section = _one([one for one in outcomes if one.method in (method, baseline)], baseline, REFERENCE)
    found = [one for one in section.summaries if one.method == method]
    if not found:
        raise ValueError(f"A table needs outcomes of {method!r} and {baseline!r}. Found {list(section.methods)}.")
    return section, found[0]


def _gain_row(section: Section, gain: Gain) -> Row:
    ceiling = ceiling_of(gain.measure.metric)
    scale = 100 / ceiling if ceiling else 1.0
    place = section.measures.index(gain.measure)
    transfer = gain.negative_transfer
    return {
        "task": gain.measure.task,
        "metric": f"{gain.measure.metric} {'↑' if section.better[place] == 'higher' else '↓'}",
        "single task": str(gain.baseline),
        "group + task": str(gain.method),
        "gain, points": f"{scale * gain.gain:+.2f}" + ("" if ceiling else " (units of the metric)"),
        "95 % interval": _place(gain.interval, scale),
        "Δm, %": NOTHING if transfer is None else f"{-100 * transfer:+.1f}",
        "verdict": "harmed" if gain.harmed else "helped" if gain.helped else "no difference shown",
    }


def _place(interval: object, scale: float) -> str:
    low, high = getattr(interval, "low", None), getattr(interval, "high", None)
    return NOTHING if low is None or high is None else f"{scale * low:+.2f} to {scale * high:+.2f}"


def _mean(value: Mean, sign: str = "+") -> str:
    return f"{value.mean:{sign}.2f}" + ("" if value.sd is None else f" ± {value.sd:.2f}")


def _mean_of(traces: Sequence[Trace], method: str, name: str) -> float | None:
    found = [value for one in traces if (one.method, one.name) == (method, name) for value in one.values]
    return sum(found) / len(found) if found else None


def pair_table(traces: Sequence[Trace], pair: str, tasks: Sequence[str]) -> list[Row]:
    """All weightings and optimisers on a pair of tasks, over the seeds.

    Args:
        traces: Those of the pair: `fall` of each task, `direction_conflict`, `conflict`, `step_seconds`.
        pair: Name of the pair, before its tasks.
        tasks: The two.
    """
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for one in traces:
        if one.task.split("/")[0] == pair:
            found.setdefault(one.method, {}).setdefault((one.name, one.task), {})[one.seed] = one.values[0]
    rows: list[Row] = []
    for method, held in found.items():
        _, _, optimiser = method.partition(", ")
        reference = found[f"{REFERENCE}, {optimiser}" if optimiser else REFERENCE][("step_seconds", pair)]
        costs = [value / reference[seed] for seed, value in held[("step_seconds", pair)].items()]
        row: Row = {"weighting": method}
        row |= {f"{task} falls": Spread.of(list(held[("fall", f"{pair}/{task}")].values())) for task in tasks}
        row["steps whose direction hurts a task"] = f"{median(held[('direction_conflict', pair)].values()):.0%}"
        row["steps whose update does"] = f"{median(held[('conflict', pair)].values()):.0%}"
        rows.append(row | {"time ÷ sum": Spread.of(costs)})
    return rows
