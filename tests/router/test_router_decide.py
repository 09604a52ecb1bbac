from __future__ import annotations

import math

import pytest

from adapterhub.route import Route
from adapterhub.router import Candidate
from adapterhub.router._branches import back_off, branches
from adapterhub.router._calibration import Bound
from adapterhub.router._decide import Heard, Rules, choose, decide


def candidates(*probabilities, score=5.0, examples=20):
    """That score so much together, and have so many examples each."""
    found = [Candidate(f"g/t{number}", score, probability) for number, probability in enumerate(probabilities)]
    counts = [examples] * len(found) if isinstance(examples, int) else examples
    return Heard(found, counts, score)


def rules(policy="top1", k=1, threshold=0.0, set_bound=1.0):
    return Rules(1.0, (Bound(0, threshold, set_bound),), policy, k)


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


LEVELS = (Bound(20, 3.0, 0.5), Bound(5, 2.0, 0.7), Bound(1, 1.0, 0.9))


@pytest.mark.parametrize(("examples", "level"), [(99, 20), (20, 20), (19, 5), (5, 5), (4, 1), (1, 1), (0, 1)])
def test_a_task_is_judged_by_the_largest_number_of_examples_that_it_has(examples, level):
    """One with fewer than any by the smallest."""
    assert Rules(1.0, LEVELS, "top1", 1).bound(examples).examples == level


def test_the_best_task_says_how_much_is_asked_and_each_task_whether_it_is_plausible():
    asked = Rules(1.0, LEVELS, "mixture", 4)
    probabilities = (0.4, 0.25, 0.2, 0.05)
    for examples, kind in (((20, 1, 5, 1), "none"), ((5, 20, 5, 1), "ambiguous"), ((0, 20, 20, 20), "ambiguous")):
        heard = candidates(*probabilities, score=2.5, examples=examples)
        decision = decide("text", heard, 0.1, asked)
        assert decision.kind == kind
        assert (decision.together, decision.threshold) == (2.5, asked.bound(examples[0]).threshold)
        expected = [0] + [at for at in (1, 2, 3) if 1 - probabilities[at] <= asked.bound(examples[at]).miss]
        assert decision.plausible == tuple(f"g/t{at}" for at in expected)
    assert decide("text", candidates(*probabilities, examples=(20, 20, 1, 1)), 0.1, asked).ambiguous_with == ("g/t2",)


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


def test_candidates_stay_in_the_order_given():
    ranked = [Candidate(name, 1.0, 0.25) for name in ("b", "c", "a")]
    decision = decide("text", Heard(ranked, [1] * 3, 1.0), 0.25, rules())
    assert [candidate.task for candidate in decision.candidates] == ["b", "c", "a"]
    assert (decision.none_probability, decision.margin) == (0.25, 1.0)


def test_what_a_clear_decision_leaves_out_is_not_ambiguous():
    decision = decide("text", candidates(0.8, 0.15), 0.05, rules(set_bound=0.9))
    assert decision.plausible == ("g/t0", "g/t1")
    assert decision.ambiguous_with == ()
    half = decide("text", candidates(0.55, 0.43), 0.02, rules(set_bound=0.9))
    assert (half.kind, half.ambiguous_with) == ("sure", ("g/t1",))
    none = decide("text", candidates(0.55, 0.43), 0.02, rules(threshold=6.0))
    assert (none.kind, none.ambiguous_with) == ("none", ())
    outside = decide("text", candidates(0.4, 0.35, 0.3), 0.02, rules(set_bound=0.65))
    assert outside.ambiguous_with == ("g/t1",)
    unsure = decide("text", candidates(0.4, 0.35, 0.01), 0.2, rules(set_bound=0.9))
    assert unsure.ambiguous_with == ("g/t1",)
    assert decide("text", candidates(1.0, 0.0), 0.0, rules()).margin == math.inf


def test_branches_sum_the_tasks_below_them():
    ranked = [Candidate("a/b/c", 3, 0.5), Candidate("a/d", 2, 0.25), Candidate("e/f", 1, 0.125), Candidate("g", 0, 0.1)]
    assert branches(ranked) == (("a", 0.75), ("a/b", 0.5), ("e", 0.125))


def test_a_task_that_lies_above_others_counts_to_its_own_branch():
    ranked = [Candidate("a/b", 3, 0.5), Candidate("a/b/c", 2, 0.25), Candidate("a", 1, 0.125)]
    assert branches(ranked) == (("a", 0.875), ("a/b", 0.75))


@pytest.mark.parametrize(
    ("owners", "found"),
    [({"a", "a/b"}, "a/b"), ({"a"}, "a"), ({"a/b/c"}, None), ({"e"}, None), (set(), None)],
)
def test_the_deepest_sure_branch_with_an_adapter_of_its_own(owners, found):
    masses = (("a", 0.95), ("a/b", 0.8), ("a/b/c", 0.79), ("e", 0.05))
    assert back_off(masses, owners.__contains__) == found


@pytest.mark.parametrize("policy", ["top1", "mixture", "base"])
def test_a_branch_is_backed_off_to_where_no_task_is_sure_and_only_there(policy):
    tied, owner = candidates(0.42, 0.41), {"g"}.__contains__
    assert decide("text", tied, 0.1, rules(policy, 3), owner).route == Route.to("g")
    assert decide("text", tied, 0.1, rules(policy, 3, threshold=6), owner).kind == "branch"
    assert decide("text", candidates(0.7, 0.2), 0.1, rules(policy, 3), owner).kind == "sure"
    assert decide("text", candidates(0.3, 0.2), 0.5, rules(policy, 3), owner).kind == "ambiguous"
    assert decide("text", candidates(0.3, 0.2), 0.5, rules(policy, 3, threshold=6), owner).kind == "none"


def test_the_owner_of_a_branch_is_asked_for_only_where_it_matters():
    def owns(_):
        raise AssertionError

    assert decide("text", candidates(0.9, 0.05), 0.05, rules(), owns).kind == "sure"
    assert decide("text", candidates(0.3, 0.2), 0.5, rules(), owns).kind == "ambiguous"
