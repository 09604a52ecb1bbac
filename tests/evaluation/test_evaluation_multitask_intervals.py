"""Intervals: against a slow reference, and whether they hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from outcome_cases import drawn, plain

from adapterhub.errors import InputError
from adapterhub.evaluation import Interval, Measure, Outcome, OutcomeTable, gain, interval, pair, row_scores, score
from adapterhub.evaluation import delta_m as measured_delta

A = Measure("a", "accuracy")


def difference(base, other):
    return (other - base)[0]


def held(values: np.ndarray, method: str, metric: str = "loss") -> list[Outcome]:
    """Outcomes of (seeds, rows) numbers."""
    return [Outcome("a", method, s, metric, float(row.mean()), tuple(row.tolist())) for s, row in enumerate(values)]


def test_rows_of_one_seed_agree_with_a_loop():
    random = np.random.default_rng(0)
    base, other = random.random((2, 1, 60))
    found = interval([pair(held(base, "s"), held(other, "m"))], difference, replicates=20_000)
    means = [float((other - base)[0][random.integers(60, size=60)].mean()) for _ in range(20_000)]
    low, high = np.quantile(means, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))
    assert (found.seeds, found.rows) == (1, 60)


def test_percentiles_over_seeds_and_rows_agree_with_a_loop():
    random = np.random.default_rng(1)
    base = random.random((4, 50))
    other = base + 0.1 * random.standard_normal((4, 1)) + 0.2 * random.standard_normal((1, 50))
    found = interval([pair(held(base, "s"), held(other, "m"))], difference, kind="percentile", replicates=8000)
    apart = other - base
    means = [apart[random.integers(4, size=4)][:, random.integers(50, size=50)].mean() for _ in range(8000)]
    low, high = np.quantile(means, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_seeds_alone_are_students_t():
    values = [0.50, 0.53, 0.59]
    found = gain(OutcomeTable([*plain("a", "s", [0.5] * 3), *plain("a", "m", values)]), A, "m", "s")
    half = 4.3027 * np.std(values, ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    centre = np.mean(values) - 0.5
    assert (found.interval.low, found.interval.high) == (
        pytest.approx(centre - half, abs=0.01),
        pytest.approx(centre + half, abs=0.01),
    )
    assert found.interval.rows == 0


def test_one_seed_without_rows_has_no_interval():
    assert gain(OutcomeTable([*plain("a", "s", [0.5]), *plain("a", "m", [0.6])]), A, "m", "s").interval is None


def test_a_wider_promise_is_a_wider_interval():
    table = OutcomeTable(drawn({"a": {"s": 0.7, "m": 0.75}}))
    small, large = (gain(table, A, "m", "s", level=level).interval for level in (0.8, 0.99))
    assert large.low < small.low < small.high < large.high
    with pytest.raises(InputError, match="between 0 and 1"):
        gain(table, A, "m", "s", level=95)


def test_pairing_uses_that_rows_are_hard_for_everyone():
    random = np.random.default_rng(2)
    base = random.random((3, 100))
    paired = interval([pair(held(base, "s"), held(base + 0.01, "m"))], difference)
    mixed = np.array([random.permutation(row) for row in base])
    apart = interval([pair(held(base, "s"), held(mixed + 0.01, "m"))], difference)
    assert paired.high - paired.low < 1e-9 < 0.02 < apart.high - apart.low


def test_seeds_with_test_rows_of_their_own_are_drawn_for_themselves():
    random = np.random.default_rng(3)
    sizes = (40, 50, 60)

    def runs(method: str, more: float) -> list[Outcome]:
        rows = [random.random(size) + more for size in sizes]
        return [Outcome("a", method, s, "loss", float(r.mean()), tuple(r.tolist())) for s, r in enumerate(rows)]

    found = interval([pair(runs("s", 0.0), runs("m", 0.5))], difference)
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.5


def test_f1_is_drawn_as_a_ratio_of_sums_and_its_rows_give_the_metric():
    right = [["B-X", "O", "B-Y"], ["O", "O"], ["B-X", "I-X"]] * 10
    told = [["B-X", "O", "O"], ["B-Y", "O"], ["B-X", "O"]] * 10
    rows, weights = row_scores("token-classification", told, right)
    value = score("token-classification", told, right, ["O", "B-X", "I-X", "B-Y"])["entity_f1"]
    assert sum(rows) / sum(weights) == pytest.approx(value)
    one = Outcome("a", "s", 0, "entity_f1", value, rows, weights)
    best = row_scores("token-classification", right, right)
    other = Outcome("a", "m", 0, "entity_f1", 1.0, *best)
    found = interval([pair([one], [other])], difference)
    assert found.low < 1 - value < found.high
    assert found.high <= 1


@pytest.mark.parametrize(
    ("head", "told", "right", "metric"),
    [
        ("classification", ["x", "y", "x"], ["x", "x", "x"], "accuracy"),
        ("regression", [1.0, 2.5], [1.5, 2.0], "mae"),
        ("generation", ["a  b", "c"], [["a b"], "d"], "exact_match"),
    ],
)
def test_rows_give_the_main_metric(head: str, told: list, right: list, metric: str):
    rows, weights = row_scores(head, told, right)
    assert sum(rows) / sum(weights) == pytest.approx(score(head, told, right)[metric])


def test_rows_give_the_f1_of_words_and_no_metric_that_has_no_rows():
    told, right = ["The red car", "dog", "x"], [["a red bus", "green"], "cat", "X!"]
    rows, weights = row_scores("generation", told, right, "f1")
    assert rows == (0.5, 0.0, 1.0)
    assert sum(rows) / sum(weights) == pytest.approx(score("generation", told, right)["f1"])
    with pytest.raises(InputError, match=r"Rows of a generation head add up to exact_match or f1. Found 'bleu'"):
        row_scores("generation", told, right, "bleu")


def coverage(kind: str, seeds: int, sa: float, sb: float, se: float, runs: int = 300) -> float:
    """Share of intervals that hold the true gain, which is 0: seeds, rows and both of them vary."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(runs):
        apart = sa * random.standard_normal((seeds, 1)) + sb * random.standard_normal((1, 80))
        apart = apart + se * random.standard_normal((seeds, 80))
        one = pair(held(np.zeros_like(apart), "s"), held(apart, "m"))
        found = interval([one], difference, kind=kind, replicates=500)
        assert isinstance(found, Interval)
        hits += found.low <= 0 <= found.high
    return hits / runs


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("sa", "sb", "se"), [(0, 0.3, 0.3), (0.05, 0.3, 0.3), (0.2, 0.3, 0.3), (0, 0, 0.4), (0.3, 0.05, 0.05)]
)
def test_the_interval_holds_the_truth_as_often_as_promised(seeds: int, sa: float, sb: float, se: float):
    assert 0.91 <= coverage("student", seeds, sa, sb, se) <= 0.99  # of 300: 0.95 ± 3 standard errors


@pytest.mark.slow
def test_the_interval_of_delta_m_holds_the_truth_as_often_as_promised():
    """Four tasks, a seed that moves all of them, a baseline that is measured and not known."""
    random = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        outcomes = []
        for task in "abcd":
            hard = 1 + 0.3 * random.standard_normal(80)
            for method, true in (("s", 1.0), ("m", 0.9)):  # a loss that falls by 10 %
                apart = true + 0.02 * random.standard_normal((3, 1)) + 0.3 * random.standard_normal((3, 80))
                rows = apart + hard - 1
                outcomes += [
                    Outcome(task, method, s, "loss", float(row.mean()), tuple(row.tolist()))
                    for s, row in enumerate(rows)
                ]
        found = measured_delta(OutcomeTable(outcomes), "m", "s").interval
        assert found is not None
        hits += found.low <= 10 <= found.high
    assert 0.91 <= hits / 300 <= 0.99


@pytest.mark.slow
def test_percentiles_of_three_seeds_do_not_and_that_is_why_they_are_no_default():
    assert coverage("percentile", 3, 0.3, 0.05, 0.05) < 0.85  # three quarters in the limit
