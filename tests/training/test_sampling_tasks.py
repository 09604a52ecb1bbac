"""Which task is next: frequencies as computed, the same for the same seed, and the same after a resume."""

import json
import logging
import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import InputError
from adapterhub.training.sampling import (
    SAMPLINGS,
    Adaptive,
    Balanced,
    ExhaustedError,
    Proportional,
    Stage,
    Staged,
    sampler_of,
)

SIZES = {"a/large": 6000, "a/middle": 600, "b/small": 60}
STEPS = 4000


def make(name, sizes=SIZES, **options):
    return sampler_of(name, sizes, **{"batch_size": 10, "steps": STEPS} | options)


def names(sampler, count):
    return [sampler.next() for _ in range(count)]


def within_three_sigma(counts, shares, draws):
    for name, share in shares.items():
        sigma = math.sqrt(draws * share * (1 - share))
        assert abs(counts[name] - draws * share) <= 3 * sigma, (name, counts[name], draws * share, sigma)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 100.0])
def test_the_temperature_flattens_the_shares(temperature, seed):
    powers = {name: size ** (1 / temperature) for name, size in SIZES.items()}
    shares = {name: power / sum(powers.values()) for name, power in powers.items()}
    sampler = make("temperature", temperature=temperature, seed=seed)
    assert sampler.shares == pytest.approx(shares)
    within_three_sigma(Counter(names(sampler, STEPS)), shares, STEPS)


def test_proportional_gives_every_row_the_same_chance():
    within_three_sigma(Counter(names(make("proportional"), STEPS)), {n: s / 6660 for n, s in SIZES.items()}, STEPS)


def test_draws_that_follow_each_other_are_independent():
    sampler = make("temperature", temperature=100.0, seed=3)
    shares = sampler.shares
    pairs = Counter(pairwise(names(sampler, STEPS + 1)))
    # Overlapping pairs of independent draws are uncorrelated but for those that share a step; 3.5 sigma for 9 of them.
    for (first, second), count in pairs.items():
        share = shares[first] * shares[second]
        assert abs(count - STEPS * share) <= 3.5 * math.sqrt(STEPS * share)


@pytest.mark.parametrize("seed", [0, 7])
def test_balanced_asks_every_task_once_a_cycle_in_changing_orders(seed):
    found = names(make("balanced", seed=seed), 300)
    cycles = [tuple(found[begin : begin + 3]) for begin in range(0, 300, 3)]
    assert all(sorted(cycle) == sorted(SIZES) for cycle in cycles)
    within_three_sigma(Counter(cycles), dict.fromkeys(set(cycles), 1 / 6), 100)
    assert len(set(cycles)) == 6


def test_scripted_metrics_move_the_mass_as_computed():
    sampler = make("adaptive", targets={"a/large": 0.9, "a/middle": 0.8, "b/small": 2.0}, lower_is_better=["b/small"])
    assert sampler.shares == pytest.approx(dict.fromkeys(SIZES, 1 / 3))  # nothing is known yet
    sampler.observe({"a/large": 0.5, "a/middle": 0.6})
    assert sampler.shares == pytest.approx({"a/large": 0.4, "a/middle": 0.2, "b/small": 0.4})  # gaps .4 .2, unseen .4
    sampler.observe({"b/small": 2.6})
    shares = {"a/large": 0.4 / 1.2, "a/middle": 0.2 / 1.2, "b/small": 0.6 / 1.2}
    assert sampler.shares == pytest.approx(shares)
    within_three_sigma(Counter(names(sampler, STEPS)), shares, STEPS)
    sampler.observe({"a/large": 0.95, "a/middle": float("nan"), "b/small": 1.0})  # two are past their target
    assert sampler.shares == pytest.approx({"a/large": 0.01 / 0.22, "a/middle": 0.2 / 0.22, "b/small": 0.01 / 0.22})


def test_the_best_possible_metric_is_the_target_by_default():
    sampler = make("adaptive", lower_is_better=["b/small"])
    sampler.observe({"a/large": 0.5, "a/middle": 0.9, "b/small": 0.4})
    assert sampler.shares == pytest.approx({"a/large": 0.5, "a/middle": 0.1, "b/small": 0.4})


def test_a_task_at_its_cap_gives_its_mass_to_the_others(caplog):
    sampler = make("temperature", temperature=100.0, max_repeats=4, batch_size=20, steps=1300)
    with caplog.at_level(logging.WARNING, "adapterhub"):
        found = names(sampler, 1300)
    counts = Counter(found)
    assert counts["b/small"] == 4 * 3  # 60 rows are 3 batches
    assert counts["a/middle"] == 4 * 30
    assert counts["a/large"] == 1300 - 12 - 120
    assert [record.args[0] for record in caplog.records] == ["b/small", "a/middle"]
    assert caplog.messages[0] == (
        "b/small: its 60 rows were read 4 times each, as often as `max_repeats` allows. The steps that it would still "
        "have had go to the other tasks."
    )
    last = max(place for place, name in enumerate(found) if name == "b/small")
    between = Counter(found[last + 1 : last + 1 + 200])  # until the middle one is full too, the two share alike
    shares = Proportional(SIZES, temperature=100.0).shares
    rest = shares["a/large"] + shares["a/middle"]
    within_three_sigma(between, {name: shares[name] / rest for name in ("a/large", "a/middle")}, 200)


