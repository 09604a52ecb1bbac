"""The benchmark's tables and plots come from measured rows, and from these alone."""

from __future__ import annotations

import pytest
from outcome_cases import drawn, plain

from adapterhub.evaluation import Trace
from benchmarks._measure import Spread
from benchmarks._training_plots import plot_examples, plot_traces
from benchmarks._training_tables import (
    Sizes,
    average_curve,
    examples_table,
    guide_notes,
    guide_table,
    guide_targets,
    method_table,
    size_table,
    speed_table,
)
from benchmarks.report import markdown

HELD = [
    *plain("a", "single-task", [0.50, 0.50, 0.50]), *plain("a", "group+task", [0.60, 0.60, 0.60]),
    *plain("b", "single-task", [2.0, 2.0, 2.0], "mae"), *plain("b", "group+task", [3.0, 3.0, 3.0], "mae"),
    *plain("c", "single-task", [40.0, 40.0, 40.0], "bleu"), *plain("c", "group+task", [42.0, 42.0, 42.0], "bleu"),
    *plain("a", "third", [1.0, 1.0, 1.0]),
]  # fmt: skip


def test_the_guides_table_by_hand():
    rows = guide_table(HELD, "group+task")
    assert [(row["task"], row["gain, points"], row["Δm, %"], row["verdict"]) for row in rows[:3]] == [
        ("a", "+10.00", "+20.0", "helped"),
        ("b", "-1.00 (units of the metric)", "-50.0", "harmed"),
        ("c", "+2.00", "+5.0", "helped"),
    ]
    assert rows[3]["task"] == "average of 3"
    assert rows[3]["gain, points"] == "+6.00 ± 0.00"  # a and c
    assert str(rows[3]["Δm, %"]).startswith("-8.33 ± 0.00")
    assert len({tuple(row) for row in rows}) == 1
    assert markdown("q", rows, guide_targets(HELD, "group+task")).count("\n| ") == 3 + 2 + 1 + 2


def test_the_targets_are_the_average_gain_and_the_harmed_tasks():
    average, harmed = guide_targets(HELD, "group+task")
    assert (average.value, average.target, average.holds) == (pytest.approx(6.0), 4.6, True)
    assert (harmed.value, harmed.holds) == (1.0, False)
    assert any("positive is better" in note for note in guide_notes(HELD, "group+task"))


def test_every_figure_moves_with_what_was_measured():
    better = [*HELD[:3], *plain("a", "group+task", [0.75, 0.75, 0.75]), *HELD[6:]]
    assert guide_table(better, "group+task")[0]["gain, points"] == "+25.00"


def test_missing_methods_and_mixed_sizes_are_refused():
    with pytest.raises(ValueError, match="needs outcomes of 'grop'"):
        guide_table(HELD, "grop")
    mixed = [*plain("a", "single-task", [0.5], examples=1), *plain("a", "single-task", [0.5], examples=2)]
    with pytest.raises(ValueError, match=r"Found \[1, 2\]"):
        method_table(mixed)


def test_all_methods_side_by_side_with_the_plain_sum_as_one():
    held = [
        *plain("a", "single-task", [0.5] * 3, seconds=1.0), *plain("a", "sum", [0.4] * 3, seconds=2.0),
        *plain("a", "upgrad", [0.6] * 3, seconds=3.0),
    ]  # fmt: skip
    traces = [Trace("upgrad", seed, "conflict", (1, 2), (0.0, 0.5)) for seed in range(3)]
    rows = {row["method"]: row for row in method_table(held, traces=traces)}
    assert rows["upgrad"]["time ÷ sum"] == "1.50 ± 0.00"
    assert rows["upgrad"]["update conflicts"] == "25.0%"
    assert rows["upgrad"]["mean rank"] == "1.00"
    assert (rows["sum"]["time ÷ sum"], rows["sum"]["Δm, %"]) == ("1.00 ± 0.00", "-20.00 ± 0.00")


def test_the_curve_over_examples_means_tasks_in_points():
    held = [
        *plain("a", "m", [0.5, 0.5], examples=10), *plain("c", "m", [40.0, 50.0], "bleu", examples=10),
        *plain("a", "m", [0.6], examples=20),
    ]  # fmt: skip
    found = average_curve(held, "m")
    assert {size: (mean.mean, mean.seeds) for size, mean in found.items()} == {10: (pytest.approx(47.5), 2)}
    assert examples_table(held)[-1] == {
        "task": "mean of all", "metric": "points", "method": "m", "10 examples": "47.50 ± 3.54", "20 examples": "–",
    }  # fmt: skip


def test_sizes_and_speeds_are_the_counted_ones():
    rows = size_table(Sizes(1_000_000, {"a": 100_000, "b": 300_000}), [1, 10])
    assert [(row["tasks"], row["base + K adapters, MB"], row["ratio"]) for row in rows] == [
        (1, "1.2", "0.8"), (2, "1.4", "1.4"), (10, "3.0", "3.3"),
    ]  # fmt: skip
    assert rows[1]["from"] == "files counted"
    times = {"cold": {"eight models": Spread(6.0, 5.0, 7.0), "hub": Spread(2.0, 2.0, 2.0)}}
    assert [row["faster than eight models"] for row in speed_table(times, "eight models")] == [1.0, 3.0]


@pytest.mark.slow
def test_plots_are_written(tmp_path):
    held = [one for size, rate in ((20, 0.5), (80, 0.8)) for one in drawn({"a": {"m": rate}, "b": {"m": rate}}, rows=20)
            for one in plain(one.task, "m", [one.value], examples=size) if one.value]  # fmt: skip
    unique = list({(one.task, one.examples): one for one in held}.values())
    plot_examples(tmp_path / "examples.png", unique)
    traces = [Trace("famo", seed, "weight", (1, 2, 3), (0.1, 0.2, 0.3), task) for seed in range(2) for task in "ab"]
    plot_traces(tmp_path / "weights.png", traces, "weight")
    plot_traces(tmp_path / "loss.png", [Trace("sum", 0, "loss", (1, 2), (2.0, 1.0), "a")], "loss")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError, match="none named 'los'"):
        plot_traces(tmp_path / "x.png", traces, "los")
