"""Easy rows first, and all of them in the end."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import InputError
from adapterhub.training._batches import schedule, steps_per_epoch
from adapterhub.training.sampling import Pacing, curriculum

GENERATOR = np.random.default_rng(0)
LENGTHS = GENERATOR.integers(5, 60, 500).tolist()
LOSSES = GENERATOR.normal(3, 1, 500).tolist()


@pytest.mark.parametrize("difficulties", [LENGTHS, LOSSES], ids=["length", "loss"])
@pytest.mark.parametrize("shape", ["linear", "root"])
def test_early_batches_are_easier_and_all_rows_are_read(difficulties, shape):
    pacing = Pacing(60, 0.1, shape)
    last = 60 + 2 * steps_per_epoch(500, 16)
    found = list(islice(curriculum(difficulties, LENGTHS, 16, 0, pacing=pacing), last))
    means = [np.mean([difficulties[row] for row in batch]) for batch in found]
    third = len(means) // 3
    early, late = np.mean(means[:third]), np.mean(means[-third:])
    assert early < np.mean(difficulties) - 0.2 * np.std(difficulties)
    assert early < np.mean(means[third:-third]) < late + 0.1 * np.std(difficulties)
    assert late == pytest.approx(np.mean(difficulties), abs=0.1 * np.std(difficulties))
    assert {row for batch in found for row in batch} == set(range(500))
    assert all(len(set(batch)) == len(batch) <= 16 for batch in found)


@settings(max_examples=60, deadline=None)
@given(
    difficulties=st.lists(st.floats(-5, 5), min_size=1, max_size=80),
    batch_size=st.integers(1, 20),
    steps=st.integers(1, 40),
    initial=st.floats(0.01, 1),
    shape=st.sampled_from(["linear", "root"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_come_when_they_are_admitted_and_the_last_within_two_epochs(
    difficulties, batch_size, steps, initial, shape, seed
):
    rows = len(difficulties)
    pacing = Pacing(steps, initial, shape)
    batches = curriculum(difficulties, [1] * rows, batch_size, seed, pacing=pacing)
    ranked = sorted(difficulties)
    seen = set()
    for step, batch in enumerate(islice(batches, steps + 2 * steps_per_epoch(rows, batch_size))):
        admitted = max(int(np.ceil(pacing.share(step) * rows)), min(batch_size, rows))
        assert all(difficulties[row] <= ranked[admitted - 1] for row in batch)
        seen.update(batch)
    assert seen == set(range(rows))


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 200), seed=st.integers(0, 100))
def test_a_resumed_order_is_the_same(start, seed):
    pacing = Pacing(40, 0.05)
    whole = list(islice(curriculum(LOSSES, LENGTHS, 16, seed, pacing=pacing), start + 30))
    assert list(islice(curriculum(LOSSES, LENGTHS, 16, seed, start, pacing=pacing), 30)) == whole[start:]


def test_the_seed_decides():
    def run(seed):
        return list(islice(curriculum(LOSSES, LENGTHS, 16, seed, pacing=Pacing(40)), 60))

    assert run(1) == run(1) != run(2)


def test_with_all_rows_from_the_beginning_a_pass_is_an_epoch():
    found = list(islice(curriculum(LOSSES, LENGTHS, 16, 0, pacing=Pacing(1, 1.0)), 64))
    assert Counter(row for batch in found for row in batch) == dict.fromkeys(range(500), 2)
    plain = list(islice(schedule(LENGTHS, 16, 0), 64))
    assert [len(batch) for batch in found].count(4) == [len(batch) for batch in plain].count(4) == 2


def test_batches_of_a_pass_are_of_like_length():
    found = list(islice(curriculum(LOSSES, LENGTHS, 16, 0, pacing=Pacing(1, 1.0)), 32))
    assert max(max(LENGTHS[row] for row in batch) - min(LENGTHS[row] for row in batch) for batch in found) <= 5


def test_rows_of_equal_difficulty_are_admitted_in_an_order_of_the_seed():
    firsts = {
        frozenset(next(curriculum([1.0] * 100, [1] * 100, 4, seed, pacing=Pacing(100, 0.01)))) for seed in range(20)
    }
    assert len(firsts) == 20


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.55), ("root", np.sqrt((1 + 0.01) / 2))])
def test_the_share_follows_its_formula(shape, middle):
    pacing = Pacing(100, 0.1, shape)
    assert [pacing.share(step) for step in (0, 50, 100, 1000)] == pytest.approx([0.1, middle, 1.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "`steps` of a pacing"), ((5, 0.0), "`initial` of a pacing"), ((5, 0.5, "square"), "linear or root")],
)
def test_a_pacing_outside_its_range_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Pacing(*arguments)


def test_every_row_needs_a_finite_difficulty():
    with pytest.raises(InputError, match=r"for each of 2 rows\. Found 1"):
        curriculum([1.0], [1, 1], 4, 0, pacing=Pacing(5))
    with pytest.raises(InputError, match="Found nan for row 1"):
        curriculum([1.0, float("nan")], [1, 1], 4, 0, pacing=Pacing(5))
