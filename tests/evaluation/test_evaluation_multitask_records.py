"""Outcomes as values and as JSON lines, curves, costs, and the tables made from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcome_cases import drawn, plain

from adapterhub.errors import DataError, InputError
from adapterhub.evaluation import (
    Measure,
    Outcome,
    OutcomeTable,
    Trace,
    as_markdown,
    better_of,
    cost_ratios,
    final_values,
    read_records,
    section_sheets,
    size_curve,
    size_sheet,
    steps_sheet,
    steps_to_target,
    summarise,
    train_test_gaps,
    write_records,
)

NAMES = st.text(min_size=1, max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(NAMES, NAMES, st.integers(-5, 5), st.lists(NUMBERS, min_size=1, max_size=5), st.none() | NUMBERS)
def test_records_are_the_same_after_writing_and_reading(
    tmp_path_factory, task: str, method: str, seed: int, rows: list[float], train: float | None
):
    path = tmp_path_factory.mktemp("runs") / "a.jsonl"
    held = [
        Outcome(task, method, seed, "loss", math.fsum(rows) / len(rows), tuple(rows), train_value=train, examples=3),
        Outcome(task, method, seed, "words", 1.0, better="higher", left_out=task, seconds=0.5, peak_bytes=7, steps=2),
        Trace(method, seed, "weight", (0, 10), (0.5, 1.0), task),
    ]
    write_records(path, held[:1])
    write_records(path, held[1:], append=True)
    assert read_records([path]) == held
    write_records(path, held)
    assert read_records([path]) == held
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]


def test_every_bad_line_is_named(tmp_path: Path):
    good = {"record": "outcome", "task": "a", "method": "m", "seed": 0, "metric": "accuracy", "value": 0.5}
    lines = [
        json.dumps(good), "", "{", "[1]", json.dumps(good | {"vlaue": 1}), json.dumps(good | {"value": 93.0}),
        json.dumps(good | {"record": "x"}), json.dumps({"task": "a"}), json.dumps(good | {"per_row": ["x"]}),
        json.dumps(good | {"value": float("nan")}), json.dumps(good | {"per_row": [1, 1]}),
        json.dumps(good | {"seed": "0"}), json.dumps(good | {"per_row": 3}), json.dumps(good | {"value": "x"}),
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_records([path, tmp_path / "b.jsonl"])
    said = str(error.value).splitlines()
    assert len(said) == len(lines) - 2 + 1
    for place, text in zip(range(3, 15), said, strict=False):
        assert text.startswith(f"{path}:{place}: "), text
    assert "unknown field `vlaue`. Did you mean `value`?" in said[2]
    assert "at most 1. Found 93" in said[3]
    assert "Found 1 and 0.5" in said[8]
    assert "b.jsonl: no such file" in said[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"per_row": ()}, "at least one number"),
        ({"per_row": (0.5,), "per_row_weight": (1.0, 1.0)}, "Found 1 and 2"),
        ({"per_row_weight": (1.0,)}, "goes with `per_row`"),
        ({"per_row": (math.inf,)}, "finite"),
        ({"per_row": (0.5,), "per_row_weight": (-1.0,)}, "not negative"),
        ({"seconds": math.nan}, "`seconds` is a finite number"),
        ({"better": "more"}, '"higher" or "lower"'),
        ({"steps": 1.5}, "whole number"),
    ],
)
def test_an_outcome_that_cannot_be_is_refused(more: dict, said: str):
    with pytest.raises(InputError, match=said):
        Outcome("a", "m", 0, "accuracy", 0.5, **more)


def test_the_direction_is_known_or_asked_for():
    assert [better_of(name) for name in ("accuracy", "validation_mae", "test_loss")] == ["higher", "lower", "lower"]
    with pytest.raises(InputError, match="Did you mean `accuracy`"):
        better_of("acuracy")


def test_no_entity_anywhere_is_a_value_of_zero():
    assert Outcome("a", "m", 0, "entity_f1", 0.0, (0.0, 0.0), (0.0, 0.0)).value == 0


@pytest.mark.parametrize(("steps", "values"), [((0, 1), (0.5,)), ((), ()), ((1, 1), (0.5, 0.5)), ((0,), (math.nan,))])
def test_a_trace_that_cannot_be_is_refused(steps: tuple, values: tuple):
    with pytest.raises(InputError, match="trace `loss`"):
        Trace("m", 0, "loss", steps, values)


def test_steps_to_target_by_hand():
    traces = [
        Trace("sum", 0, "validation_accuracy", (10, 20, 30), (0.4, 0.7, 0.6), "a"),
        Trace("sum", 1, "validation_accuracy", (10, 20, 30), (0.7, 0.7, 0.7), "a"),
        Trace("sum", 2, "validation_accuracy", (10, 20, 30), (0.1, 0.2, 0.3), "a"),
        Trace("famo", 0, "validation_accuracy", (10,), (0.1,), "a"),
        Trace("sum", 0, "weight", (10,), (9.0,), "a"),
    ]
    assert final_values(traces, "validation_accuracy", "sum") == {"a": pytest.approx(1.6 / 3)}
    slow, found = steps_to_target(traces, "validation_accuracy", {"a": 0.7})
    assert (found.method, found.median, found.reached, found.runs) == ("sum", 20, 2, 3)
    assert (slow.method, slow.median, slow.reached) == ("famo", None, 0)
    assert "| a | sum | 0.700 | 20 | 2 of 3 |" in as_markdown([steps_sheet([found])])


def test_less_loss_reaches_a_target_from_above():
    trace = Trace("sum", 0, "validation_loss", (1, 2, 3), (3.0, 2.0, 1.0), "a")
    assert steps_to_target([trace], "validation_loss", {"a": 2.0})[0].median == 2


def test_cost_ratios_add_time_over_tasks_and_take_the_largest_memory():
    def runs(method: str, times: list[float], memory: int) -> list[Outcome]:
        return [
            Outcome(task, method, seed, metric, 0.5, seconds=seconds + seed, peak_bytes=memory)
            for task, seconds in zip("ab", times, strict=True)
            for seed in range(2)
            for metric in ("accuracy", "macro_f1")
        ]

    held = [*runs("sum", [1.0, 1.0], 100), *runs("slow", [2.0, 4.0], 150), *plain("a", "part", [0.5], seconds=9.0)]
    found = {one.method: one for one in cost_ratios(OutcomeTable(held))}
    # seed 0: (2 + 4) / (1 + 1) = 3; seed 1: (3 + 5) / (2 + 2) = 2
    assert (found["slow"].seconds.mean, found["slow"].peak_bytes.mean) == (pytest.approx(2.5), pytest.approx(1.5))
    assert found["sum"].seconds.mean == 1.0
    assert "part" not in found
    with pytest.raises(InputError, match=r"Found 'sums'\. Did you mean `sum`"):
        cost_ratios(OutcomeTable(held), "sums")


def test_costs_that_were_not_measured_are_no_figure():
    held = [*plain("a", "sum", [0.5]), *plain("a", "x", [0.5], seconds=3.0)]
    assert all(one.seconds is None for one in cost_ratios(OutcomeTable(held)))


def test_the_train_test_gap_has_the_sign_of_the_metric():
    held = [
        *plain("a", "m", [0.5, 0.7], train_value=0.9),
        *plain("b", "m", [2.0, 4.0], "mae", train_value=1.0),
        *plain("c", "m", [0.5]),
    ]
    found = {one.measure.task: one.gap.mean for one in train_test_gaps(OutcomeTable(held))}
    assert found == {"a": pytest.approx(0.3), "b": pytest.approx(2.0)}


def test_sizes_are_sections_of_their_own_and_one_curve():
    held = [
        one
        for size, values in ((25, [0.5, 0.5, 0.5]), (100, [0.7, 0.7, 0.7]))
        for method, more in (("single-task", 0.0), ("group", 0.1))
        for one in plain("a", method, [value + more for value in values], examples=size)
    ]
    sections = summarise(held)
    assert [(one.examples, one.summaries[0].delta.value.mean) for one in sections] == [
        (25, pytest.approx(20.0)), (100, pytest.approx(100 / 7)),
    ]  # fmt: skip
    points = size_curve(held)
    assert [(one.method, one.examples, one.value.mean) for one in points if one.method == "group"] == [
        ("group", 25, pytest.approx(0.6)), ("group", 100, pytest.approx(0.8)),
    ]  # fmt: skip
    assert "| a | accuracy | group | 0.600 ± 0.000 | 0.800 ± 0.000 |" in as_markdown([size_sheet(points)])


def test_tasks_of_different_sizes_stay_together():
    held = [*plain("a", "x", [0.5], examples=25), *plain("b", "x", [0.5], examples=80)]
    assert [one.measures for one in summarise(held)] == [(Measure("a", "accuracy"), Measure("b", "accuracy"))]


def test_the_tables_hold_what_was_measured_and_every_row_has_all_columns():
    held = drawn(
        {"a": {"single-task": 0.9, "group": 0.5, "sum": 0.9}, "b": {"single-task": 0.5, "group": 0.9, "sum": 0.5}}
    )
    held += plain("a", "group", [0.3] * 3, left_out="b")
    sheets = section_sheets(summarise(held)[0])
    assert all(len(row) == len(sheet.columns) for sheet in sheets for row in sheet.rows)
    assert [sheet.title.split(":")[0].split(" ")[0] for sheet in sheets] == ["per", "methods", "ledger", "leave"]
    text = as_markdown(sheets)
    mean = OutcomeTable([one for one in held if one.left_out is None]).mean(Measure("a", "accuracy"), "group")
    assert f"{mean.mean:.3f} ± {mean.sd:.3f}" in text
    assert "positive is better" in text
    ledger = next(sheet for sheet in sheets if sheet.title.startswith("ledger"))
    assert [(row[0], row[1]) for row in ledger.rows if row[-1] == "harmed"] == [("group", "a")]


def test_without_the_baseline_the_means_are_shown_and_it_is_said():
    section = summarise(plain("a", "x", [0.5] * 3))[0]
    assert section.summaries == ()
    assert any("no outcome of the baseline" in note for note in section.notes)
    assert "0.500 ± 0.000" in as_markdown(section_sheets(section))
    with pytest.raises(InputError, match="at least one outcome"):
        summarise([])
