"""The loop by itself: who is drawn, who has stopped, what is kept, and what a run that goes on ends with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from toys import Bench

from adapterhub.errors import InputError
from adapterhub.training import DivergedError
from adapterhub.training._score import Score
from adapterhub.training.sampling import Balanced, Capped, ExhaustedError, Proportional, Stage, sampler_of
from adapterhub.training.weighting import Sum, weighting_of

# Looks come every second step. With a patience of 2, `a` stops at look 4, `b` at look 8.
SCRIPT = {
    "a": [1.0, 0.9, 0.95, 0.96, *[0.5] * 16],
    "b": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, *[0.6] * 14],
}
EASY = {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("weighting", [lambda _: None, Sum], ids=["none", "sum"])
def test_a_task_that_has_stopped_leaves_the_sum_and_the_others_go_on(weighting) -> None:
    bench = Bench(EASY, weighting=weighting, patience=2).scripted(SCRIPT).run()
    assert bench.drawn == [["a", "b"]] * 8 + [["b"]] * 8
    progress = bench.loop.progress
    assert (progress.step, progress.stopped) == (16, True)
    assert {name: track.stopped for name, track in progress.tracks.items()} == {"a": 8, "b": 16}
    assert [entry.step for entry in progress.tracks["a"].history] == list(range(2, 17, 2))  # it is still measured
    last = [entry.train_loss for entry in progress.tracks["a"].history[3:]]
    assert set(last) == {last[0]}  # and claims no loss of batches that it has not had
    assert all(math.isfinite(entry.train_loss) for entry in progress.tracks["b"].history)


def test_the_weights_of_the_sum_say_who_has_stopped() -> None:
    bench = Bench(EASY, weighting=lambda names: Sum(names, {"b": 0.5}), patience=2).scripted(SCRIPT).run()
    assert bench.loop.progress.weights == [[1.0, 0.5]] * 4 + [[0.0, 0.5]] * 4


def test_a_step_of_those_that_are_left_is_a_step_of_them_alone() -> None:
    """Against a loop that has never had the other task, from the same weights and with the same static weight."""
    found = []
    for names in (EASY, {"b": 0.0}):
        bench = Bench(names, weighting=lambda names: Sum(names, {"b": 0.5}), optimiser="sgd")
        with torch.no_grad():
            bench.heads["b"].copy_(torch.ones_like(bench.heads["b"]))
        unit = next(unit for unit in bench.units if unit.name == "b")
        bench.loop.step({"b": Bench({"b": 0.0}).units[0].rows[:6]})
        found.append((bench.shared.detach().clone(), unit.own["head"].detach().clone()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "upgrad"])
def test_where_a_weighting_compares_tasks_all_go_on_until_all_have_stopped(name: str) -> None:
    if name == "upgrad":
        pytest.importorskip("torchjd")
    script = SCRIPT | {"a": [1.0, 0.9, 0.95, 0.96, 0.97, 0.98, 0.7, *[0.8] * 13]}  # it comes back at look 7
    bench = Bench(EASY, weighting=lambda names: weighting_of(name, names), patience=2).scripted(script).run()
    assert bench.drawn == [["a", "b"]] * 18
    assert {track.stopped for track in bench.loop.progress.tracks.values()} == {0}
    assert bench.loop.progress.stopped


@pytest.mark.parametrize("sampler", [Balanced, Proportional], ids=["balanced", "proportional"])
def test_a_sampler_draws_among_those_that_are_left(sampler) -> None:
    runs = [Bench(EASY, sampler=sampler, patience=2).scripted(SCRIPT).run() for _ in range(2)]
    assert runs[0].drawn == runs[1].drawn
    assert {name for names in runs[0].drawn[:8] for name in names} == {"a", "b"}
    assert runs[0].drawn[8:] == [["b"]] * 8


def test_a_stage_whose_tasks_have_stopped_lends_its_steps_to_the_others() -> None:
    stages = [Stage(0.5, ["a"]), Stage(0.5)]
    bench = Bench(EASY, patience=2, sampler=lambda sizes: sampler_of("proportional", sizes, batch_size=4, steps=40,
                                                                      stages=stages))  # fmt: skip
    bench.scripted(SCRIPT).run()
    assert bench.drawn == [["a"]] * 8 + [["b"]] * 8


def test_a_run_ends_where_those_that_are_left_may_not_be_read_again(tmp_path: Path) -> None:
    def capped(sizes: dict[str, int]) -> Capped:
        return Capped(Proportional(sizes), sizes, max_repeats=1, batch_size=4, steps=12)

    script = SCRIPT | {"b": [1 / look for look in range(1, 21)]}  # it gets better and better
    ends = []
    for resume in (False, True):
        bench = Bench(EASY, sampler=capped, patience=2, steps=12, folder=tmp_path).scripted(script).run(resume=resume)
        progress = bench.loop.progress
        assert progress.stopped
        assert progress.tracks["b"].batches == 6  # 24 rows once
        assert progress.tracks["a"].batches < 6
        assert progress.tracks["b"].history[-1].step == progress.step
        ends.append(progress.step)
    assert ends[0] == ends[1] < 12
    with pytest.raises(ExhaustedError):
        Bench({"b": 0.0}, sampler=lambda s: Capped(Balanced(s), s, max_repeats=1, batch_size=4, steps=6), steps=7).run()


def test_what_is_kept_is_the_best_look_and_a_tasks_own_where_it_is_better() -> None:
    """`a` is best at look 2, both together at look 6; then the head of `a` that a measurement prefers is kept."""
    script = {"a": [1.0, 0.5, *[0.9] * 18], "b": [1.0, 0.9, 0.8, 0.7, 0.1, 0.05, *[0.6] * 14]}
    for preferred in (2, 6):
        bench = Bench(EASY, steps=20).scripted(script)
        seen: list[list[torch.Tensor]] = []
        scripted, look = bench.loop._watch.score, bench.loop._watch.look

        def looked(progress, bench=bench, seen=seen, look=look):
            found = look(progress)
            seen.append(bench.weights())
            return found

        def score(name, bench=bench, seen=seen, scripted=scripted, preferred=preferred):
            if len(seen) < 10:
                return scripted(name)
            liked = bool(torch.equal(bench.heads["a"], seen[preferred - 1][1]))
            return Score(0.0 if liked else 1.0, None)

        bench.loop._watch.look, bench.loop._watch.score = looked, score
        bench.run()
        shared, first, second = bench.weights()
        assert torch.equal(shared, seen[5][0])
        assert torch.equal(first, seen[preferred - 1][1])
        assert torch.equal(second, seen[5][2])
        assert not torch.equal(seen[1][1], seen[5][1])


def test_tasks_without_validation_rows_have_no_say_and_tasks_without_rows_are_measured() -> None:
    bench = Bench(EASY, patience=2)
    units = {unit.name: unit for unit in bench.units}
    object.__setattr__(units["a"], "rows", ())
    object.__setattr__(units["b"], "validation", ())
    again = bench.loop.__class__(
        bench.loop._accelerator, bench.units, {"shared": bench.shared}, bench.balance, bench.loop._settings
    )
    found = again.run(False, lambda *_: None)
    assert found.tracks["a"].batches == 0
    assert found.tracks["b"].batches == found.step
    assert all(entry.validation_loss is None for entry in found.tracks["b"].history)
    assert all(math.isnan(entry.train_loss) for entry in found.tracks["a"].history)
    best = min((-entry.metric, entry.validation_loss) for entry in found.tracks["a"].history)
    assert again._watch.score("a").key("classification") == best


NOISY = {"a": 1.0, "b": 0.0, "c": 0.3}
WAYS = {
    "sum": {"weighting": Sum},
    "uncertainty": {"weighting": lambda names: weighting_of("uncertainty", names)},
    "famo": {"weighting": lambda names: weighting_of("famo", names)},
    "coba": {"weighting": lambda names: weighting_of("coba", names)},
    "meta": {"weighting": lambda names: weighting_of("meta", names)},
    "balanced": {"sampler": Balanced},
    "capped": {"sampler": lambda sizes: Capped(Proportional(sizes), sizes, max_repeats=4, batch_size=4, steps=60)},
}


@pytest.mark.parametrize("kill", [3, 17, 30])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("patience", [None, 3])
def test_a_killed_run_goes_on_to_the_same_bytes(way: str, kill: int, patience: int | None, tmp_path: Path) -> None:
    options = {"steps": 60, "every": 3, "batch_size": 4, "patience": patience, **WAYS[way]}
    whole = Bench(NOISY, **options).run()
    if patience and way in ("sum", "balanced", "capped"):
        stops = [track.stopped for track in whole.loop.progress.tracks.values()]
        assert 0 < min(stop or 60 for stop in stops) < whole.loop.progress.step, stops  # one goes before the others
    kill = min(kill, whole.loop.progress.step - 1)
    with pytest.raises(KeyboardInterrupt):
        Bench(NOISY, folder=tmp_path, **options).run(kill=kill)
    again = Bench(NOISY, folder=tmp_path, **options).run(resume=True)
    assert again.drawn == whole.drawn[(kill - 1) // 3 * 3 :]  # from the look before
    for one, other in zip(whole.weights(), again.weights(), strict=True):
        assert torch.equal(one, other)
    first, second = (json.loads(json.dumps(bench.loop.progress.to_dict())) for bench in (whole, again))
    assert json.dumps(first | {"seconds": 0}) == json.dumps(second | {"seconds": 0})


def test_of_several_batches_the_one_that_diverged_is_named(tmp_path: Path) -> None:
    bench = Bench(EASY, folder=tmp_path, steps=10)
    own = bench.loop._units["b"].model.forward
    calls: list[int] = []

    def failing(**inputs):
        calls.append(1)
        found = own(**inputs)
        if len(calls) > 20:
            found.logits = found.logits * math.nan
        return found

    bench.loop._units["b"].model.forward = failing
    with pytest.raises(
        DivergedError, match=r"Found loss nan in the batch of b row \d+, .*The checkpoint before"
    ) as told:
        bench.run()
    assert " a row" not in str(told.value)
    assert all(weight.isfinite().all() for weight in bench.weights())
    again = Bench(EASY, folder=tmp_path, steps=10).run(resume=True)
    for one, other in zip(Bench(EASY, steps=10).run().weights(), again.weights(), strict=True):
        assert torch.equal(one, other)


def test_a_sampler_of_ones_own_must_know_who_is_left() -> None:
    class Deaf:
        def next(self) -> str:
            return "a"

    with pytest.raises(InputError, match=r"A sampler's `next` takes `among`.*Found Deaf without it"):
        sampler_of(Deaf(), {"a": 1}, batch_size=1, steps=1)  # type: ignore[arg-type]
