"""Who runs next: fair shares, order of arrival, and a bound on how long anyone is passed."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.engine._scheduler import INPUT_COST, OUTPUT_COST, Scheduler


@dataclass(eq=False)
class Job:
    client: str
    tokens: int = 4
    new: int = 4
    weight: float = 1.0
    done: bool = False


def scheduler_of(jobs, *, prefill_tokens=1000, patience=4):
    scheduler = Scheduler(prefill_tokens=prefill_tokens, patience=patience)
    for job in jobs:
        scheduler.add(job)
    return scheduler


def yes(_):
    return True


def serve(scheduler, rows, acquire=yes, release=lambda job: None, steps=10_000):
    """Run a whole machine: admit, one token a row and step, leave; yields who was admitted and what was written."""
    left = {}
    for step in range(steps):
        new = scheduler.admit(rows - len(left), acquire)
        left.update({job: job.new for job in new})
        if not left and not len(scheduler):
            return
        scheduler.charge(list(left), written=1)
        yield step, new, list(left)
        for job in list(left):
            left[job] -= 1
            if not left[job]:
                del left[job]
                release(job)
    raise AssertionError("the requests did not end")


def order(scheduler, rows=1, **options):
    return [job for _, new, _ in serve(scheduler, rows, **options) for job in new]


def test_requests_of_one_adapter_run_in_the_order_of_arrival():
    jobs = [Job("a", tokens=random.Random(i).randint(1, 9), new=1 + i % 3) for i in range(12)]
    assert order(scheduler_of(jobs), rows=3) == jobs


def test_one_request_behind_a_flood_is_served_next():
    jobs = [Job("a"), Job("b"), *(Job("a") for _ in range(20))]
    assert order(scheduler_of(jobs)).index(jobs[1]) == 1
    late = [*(Job("a") for _ in range(20)), Job("b")]
    assert order(scheduler_of(late)).index(late[-1]) == 1  # what waits behind the first of A does not count


def served(jobs_in_steps, client):
    return sum(OUTPUT_COST * job.weight for job in jobs_in_steps if job.client == client)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_adapters_that_always_wait_are_served_alike_whatever_their_lengths(weight):
    """Theorem 4.4 of the paper: the difference is at most 2 max(w_in L_in, w_out M) while both wait."""
    rng = random.Random(0)
    rows, longest = 4, 12
    jobs = [Job("a", tokens=8, new=longest, weight=weight) for _ in range(60)]
    jobs += [Job("b", tokens=rng.randint(1, 3), new=rng.randint(1, 3)) for _ in range(600)]
    waiting = {name: sum(job.client == name for job in jobs) for name in "ab"}
    cost = dict.fromkeys("ab", 0.0)
    bound = 2 * max(INPUT_COST * 8, OUTPUT_COST * rows * longest) * weight
    for _, new, running in serve(scheduler_of(jobs), rows):
        for job in new:
            waiting[job.client] -= 1
            cost[job.client] += INPUT_COST * job.tokens * job.weight
        for name in "ab":
            cost[name] += served(running, name)
        if not all(waiting.values()):
            break
        assert abs(cost["a"] - cost["b"]) <= bound
    assert min(cost.values()) > 4 * bound  # both were served often enough to tell


def test_an_adapter_that_comes_back_has_saved_nothing_up():
    scheduler = scheduler_of([Job("b")] + [Job("a") for _ in range(40)])
    admitted = []
    for step, new, _ in serve(scheduler, 1):
        admitted += new
        if step == 60:  # A alone has been served for long
            for _ in range(10):
                scheduler.add(Job("b"))
            begin = len(admitted)
    back = [job.client for job in admitted[begin : begin + 12]]
    assert 4 <= back.count("a") <= 8  # turns are taken, B does not run ten times in a row


class Arena:
    """Room for `capacity` adapters; one that is in use stays."""

    def __init__(self, capacity):
        self.capacity, self.uses = capacity, {}

    def acquire(self, job):
        inside = {name for name, count in self.uses.items() if count}
        if len(inside | {job.client}) > self.capacity:
            return False
        self.uses[job.client] = self.uses.get(job.client, 0) + 1
        return True

    def release(self, job):
        self.uses[job.client] -= 1


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_flood_does_not_keep_the_arena_for_ever(rows):
    """Only one of A and B fits, and A's rows overlap, so that the arena never falls free by itself."""
    jobs = [Job("a", new=5), Job("b"), *(Job("a", new=3 + i % 5) for i in range(100))]
    arena = Arena(1)
    patience = 4
    found = order(scheduler_of(jobs, patience=patience), rows, acquire=arena.acquire, release=arena.release)
    assert len(found) == len(jobs)
    assert found.index(jobs[1]) <= rows + patience