def test_the_rows_of_a_capped_task_are_read_as_often_as_allowed_and_no_more():
    from adapterhub.training._batches import schedule

    sizes = {"x": 45, "y": 500}
    sampler = sampler_of("balanced", sizes, max_repeats=3.9, batch_size=8, steps=180)
    batches = {name: schedule([1] * size, 8, 0) for name, size in sizes.items()}
    read = {name: Counter() for name in sizes}
    for name in names(sampler, 180):
        read[name].update(next(batches[name]))
    assert set(read["x"].values()) == {3}
    assert len(read["x"]) == 45
    assert max(read["y"].values()) <= 3


def test_no_warning_where_the_cap_is_not_reached(caplog):
    names(make("proportional", max_repeats=100, steps=600), 600)
    names(make("proportional", {"a": 100}, max_repeats=1, steps=10), 10)  # exactly used up by the end of the run
    assert caplog.messages == []


def test_a_cap_that_leaves_too_few_steps_is_refused():
    with pytest.raises(InputError, match=r"may take 12 steps of 20 rows\. Found 13 steps"):
        sampler_of("balanced", {"a": 60, "b": 60}, max_repeats=2, batch_size=20, steps=13)
    sampler = sampler_of("balanced", {"a": 60, "b": 60}, max_repeats=2, batch_size=20, steps=12)
    assert Counter(names(sampler, 12)) == {"a": 6, "b": 6}
    with pytest.raises(InputError, match="may take 12 steps"):
        sampler.next()


STAGES = [
    Stage(0.25, ["b/small"]),
    Stage(0.25, ["a/large", "a/middle"], "balanced"),
    Stage(0.5, sampling="temperature"),
]


def test_stages_follow_each_other_with_their_tasks_and_samplings():
    sampler = make("proportional", stages=STAGES, temperature=100.0)
    found = names(sampler, STEPS)
    assert set(found[:1000]) == {"b/small"}
    assert Counter(found[1000:2000]) == {"a/large": 500, "a/middle": 500}
    within_three_sigma(Counter(found[2000:]), Proportional(SIZES, temperature=100.0).shares, 2000)
    assert set(names(sampler, 100)) == set(SIZES)  # beyond the steps the last stage goes on


def test_a_stage_whose_tasks_are_full_lends_its_steps_to_the_others(caplog):
    stages = [Stage(0.5, ["b/small"]), Stage(0.5)]
    found = names(make("proportional", stages=stages, max_repeats=2, steps=100), 100)
    assert Counter(found[:12]) == {"b/small": 12}
    assert "b/small" not in found[12:]
    assert len(caplog.messages) == 1


def test_a_later_stage_begins_with_the_metrics_of_the_earlier_ones():
    stages = [Stage(0.5, ["a/large"]), Stage(0.5, ["a/middle", "b/small"], "adaptive")]
    sampler = make("balanced", stages=stages, steps=100)
    names(sampler, 50)
    sampler.observe({"a/large": 0.1, "a/middle": 1.0, "b/small": 0.0})
    assert Counter(names(sampler, 50))["b/small"] > 40


def test_a_stage_takes_a_sampler_of_ones_own():
    own = Balanced({"a/middle": 1, "b/small": 1}, seed=9)
    sampler = make("proportional", stages=[Stage(1.0, ["a/middle", "b/small"], own)])
    assert Counter(names(sampler, 10)) == {"a/middle": 5, "b/small": 5}


VARIANTS = [
    ("proportional", {}),
    ("temperature", {"temperature": 3.0}),
    ("balanced", {}),
    ("adaptive", {"targets": {"a/large": 0.7}, "lower_is_better": ["b/small"]}),
    ("temperature", {"temperature": 9.0, "max_repeats": 2, "steps": 500}),
    ("balanced", {"max_repeats": 2, "steps": 500}),
    ("adaptive", {"stages": STAGES, "max_repeats": 5, "steps": 300, "temperature": 2.0}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 150), after=st.integers(1, 150))
