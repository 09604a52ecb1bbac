"""Δm, gains, ranks and the ledger against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome_cases import drawn, plain

from adapterhub.errors import InputError
from adapterhub.evaluation import (
    Measure,
    Outcome,
    OutcomeTable,
    average_gain,
    delta_m,
    gain,
    influences,
    ledger,
    mean_rank,
    saturated,
    summarise,
)

A, B, SIZE = Measure("a", "accuracy"), Measure("b", "accuracy"), Measure("size", "mae")

BY_HAND = [
    *plain("a", "single-task", [0.5, 0.5, 0.5]),
    *plain("a", "group", [0.6, 0.55, 0.5]),  # mean .55: +10 %
    *plain("size", "single-task", [2.0, 2.0, 2.0], "mae"),
    *plain("size", "group", [2.0, 2.5, 3.0], "mae"),  # mean 2.5: 25 % worse
    *plain("size", "single-task", [0.8, 0.8, 0.8], "pearson"),
    *plain("size", "group", [0.8, 0.8, 0.92], "pearson"),  # mean .84: +5 %
]


def test_delta_m_by_hand():
    found = delta_m(OutcomeTable(BY_HAND), "group", "single-task")
    # task a: +10 %; task size: (-25 + 5) / 2 = -10 %; mean 0
    assert found.value.mean == pytest.approx(0.0, abs=1e-9)
    # seeds: a +20, +10, 0; size (0 + 0)/2, (-25 + 0)/2, (-50 + 15)/2 -> means 10, -1.25, -8.75
    assert found.value.sd == pytest.approx(math.sqrt((10**2 + 1.25**2 + 8.75**2) / 2))
    assert found.tasks == 2
    assert "positive is better" in str(found)


def test_a_drop_is_the_same_number_with_the_other_sign_and_says_so():
    table = OutcomeTable([one for one in BY_HAND if one.task == "a"])
    up, down = delta_m(table, "group", "single-task"), delta_m(table, "group", "single-task", drop=True)
    assert (up.value.mean, down.value.mean) == (pytest.approx(10.0), pytest.approx(-10.0))
    assert up.interval is not None
    assert down.interval is not None
    assert down.interval.low == pytest.approx(-up.interval.high, rel=0.1)
    assert "as a drop: lower is better" in str(down)


def test_a_method_against_itself_is_zero():
    table = OutcomeTable(BY_HAND)
    assert delta_m(table, "group", "group").value.mean == 0.0
    assert gain(table, A, "group", "group").interval.low == 0.0


@pytest.mark.parametrize("value", [0.0, -0.2])
def test_a_baseline_that_is_not_above_zero_is_refused_by_name(value: float):
    table = OutcomeTable([*plain("a", "single-task", [value] * 3, "mcc"), *plain("a", "group", [0.4] * 3, "mcc")])
    with pytest.raises(InputError, match="Found 0 or less for a mcc"):
        delta_m(table, "group", "single-task")
    assert ledger(table, "group", "single-task").gains[0].negative_transfer is None


def test_a_saturated_task_is_left_out_and_noted_but_stays_in_the_ledger():
    full = [*plain("b", "single-task", [1.0, 1.0, 0.99]), *plain("b", "group", [1.0, 1.0, 1.0])]
    held = [one for one in BY_HAND if one.task == "a"] + full
    table = OutcomeTable(held)
    assert saturated(table, table.methods) == (B,)
    found = delta_m(table, "group", "single-task", leave_out=(B,))
    assert (found.value.mean, found.tasks, found.left_out) == (pytest.approx(10.0), 1, (B,))
    section = summarise(held)[0]
    assert section.saturated == (B,)
    assert any("saturated" in note and "b accuracy" in note for note in section.notes)
    assert [one.measure for one in section.summaries[0].ledger.gains] == [A, B]


def test_a_task_that_only_one_method_solves_is_not_saturated():
    held = [*plain("b", "single-task", [1.0] * 3), *plain("b", "group", [0.8] * 3)]
    table = OutcomeTable(held)
    assert saturated(table, table.methods) == ()
    assert ledger(table, "group", "single-task").harmed == (B,)


def test_average_gain_is_in_points_and_leaves_out_what_has_no_largest_value():
    held = [*BY_HAND, *plain("t", "single-task", [20.0] * 3, "bleu"), *plain("t", "group", [26.0] * 3, "bleu")]
    found = average_gain(OutcomeTable(held), "group", "single-task")
    # a: 5 points, size: pearson 4 points, t: 6 of 100
    assert found.value.mean == pytest.approx((5 + 4 + 6) / 3)
    assert (found.tasks, found.left_out) == (3, (SIZE,))


def test_gain_and_negative_transfer_have_the_sign_of_the_metric():
    table = OutcomeTable(BY_HAND)
    better, worse = (gain(table, one, "group", "single-task") for one in (A, SIZE))
    assert (better.gain, better.negative_transfer) == (pytest.approx(0.05), pytest.approx(-0.1))
    assert (worse.gain, worse.negative_transfer) == (pytest.approx(-0.5), pytest.approx(0.25))


def test_mean_rank_averages_ties_and_counts_a_task_once():
    held = [
        *plain("a", "x", [0.9]), *plain("a", "y", [0.9]), *plain("a", "z", [0.5]),  # 1.5, 1.5, 3
        *plain("b", "x", [1.0], "mae"), *plain("b", "y", [2.0], "mae"), *plain("b", "z", [3.0], "mae"),  # 1, 2, 3
        *plain("b", "x", [0.1], "pearson"), *plain("b", "y", [0.2], "pearson"), *plain("b", "z", [0.3], "pearson"),
    ]  # fmt: skip
    found = {one.method: one.rank for one in mean_rank(OutcomeTable(held))}
    assert found == {"x": (1.5 + 2.0) / 2, "y": (1.5 + 2.0) / 2, "z": (3 + 2.0) / 2}


def test_ranks_want_every_method_on_every_task():
    held = [*plain("a", "x", [0.9]), *plain("a", "y", [0.9]), *plain("b", "x", [0.5])]
    with pytest.raises(InputError, match="y lacks b accuracy"):
        mean_rank(OutcomeTable(held))


def test_the_ledger_flags_the_planted_harm_and_no_harmless_task():
    held = drawn({
        "harmed": {"single-task": 0.8, "group": 0.6},
        "level": {"single-task": 0.8, "group": 0.8},
        "helped": {"single-task": 0.6, "group": 0.8},
    })  # fmt: skip
    found = ledger(OutcomeTable(held), "group", "single-task")
    assert [one.task for one in found.harmed] == ["harmed"]
    assert [one.task for one in found.helped] == ["helped"]
    assert found.by_chance == pytest.approx(3 * 0.025)


def test_the_ledger_names_what_a_method_lacks():
    held = [*plain("a", "single-task", [0.5] * 3), *plain("b", "single-task", [0.5] * 3), *plain("a", "g", [0.5] * 3)]
    found = ledger(OutcomeTable(held), "g", "single-task")
    assert found.missing == (B,)
    with pytest.raises(InputError, match="g lacks b accuracy"):
        delta_m(OutcomeTable(held), "g", "single-task")


def test_leaving_a_task_out_tells_its_influence():
    every = [*plain("a", "group", [0.7, 0.7, 0.7]), *plain("b", "group", [0.6, 0.6, 0.6])]
    without = [
        *plain("a", "group", [0.65, 0.65, 0.65], left_out="b"),  # b's data gave a 5 points
        *plain("b", "group", [0.3, 0.3, 0.3], left_out="b"),  # and itself 30
    ]
    found = influences([*every, *without], "group")
    assert [(one.left_out, one.gain.measure.task, one.unseen) for one in found] == [("b", "a", False), ("b", "b", True)]
    assert [one.gain.gain for one in found] == [pytest.approx(0.05), pytest.approx(0.3)]
    with pytest.raises(InputError, match="Found none of group"):
        influences(without, "group")


def test_few_seeds_are_said():
    assert "1 seed, at least 3" in OutcomeTable(plain("a", "x", [0.5])).mean(A, "x").note
    assert OutcomeTable(plain("a", "x", [0.5] * 3)).mean(A, "x").note == ""
    assert any("at least 3 seeds" in note for note in summarise(plain("a", "x", [0.5, 0.6]))[0].notes)


def test_methods_are_paired_by_their_common_seeds():
    held = [*plain("a", "single-task", [0.5, 0.6, 0.9]), *plain("a", "group", [0.6, 0.7])]
    found = gain(OutcomeTable(held), A, "group", "single-task")
    assert (found.gain, found.baseline.seeds) == (pytest.approx(0.1), 2)
    apart = [*plain("a", "single-task", [0.5]), replace(plain("a", "group", [0.5])[0], seed=7)]
    with pytest.raises(InputError, match="same seeds"):
        gain(OutcomeTable(apart), A, "group", "single-task")


def test_other_test_rows_are_refused():
    held = [
        Outcome("a", "single-task", 0, "accuracy", 1.0, (1.0, 1.0)),
        Outcome("a", "group", 0, "accuracy", 1.0, (1.0, 1.0, 1.0)),
    ]
    with pytest.raises(InputError, match="Found 2 and 3 for a accuracy, seed 0"):
        gain(OutcomeTable(held), A, "group", "single-task")


def test_a_measure_twice_and_an_unknown_method_are_refused():
    with pytest.raises(InputError, match="two outcomes of a under x, seed 0"):
        OutcomeTable(plain("a", "x", [0.5]) * 2)
    with pytest.raises(InputError, match="Did you mean `single-task`"):
        delta_m(OutcomeTable(BY_HAND), "group", "single-tsk")


CASE = drawn(
    {"a": {"single-task": 0.7, "group": 0.6, "sum": 0.7}, "b": {"single-task": 0.5, "group": 0.6, "sum": 0.5}}, rows=40
)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(CASE))), st.permutations(range(40)))
def test_the_order_of_outcomes_and_rows_changes_nothing(order: list[int], rows: list[int]):
    def shuffled(one: Outcome) -> Outcome:
        return replace(one, per_row=tuple(one.per_row[row] for row in rows))

    assert summarise([shuffled(CASE[place]) for place in order]) == summarise(CASE)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0.1, 10))
def test_delta_m_has_no_units_and_equals_the_formula(pairs: list[tuple[float, float]], factor: float):
    def table(scale: float) -> OutcomeTable:
        held = [plain(f"t{i}", "s", [scale * b], "loss") + plain(f"t{i}", "m", [scale * n], "loss")
                for i, (b, n) in enumerate(pairs)]  # fmt: skip
        return OutcomeTable([one for both in held for one in both])

    by_hand = 100 * sum(-(n - b) / b for b, n in pairs) / len(pairs)
    assert delta_m(table(1), "m", "s").value.mean == pytest.approx(by_hand, abs=1e-6)
    assert delta_m(table(factor), "m", "s").value.mean == pytest.approx(by_hand, abs=1e-6)