def test_without_the_bound_the_flood_would_keep_it():
    """What the bound is for: the same arrivals with boundless patience starve B till the flood is over."""
    jobs = [Job("a", new=5), Job("b"), *(Job("a", new=3 + i % 5) for i in range(100))]
    arena = Arena(1)
    found = order(scheduler_of(jobs, patience=10**9), 4, acquire=arena.acquire, release=arena.release)
    assert found.index(jobs[1]) > 90


def test_others_pass_a_request_whose_adapter_is_loading_and_then_it_is_next():
    loading = {"b"}
    scheduler = scheduler_of([Job("b"), *(Job("a", new=1) for _ in range(9))], patience=8)
    first = [job for _ in range(3) for job in scheduler.admit(1, lambda job: job.client not in loading)]
    assert [job.client for job in first] == ["a"] * 3
    loading.clear()
    assert [job.client for job in scheduler.admit(2, yes)] == ["b", "a"]


def test_nobody_is_admitted_past_a_request_that_was_passed_often_enough():
    scheduler = scheduler_of([Job("b"), *(Job("a") for _ in range(9))], patience=3)
    assert len(scheduler.admit(9, lambda job: job.client != "b")) == 3
    assert scheduler.admit(9, lambda job: job.client != "b") == []
    assert [job.client for job in scheduler.admit(1, yes)] == ["b"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_every_request_is_admitted_exactly_once(seed):
    rng = random.Random(seed)
    jobs = [
        Job(rng.choice("abcde"), tokens=rng.randint(1, 40), new=rng.randint(1, 6), weight=rng.choice([1.0, 1.5]))
        for _ in range(40)
    ]
    arena = Arena(rng.randint(1, 3))
    scheduler = scheduler_of(jobs, prefill_tokens=rng.choice([10, 50]), patience=rng.randint(1, 5))
    found = order(
        scheduler,
        rng.randint(1, 5),
        acquire=lambda job: rng.random() < 0.7 and arena.acquire(job),
        release=arena.release,
    )
    assert sorted(map(id, found)) == sorted(map(id, jobs))
    assert len(scheduler) == 0


def test_a_round_reads_no_more_tokens_than_it_may_padding_included():
    jobs = [Job("a", tokens=n) for n in (5, 5, 5, 20, 3, 90, 2)]
    scheduler = scheduler_of(jobs, prefill_tokens=30)
    rounds = []
    while len(scheduler):
        rounds.append([job.tokens for job in scheduler.admit(10, yes)])
    assert rounds == [[5, 5, 5], [20], [3], [90], [2]]


def test_what_ends_while_it_waits_leaves():
    jobs = [Job("a"), Job("a"), Job("b"), Job("a")]
    scheduler = scheduler_of(jobs)
    jobs[1].done = True

    def fail(job):
        job.done = job.client == "b"  # its adapter is broken
        return not job.done

    assert scheduler.admit(9, fail) == [jobs[0], jobs[3]]
    assert len(scheduler) == 0


def test_upcoming_tells_whose_adapters_are_next_and_drain_takes_all():
    jobs = [Job("a"), Job("a"), Job("b"), Job("c")]
    scheduler = scheduler_of(jobs)
    assert scheduler.admit(1, yes) == [jobs[0]]
    assert [job.client for job in scheduler.upcoming(2)] == ["b", "c"]
    assert set(scheduler.upcoming(9)) == set(jobs[1:])
    assert set(scheduler.drain()) == set(jobs[1:])
    assert len(scheduler) == 0
    assert scheduler.admit(1, yes) == []


def test_many_threads_may_add():
    scheduler = scheduler_of([])
    threads = [threading.Thread(target=lambda: [scheduler.add(Job("a")) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    found = []
    while len(found) < 1600:
        found += scheduler.admit(7, yes)
    assert len(set(map(id, found))) == 1600
    assert len(scheduler) == 0