def test_a_resumed_sampler_continues_as_the_whole_one(name, options, seed, before, after):
    whole = make(name, seed=seed, **options)
    names(whole, before)
    whole.observe({"a/large": 0.2, "b/small": 0.3})
    resumed = make(name, seed=seed, **options)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    state = json.dumps(resumed.state_dict(), sort_keys=True)
    assert names(resumed, after) == names(whole, after)
    assert json.dumps(resumed.state_dict(), sort_keys=True) == json.dumps(whole.state_dict(), sort_keys=True) != state


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_seed_decides(name, options):
    runs = [names(make(name, seed=seed, **options), 300) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_state_is_a_copy():
    sampler = make("balanced")
    sampler.next()
    state = sampler.state_dict()
    kept = json.dumps(state)
    names(sampler, 5)
    assert json.dumps(state) == kept


def test_one_task_needs_no_luck():
    for name in SAMPLINGS:
        assert set(names(make(name, {"only": 3}), 20)) == {"only"}


def test_a_sampler_of_ones_own_is_handed_back():
    own = Balanced(SIZES)
    assert make(own) is own
    with pytest.raises(InputError, match="A sampler of your own comes without"):
        make(own, max_repeats=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("propotional", {}, r"`sampling` should be one of .* Found 'propotional'. Did you mean `proportional`\?"),
        ("proportional", {"temperature": 2.0}, "`temperature` belongs to sampling='temperature'. Found 2.0"),
        ("temperature", {"temperature": 0.0}, "`temperature` should be a number above 0. Found 0.0"),
        ("temperature", {"temperature": math.nan}, "`temperature` should be a number above 0. Found nan"),
        ("temperature", {"temperature": 1e-9}, "leaves tasks without any chance"),
        ("balanced", {"targets": {"a/large": 1.0}}, "`targets` belong to sampling='adaptive'"),
        ("adaptive", {"targets": {"a/larg": 1.0}}, r"`targets` names 'a/larg', .* Did you mean `a/large`\?"),
        ("adaptive", {"targets": {"a/large": math.inf}}, "`targets` are finite numbers. Found a/large: inf"),
        ("adaptive", {"lower_is_better": ["c"]}, "`lower_is_better` names 'c'"),
        ("balanced", {"sizes": {}}, "at least one task. Found none"),
        ("balanced", {"sizes": {"a": 0, "b": 1}}, "at least one row. Found none for a"),
        ("balanced", {"max_repeats": 0.5}, "`max_repeats` should be a number of at least 1. Found 0.5"),
        ("balanced", {"max_repeats": math.nan}, "`max_repeats` should be a number of at least 1. Found nan"),
        ("balanced", {"stages": []}, "are above 0 and sum to 1"),
        ("balanced", {"stages": [Stage(0.5), Stage(0.6)]}, r"sum to 1. Found \[0.5, 0.6\]"),
        ("balanced", {"stages": [Stage(1.0, ["nobody"])]}, "Stage 1 names 'nobody'"),
        ("balanced", {"stages": [Stage(1.0, sampling="other")]}, "Found 'other'"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        make(name, **options)


def test_unknown_names_are_refused_while_running():
    adaptive = Adaptive(SIZES)
    with pytest.raises(InputError, match="`metrics` names 'c'"):
        adaptive.observe({"c": 1.0})
    with pytest.raises(InputError, match="state names 'c'"):
        adaptive.load_state_dict({"drawn": 1, "metrics": {"c": 1.0}})
    with pytest.raises(InputError, match="state names 'c'"):
        Balanced(SIZES).load_state_dict({"cycle": 1, "waiting": ["c"]})
    staged = make("balanced", stages=STAGES)
    assert isinstance(staged, Staged)
    with pytest.raises(InputError, match=r"state has 3 stages\. Found 1"):
        make("balanced", stages=[Stage(1.0)]).load_state_dict(staged.state_dict())
    with pytest.raises(InputError, match="`floor` should be a number above 0"):
        Adaptive(SIZES, floor=0.0)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tasks_that_are_left_out_are_not_drawn_and_the_rest_share_their_mass(name, options):
    sampler, again = (make(name, seed=3, **options) for _ in range(2))
    among = ["a/large", "a/middle"]
    found = [sampler.next(among) for _ in range(100)]
    assert set(found) <= set(among)
    assert found == [again.next(among) for _ in range(100)]
    everyone, anyone = (make(name, seed=4, **options) for _ in range(2))
    assert [everyone.next(list(SIZES)) for _ in range(100)] == names(anyone, 100)


def test_the_rest_keeps_its_proportions():
    sampler, among = make("proportional"), ["a/middle", "b/small"]
    counts = Counter(sampler.next(among) for _ in range(STEPS))
    within_three_sigma(counts, {"a/middle": 10 / 11, "b/small": 1 / 11}, STEPS)


def test_a_cap_counts_among_those_that_are_left():
    sampler = sampler_of("balanced", {"a": 60, "b": 60}, max_repeats=2, batch_size=20, steps=12)
    assert [sampler.next(["b"]) for _ in range(6)] == ["b"] * 6
    with pytest.raises(ExhaustedError, match="may take 12 steps"):
        sampler.next(["b"])
    assert sampler.next() == "a"
