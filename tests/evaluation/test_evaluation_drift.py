"""A usage log in figures: exact numbers from a known log, and only shifted inputs are flagged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adapterhub.errors import InputError
from adapterhub.evaluation import category_drift, number_drift, usage_report
from adapterhub.model import Usage


def used(task: str | None, count: int = 1, **more) -> list[Usage]:
    held = {"time": 100.0, "told": False, "seconds": 0.01, "length": 20} | more
    return [Usage(task=task, adapters=(task,) if task else (), **held) for _ in range(count)]


def test_a_known_log_gives_exact_numbers():
    log = [
        *used("a", seconds=0.010), *used("a", seconds=0.030), *used("a", seconds=0.020, time=50.0),
        *used(None, seconds=0.5, time=200.0), *used("b", told=True, seconds=0.2),
    ]  # fmt: skip
    found = usage_report(log)
    assert (found.calls, found.routed, found.abstain_rate, found.first, found.last) == (5, 4, 0.25, 50.0, 200.0)
    assert [(one.name, one.calls, one.share) for one in found.adapters] == [
        ("a", 3, 0.6),
        (None, 1, 0.2),
        ("b", 1, 0.2),
    ]
    assert found.adapters[0].median_seconds == pytest.approx(0.020)
    assert found.adapters[0].p95_seconds == pytest.approx(0.029)  # 0.9 of the way from .02 to .03
    assert found.drifts == ()
    assert usage_report(used("b", told=True)).abstain_rate is None
    with pytest.raises(InputError, match="at least one record"):
        usage_report([])


def test_psi_by_hand():
    found = category_drift(["a"] * 60 + ["b"] * 40, ["a"] * 40 + ["b"] * 60, "task")
    p, q = 60.5 / 101, 40.5 / 101
    assert found.psi == pytest.approx(2 * (p - q) * math.log(p / q))
    # 1 degree of freedom: χ² is exceeded once in a thousand at 10.8 (its approximation: 11.2); times 1/100 + 1/100
    assert found.bound == pytest.approx(0.217, abs=0.01)
    assert not found.flagged
    assert category_drift(["a"] * 600 + ["b"] * 400, ["a"] * 300 + ["b"] * 700, "task").flagged


def test_z_and_the_move_by_hand():
    found = number_drift([1.0, 2.0, 3.0] * 20, [2.0, 3.0, 4.0] * 20, "score")
    variance = 2 / 3 * 60 / 59
    assert found.z == pytest.approx(1 / math.sqrt(2 * variance / 60))
    assert found.moved == pytest.approx(1 / math.sqrt(variance))
    assert found.flagged


def test_a_constant_signal_that_stays_and_one_that_moves():
    same, moved = number_drift([2.0] * 50, [2.0] * 50, "score"), number_drift([2.0] * 50, [3.0] * 50, "score")
    assert (same.psi, same.z, same.flagged) == (0.0, 0.0, False)
    assert moved.flagged


@pytest.mark.parametrize("count", [30, 300, 3000])
def test_inputs_of_the_same_kind_are_flagged_about_never(count: int):
    random = np.random.default_rng(0)
    flags = sum(
        number_drift(random.lognormal(size=count), random.lognormal(size=count), "length").flagged for _ in range(400)
    )
    assert flags <= 4  # two tests of 1 in 1,000


def test_only_the_shifted_adapter_is_flagged():
    random = np.random.default_rng(1)

    def texts(task: str, mean: float) -> list[Usage]:
        drawn = zip(random.normal(mean, 1, 200), random.lognormal(3, 0.5, 200), strict=True)
        return [used(task, score=float(score), length=int(length))[0] for score, length in drawn]

    before, after = [*texts("a", 5.0), *texts("b", 5.0)], [*texts("a", 5.0), *texts("b", 3.5)]
    found = usage_report(after, before)
    assert {(one.signal, one.adapter) for one in found.drifts if one.adapter} == {
        ("length", "a"), ("length", "b"), ("score", "a"), ("score", "b"),
    }  # fmt: skip
    assert {(one.signal, one.adapter) for one in found.drifts if one.flagged} == {("score", "b"), ("score", "")}


def test_a_new_mix_of_tasks_is_flagged_and_named_tasks_do_not_count():
    before, after = [*used("a", 80), *used("b", 20)], [*used("a", 20), *used("b", 20), *used(None, 60)]
    found = usage_report(after, before)
    assert [one.signal for one in found.drifts if one.flagged] == ["task"]
    assert usage_report(used("a", 100, told=True), before).drifts == ()


def test_too_few_texts_say_nothing():
    assert usage_report(used("a", 29), used("b", 500)).drifts == ()
