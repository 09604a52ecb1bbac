from __future__ import annotations

import numpy as np
import pytest

from adapterhub.route import Route
from adapterhub.router import Candidate
from adapterhub.router._decide import Rules, branches, choose, decide


def candidates(*probabilities, score=5.0):
    return [Candidate(f"g/t{number}", score, probability) for number, probability in enumerate(probabilities)]


def rules(policy="top1", k=1, threshold=0.0, set_bound=1.0):
    return Rules(1.0, threshold, set_bound, policy, k)


@pytest.mark.parametrize(
    ("probabilities", "kind"),
    [((0.5, 0.49), "sure"), ((0.31, 0.1), "sure"), ((0.3, 0.11), "ambiguous"), ((0.2,), "sure"), ((), "none")],
)
def test_the_kind_of_a_decision(probabilities, kind):
    assert choose(candidates(*probabilities), rules())[0] == kind


def test_below_the_threshold_is_none_and_at_it_is_not():
    ranked = candidates(0.9, score=1.0)
    assert choose(ranked, rules(threshold=1.1)) == ("none", Route())
    assert choose(ranked, rules(threshold=1.0)) == ("sure", Route.to("g/t0"))


def test_what_each_policy_gives_an_ambiguous_text():
    ranked = candidates(0.4, 0.3, 0.2, 0.05)
    assert choose(ranked, rules("top1", 3)) == ("ambiguous", Route.to("g/t0"))
    assert choose(ranked, rules("base", 3)) == ("ambiguous", Route())
    kind, route = choose(ranked, rules("mixture", 3))
    assert kind == "ambiguous"
    assert route.adapters == ("g/t0", "g/t1", "g/t2")
    assert route.gates == pytest.approx((4 / 9, 3 / 9, 2 / 9))


def test_a_mixture_is_capped_by_k_and_by_the_conformal_set():
    ranked = candidates(0.4, 0.3, 0.2, 0.05)
    assert choose(ranked, rules("mixture", 1))[1] == Route.to("g/t0")
    assert choose(ranked, rules("mixture", 4, set_bound=0.75))[1].adapters == ("g/t0", "g/t1")
    assert choose(ranked, rules("mixture", 4, set_bound=0.1))[1] == Route.to("g/t0")  # the best is always in


def test_a_sure_text_has_one_adapter_under_every_policy():
    for policy in ("top1", "mixture", "base"):
        assert choose(candidates(0.8, 0.1), rules(policy, 4))[1] == Route.to("g/t0")


def test_equal_scores_are_ordered_by_name():
    decision = decide("text", ["b", "c", "a"], np.array([1.0, 1.0, 1.0]), 3, rules())
    assert [candidate.task for candidate in decision.candidates] == ["a", "b", "c"]
    assert decision.none_probability + sum(c.probability for c in decision.candidates) == pytest.approx(1)


def test_branches_sum_the_tasks_below_them():
    ranked = [Candidate("a/b/c", 3, 0.5), Candidate("a/d", 2, 0.25), Candidate("e/f", 1, 0.125), Candidate("g", 0, 0.1)]
    assert branches(ranked) == (("a", 0.75), ("a/b", 0.5), ("e", 0.125))
