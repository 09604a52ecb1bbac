"""The three tiers against a plain model: who is where, who waits for whom, and whom an error reaches."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import nn

from adapterhub.adapter import LowRank
from adapterhub.engine._arena import Arena
from adapterhub.engine._delta import Delta, Folded
from adapterhub.engine._packed import PackedCache
from adapterhub.engine._tiers import Tiers
from adapterhub.errors import CapacityError, IncompatibleAdapterError, InputError, IntegrityError
from adapterhub.route import Route

WIDTH = 4
ONE = 2 * WIDTH * 4  # bytes of one rank
SOON = 10.0  # seconds, within which whatever is not stuck happens


def content(text, rank=1):
    """The adapter that a folder of this text holds; the text is seen in every value."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    draw = torch.Generator().manual_seed(int(sha256[:12], 16))
    low = LowRank(torch.randn(rank, WIDTH, generator=draw), torch.randn(rank, WIDTH, generator=draw))
    return Folded(sha256, {"linear": Delta(low)})


def eventually(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.001)


class FakeArena:
    """What an arena promises, and every breach of how it is to be used."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.inside = OrderedDict()
        self.broken = None

    @property
    def names(self):
        return tuple(self.inside)

    @property
    def used(self):
        return sum(folded.ranks for folded in self.inside.values())

    def __contains__(self, name):
        return name in self.inside

    def place(self, name, folded, keep=()):
        if self.broken == name:
            raise MemoryError("the arena's tensors")
        assert name not in self.inside
        assert self.used + folded.ranks <= self.capacity, "room should have been made before"
        self.inside[name] = folded

    def drop(self, name):
        del self.inside[name]

    def touch(self, names):
        for name in names:
            self.inside.move_to_end(name)


class Disk:
    """Folders whose reading is counted, can be held up, and can fail."""

    def __init__(self, root):
        self.root = Path(root)
        self.holds = {}  # folder name -> what is read there, or an error
        self.reads = []
        self.gates = {}

    def folder(self, name, folded):
        (self.root / name).mkdir(exist_ok=True)
        self.holds[name] = folded
        return self.root / name

    def gate(self, name):
        """Hold the reading of a folder up, until the event is set."""
        self.gates[name] = threading.Event()
        return self.gates[name]

    def __call__(self, folder, sha256):
        self.reads.append(folder.name)
        if folder.name in self.gates:
            assert self.gates[folder.name].wait(SOON)
        found = self.holds[folder.name]
        if isinstance(found, BaseException):
            raise found
        if sha256 is not None and found.sha256 != sha256:
            raise IntegrityError(f"{folder} should have the content hash {sha256}. Found {found.sha256}.")
        return found


class House:
    """Tiers with adapters of one rank each, named by letters, of which the arena holds `capacity`."""

    def __init__(self, root, names="abcdef", capacity=3, arena=None, host=100, **options):
        self.disk = Disk(root)
        self.arena = arena or FakeArena(capacity)
        self.tiers = Tiers(self.arena, self.disk, host_bytes=host * ONE, **options)
        for name in names:
            self.add(name)

    def add(self, name, folded=None, **options):
        self.tiers.add(name, self.disk.folder(name, folded or content(name)), **options)

    def inside(self, name):
        return self.arena.inside[name].sha256 == self.disk.holds[name].sha256


@pytest.fixture
def house(tmp_path):
    made = []

    def make(*args, **options):
        made.append(House(tmp_path, *args, **options))
        return made[-1]

    yield make
    for each in made:
        each.tiers.close()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(32) as pool:
        yield pool


def waiting(house, count):
    """Wait until so many calls wait for ranks or loads."""
    eventually(lambda: len(house.tiers._queue.waiting) == count)


def test_an_adapter_moves_up_and_down(house):
    at = house(capacity=2, host=3)
    for name in "abc":
        at.tiers.acquire([name]).release()
    assert at.tiers.names == tuple("abcdef")
    assert at.tiers.loaded == ("b", "c")
    assert at.tiers.host == ("a", "b", "c")
    at.tiers.acquire(["a"]).release()  # from host memory
    at.tiers.acquire(["c"]).release()  # from the arena
    at.tiers.acquire(["d"]).release()
    assert at.disk.reads == list("abcd")
    assert at.tiers.loaded == ("c", "d")
    assert at.tiers.host == ("a", "c", "d")
    stats = at.tiers.stats
    assert (stats.hits, stats.misses, stats.host_hits, stats.folder_loads) == (1, 5, 1, 4)
    assert (stats.evictions, stats.host_evictions) == (3, 1)
    assert (stats.arena_bytes, stats.host_bytes, stats.failures) == (2 * ONE, 3 * ONE, 0)


def test_a_lease_says_what_it_holds(house):
    at = house()
    with at.tiers.acquire(["b", "a", "b"]) as lease:
        assert lease.names == ("b", "a")
        assert dict(lease.hashes) == {name: content(name).sha256 for name in "ab"}
    lease.release()
    with at.tiers.acquire(["b"]), pytest.raises(TypeError):
        lease.hashes["b"] = ""
    assert at.tiers.acquire([]).names == ()
    assert at.tiers.try_acquire([]).names == ()


def test_many_threads_share_one_load(house, threads):
    at = house()
    gate = at.disk.gate("a")
    calls = [threads.submit(at.tiers.acquire, ["a"]) for _ in range(8)]
    waiting(at, 8)
    gate.set()
    leases = [call.result(SOON) for call in calls]
    assert at.disk.reads == ["a"]
    for lease in leases[:-1]:
        lease.release()
        lease.release()  # counts once
    assert not at.tiers.evict("a")
    leases[-1].release()
    assert at.tiers.evict("a")


def test_names_of_one_content_share_host_memory_and_loads(house, threads):
    at = house(names="")
    at.add("a", content("same"), sha256=content("same").sha256)
    at.add("b", content("same"), sha256=content("same").sha256)
    at.add("c", content("same"))
    gate = at.disk.gate("a")
    calls = [threads.submit(at.tiers.acquire, [name]) for name in "ab"]
    waiting(at, 2)
    gate.set()
    for call in calls:
        call.result(SOON).release()
    assert at.disk.reads in (["a"], ["b"])
    at.tiers.acquire(["c"]).release()  # what it holds is known once it was read
    assert at.tiers.host == ("a", "b", "c")
    assert at.tiers.stats.host_bytes == ONE
    assert at.arena.inside["a"] is at.arena.inside["c"]


def test_an_error_in_one_folder_is_no_error_of_the_same_bytes_elsewhere(house, threads):
    at = house(names="", workers=2)
    sha256 = content("same").sha256
    at.add("a", OSError("gone"), sha256=sha256)
    at.add("b", content("same"), sha256=sha256)
    gate = at.disk.gate("a")
    bad = threads.submit(at.tiers.acquire, ["a"])
    eventually(lambda: at.disk.reads == ["a"])
    good = threads.submit(at.tiers.acquire, ["b"])
    at.tiers.prefetch(["b"])
    waiting(at, 2)
    gate.set()
    with pytest.raises(OSError, match="gone"):
        bad.result(SOON)
    good.result(SOON).release()
    at.tiers.acquire(["b"]).release()


@pytest.mark.parametrize("error", [IncompatibleAdapterError("a", "base", ["nan"]), MemoryError(), SystemExit()])
def test_an_error_reaches_those_who_asked_and_leaves_nothing(house, threads, error):
    at = house()
    at.disk.holds["a"] = error
    gate = at.disk.gate("a")
    held = at.tiers.acquire(["b"])
    bad = [threads.submit(at.tiers.acquire, names) for names in (["a"], ["a", "b"], ["c", "a"])]
    waiting(at, 3)
    good = threads.submit(at.tiers.acquire, ["b"])
    good.result(SOON).release()  # nobody waits for a load of others
    gate.set()
    for call in bad:
        assert call.exception(SOON) is error
    assert at.inside("b")
    assert "a" not in at.tiers.host + at.tiers.loaded
    assert at.tiers.stats.failures == 1
    held.release()
    assert at.tiers.evict("b")
    at.disk.holds["a"] = content("a")
    at.tiers.acquire(["a"]).release()
    assert at.inside("a")


def test_a_bad_adapter_changes_nothing_for_the_good_ones_beside_it(house):
    at = house(capacity=2)
    at.disk.holds["a"] = IntegrityError("damaged")
    for name in "bc":
        at.tiers.acquire([name]).release()
    for ask in (at.tiers.acquire, at.tiers.acquire):
        with pytest.raises(IntegrityError):
            ask(["d", "a"])
        assert at.tiers.loaded == ("b", "c")


def test_a_placement_that_fails_half_way_leaves_nothing(house):
    at = house()
    held = at.tiers.acquire(["a"])
    at.arena.broken = "c"
    with pytest.raises(MemoryError):
        at.tiers.acquire(["b", "c"])
    assert at.tiers.loaded == ("a",)
    at.arena.broken = None
    at.tiers.acquire(["b", "c"]).release()
    assert all(map(at.inside, "abc"))
    held.release()


def test_an_error_of_a_prefetch_is_raised_once(house):
    at = house()
    at.disk.holds["a"] = IntegrityError("damaged")
    at.tiers.prefetch(["a", "b"])
    eventually(lambda: at.tiers.stats.failures == 1 and at.tiers.host == ("b",))
    at.disk.holds["a"] = content("a")
    at.tiers.acquire(["b"]).release()
    with pytest.raises(IntegrityError):
        at.tiers.acquire(["a"])
    at.tiers.acquire(["a"]).release()
    assert at.disk.reads == ["a", "b", "a"]


def test_a_second_prefetch_forgets_the_error_of_the_first(house):
    at = house()
    at.disk.holds["a"] = IntegrityError("damaged")
    at.tiers.prefetch(["a"])
    eventually(lambda: at.tiers.stats.failures == 1)
    at.disk.holds["a"] = content("a")
    at.tiers.prefetch(["a"])
    at.tiers.acquire(["a"]).release()


def test_what_somebody_waits_for_is_loaded_before_what_is_prefetched(house, threads):
    at = house()
    gate = at.disk.gate("a")
    at.tiers.prefetch("abcdef")
    eventually(lambda: at.disk.reads == ["a"])
    call = threads.submit(at.tiers.acquire, ["e"])
    waiting(at, 1)
    gate.set()
    call.result(SOON).release()
    eventually(lambda: len(at.tiers.host) == 6)
    assert at.disk.reads == list("aebcdf")


def test_a_prefetched_adapter_is_not_read_again(house):
    at = house()
    at.tiers.prefetch(["a"])
    eventually(lambda: at.tiers.host == ("a",))
    assert at.tiers.try_acquire(["a"]) is not None
    at.tiers.prefetch(["a"])
    assert at.disk.reads == ["a"]
    assert at.tiers.stats.host_hits == 1


def test_trying_never_waits(house):
    at = house(capacity=2)
    gate = at.disk.gate("a")
    assert at.tiers.try_acquire(["a"]) is None
    assert at.tiers.try_acquire(["a", "b"]) is None
    gate.set()
    leases = []
    eventually(lambda: leases.append(at.tiers.try_acquire(["a", "b"])) or leases[-1])
    assert sorted(at.disk.reads) == ["a", "b"]
    assert at.tiers.try_acquire(["c"]) is None  # to be loaded
    eventually(lambda: "c" in at.tiers.host)
    assert at.tiers.try_acquire(["c"]) is None  # no ranks
    assert at.tiers.try_acquire(["a"]) is not None
    leases[-1].release()
    assert at.tiers.try_acquire(["c"]) is not None


def test_trying_raises_what_went_wrong_once(house):
    at = house()
    at.disk.holds["a"] = IntegrityError("damaged")
    assert at.tiers.try_acquire(["a"]) is None
    eventually(lambda: at.tiers.stats.failures == 1)
    with pytest.raises(IntegrityError):
        at.tiers.try_acquire(["a"])
    assert at.tiers.try_acquire(["a"]) is None


@pytest.mark.parametrize("host", [0, 1, 2])
def test_trying_comes_to_an_end_however_small_host_memory_is(house, host):
    at = house(capacity=4, host=host)
    for names in ("abcd", "cdef", "ab"):
        leases = []
        eventually(lambda names=names, leases=leases: leases.append(at.tiers.try_acquire(names)) or leases[-1])
        assert all(map(at.inside, names))
        assert len(at.disk.reads) <= 20
        leases[-1].release()
    assert at.tiers.stats.host_bytes <= host * ONE
    assert not at.tiers._store._claims


def test_those_who_never_come_back_do_not_fill_host_memory(house):
    at = house(capacity=2, host=0)
    for name in "abcdef":
        assert at.tiers.try_acquire([name]) is None
    eventually(lambda: len(at.disk.reads) == 6 and not at.tiers._store._running)
    assert at.tiers.host == ("e", "f")
    at.tiers.remove("e")
    assert len(at.tiers._store._claims) == 1


def test_waiting_needs_no_host_memory(house):
    at = house(host=0)
    with at.tiers.acquire("abc"):
        assert all(map(at.inside, "abc"))
    assert at.tiers.host == ()
    assert at.tiers.stats.host_bytes == 0


def test_sets_that_only_fit_one_after_the_other(house, threads):
    at = house(capacity=3)

    def many(names):
        for _ in range(100):
            with at.tiers.acquire(names):
                assert all(map(at.inside, names))

    calls = [threads.submit(many, names) for names in ("abc", "cde", "eaf", "fb")]
    for call in calls:
        call.result(SOON)


def test_ranks_are_given_in_the_order_of_arrival(house, threads):
    at = house(capacity=2)
    for name in "abcd":
        at.tiers.acquire([name]).release()
    order = []
    first = at.tiers.acquire(["a"])

    def ask(names):
        lease = at.tiers.acquire(names)
        order.append(names)
        return lease

    calls = []
    for index, names in enumerate(["bc", "a", "d", "ab"]):
        calls.append(threads.submit(ask, names))
        waiting(at, index + 1)
    assert at.tiers.try_acquire("a") is None  # it would pass those who wait
    first.release()
    for call in calls:
        call.result(SOON).release()
    assert order == ["bc", "a", "d", "ab"]


def test_nobody_starves_behind_a_flood(house, threads):
    at = house(capacity=2)
    stop = threading.Event()
    served = Counter()

    def flood():
        lease = at.tiers.acquire("ab")
        while not stop.is_set():
            following = threads.submit(at.tiers.acquire, "ab")  # the next comes before this one leaves
            time.sleep(0.0005)
            lease.release()
            lease = following.result(SOON)
            served["flood"] += 1
        lease.release()

    floods = [threads.submit(flood) for _ in range(3)]
    eventually(lambda: served["flood"] > 20)
    for _ in range(10):
        threads.submit(at.tiers.acquire, "cd").result(SOON).release()
    stop.set()
    for call in floods:
        call.result(SOON)


def test_a_call_that_waits_for_a_load_lets_others_pass(house, threads):
    at = house(capacity=1, workers=2)
    gate = at.disk.gate("a")
    slow = threads.submit(at.tiers.acquire, ["a"])
    waiting(at, 1)
    at.tiers.acquire(["b"]).release()
    gate.set()
    slow.result(SOON).release()


@pytest.mark.parametrize("ask", ["acquire", "try_acquire"])
def test_what_can_never_fit_is_an_error(house, ask):
    at = house(capacity=3, arena_bytes=3 * ONE)
    at.add("wide", content("wide", rank=4))
    at.add("heavy", Folded(content("heavy").sha256, {"linear": Delta(shift=torch.zeros(40 * WIDTH))}))
    at.tiers.prefetch(at.tiers.names)
    eventually(lambda: len(at.tiers.host) == 8)
    held = at.tiers.acquire(["a"])
    with pytest.raises(CapacityError, match="4 ranks in all but the arena holds 3"):
        getattr(at.tiers, ask)(["wide"])
    with pytest.raises(CapacityError, match="4 ranks in all"):
        getattr(at.tiers, ask)("abcd")
    with pytest.raises(CapacityError, match=r"640 bytes in all but the arena holds 96.*arena_bytes"):
        getattr(at.tiers, ask)(["heavy"])
    assert at.tiers.loaded == ("a",)
    held.release()


def test_pinned_adapters_never_leave(house):
    at = house(capacity=3)
    at.add("p", pinned=True)
    at.tiers.pin("a")
    at.tiers.acquire("pa").release()
    for name in "bcdef":
        at.tiers.acquire([name]).release()
    assert {"p", "a"} <= set(at.tiers.loaded)
    assert not at.tiers.evict("p")
    with pytest.raises(CapacityError, match="2 ranks in all but the arena holds 3, 2 of them for pinned"):
        at.tiers.acquire("bc")
    at.tiers.acquire("pab").release()
    at.tiers.unpin("a")
    at.tiers.acquire("bc").release()
    assert set(at.tiers.loaded) == {"p", "b", "c"}


def test_a_pin_that_makes_a_waiting_call_impossible_ends_its_wait(house, threads):
    at = house(capacity=2)
    held = at.tiers.acquire("a")
    call = threads.submit(at.tiers.acquire, "bc")
    waiting(at, 1)
    eventually(lambda: at.tiers.host == ("a", "b", "c"))
    at.tiers.pin("a")
    with pytest.raises(CapacityError):
        call.result(SOON)
    held.release()


def test_old_bytes_of_a_pinned_name_are_no_reason_to_give_up(house, threads):
    at = house(capacity=2)
    held = at.tiers.acquire("a")
    at.add("a", content("new"), pinned=True)
    call = threads.submit(at.tiers.acquire, "bc")
    eventually(lambda: at.tiers.host == ("b", "c"))
    waiting(at, 1)
    held.release()
    call.result(SOON).release()


def test_host_memory_keeps_no_more_of_a_file_than_the_adapter(house):
    at = house(names="")
    file = torch.zeros(1000 + 2 * WIDTH)
    sha256 = content("a").sha256
    at.add("a", Folded(sha256, {"linear": Delta(LowRank(file[:WIDTH].view(1, -1), file[-WIDTH:].view(1, -1)))}))
    at.tiers.acquire("a").release()
    low = at.arena.inside["a"].deltas["linear"].low
    assert low.down.untyped_storage().data_ptr() == low.up.untyped_storage().data_ptr()
    assert low.down.untyped_storage().nbytes() < 200


def test_a_removed_name_is_unknown_at_once_and_its_ranks_are_free_with_the_last_lease(house):
    at = house(capacity=2)
    leases = [at.tiers.acquire("ab"), at.tiers.acquire("a")]
    at.tiers.remove("a")
    assert at.tiers.names == tuple("bcdef")
    assert at.tiers.loaded == ("b",)
    with pytest.raises(InputError, match="No adapter 'a' in this engine"):
        at.tiers.acquire(["a"])
    leases[0].release()
    assert "a" in at.arena
    leases[1].release()
    assert "a" not in at.arena
    at.tiers.remove("b")
    assert at.arena.names == ()


def test_a_name_that_is_removed_while_it_is_waited_for(house, threads):
    at = house()
    gate = at.disk.gate("a")
    call = threads.submit(at.tiers.acquire, "ab")
    waiting(at, 1)
    at.tiers.remove("a")
    with pytest.raises(InputError, match="not removed while it is asked for"):
        call.result(SOON)
    gate.set()
    at.tiers.acquire("b").release()


def test_new_bytes_of_a_name_wait_for_the_leases_on_its_old_ones(house, threads):
    at = house()
    old = at.tiers.acquire("a")
    at.add("a", content("other"))
    new = threads.submit(at.tiers.acquire, "a")
    waiting(at, 1)
    at.tiers.acquire("bc").release()  # others need not wait
    assert at.tiers.try_acquire("a") is None
    assert at.arena.inside["a"].sha256 == old.hashes["a"] == content("a").sha256
    old.release()
    with new.result(SOON) as lease:
        assert at.inside("a")
        assert lease.hashes["a"] == content("other").sha256


def test_a_load_that_began_before_a_name_was_added_again_is_not_its_load(house, threads):
    at = house(workers=2)
    gate = at.disk.gate("a")
    before = at.disk.holds["a"]
    at.tiers.prefetch(["a"])
    eventually(lambda: at.disk.reads == ["a"])
    del at.disk.gates["a"]
    at.add("a", content("new"))
    at.tiers.acquire("a").release()
    assert at.inside("a")
    at.disk.holds["a"] = before
    gate.set()
    eventually(lambda: not at.tiers._store._running)
    with at.tiers.acquire("a") as lease:
        assert lease.hashes["a"] == content("new").sha256


def test_the_same_bytes_added_again_stay_where_they_are(house):
    at = house()
    at.tiers.acquire("a").release()
    at.add("a", content("a"), sha256=content("a").sha256)
    assert at.tiers.loaded == ("a",)
    at.add("a", content("a"))  # whatever lies there now
    assert at.tiers.loaded == ()


def test_a_name_is_bound_to_the_bytes_of_its_first_load(house):
    at = house(capacity=1, host=0)
    at.tiers.acquire("a").release()
    at.disk.holds["a"] = content("changed")
    at.tiers.acquire("b").release()
    with pytest.raises(IntegrityError):
        at.tiers.acquire("a")
    at.add("a", content("changed"))
    at.tiers.acquire("a").release()


def test_a_reader_that_returns_other_bytes_is_not_believed(tmp_path):
    tiers = Tiers(FakeArena(3), lambda folder, sha256: content("wrong"), host_bytes=0)
    tiers.add("a", tmp_path, content("right").sha256)
    with pytest.raises(IntegrityError, match="content hash"):
        tiers.acquire("a")
    tiers.close()


def test_the_packed_cache_is_read_before_the_folder(house, tmp_path):
    packed = PackedCache(tmp_path / "cache", "base", torch.float32)
    first = house(capacity=1, host=0, packed=packed)
    for name in "abab":
        first.tiers.acquire(name).release()
    first.tiers.close()
    assert first.disk.reads == ["a", "b"]
    assert first.tiers.stats.packed_loads == 2
    second = house(names="", host=0, packed=packed)
    second.add("a", sha256=content("a").sha256)
    second.disk.holds["a"] = OSError("removed")
    second.tiers.acquire("a").release()
    assert second.tiers.stats.packed_loads == 1
    torch.testing.assert_close(
        second.arena.inside["a"].deltas["linear"].low.down, content("a").deltas["linear"].low.down, rtol=0, atol=0
    )


def test_an_adapter_can_be_had_without_the_arena(house, tmp_path):
    at = house(packed=PackedCache(tmp_path / "cache", "base", torch.float32))
    at.tiers.acquire("a").release()
    assert at.tiers.folded("a") is at.arena.inside["a"]
    assert at.tiers.folded("b").sha256 == content("b").sha256
    at.add("c", content("right"), sha256=content("c").sha256)
    with pytest.raises(IntegrityError):
        at.tiers.folded("c")
    with pytest.raises(InputError, match="No adapter"):
        at.tiers.folded("x")
    assert at.tiers.loaded == at.tiers.host == ("a",)
    assert at.disk.reads == ["a", "b", "c"]


def test_many_threads_release_one_lease_once(house):
    at = house()
    held = at.tiers.acquire("a")
    for _ in range(20):
        lease = at.tiers.acquire("a")
        some_threads(lambda _, lease=lease: lease.release(), 4)
        assert not at.tiers.evict("a")
    held.release()
    assert at.tiers.evict("a")


def test_closing_ends_all_waiting(house, threads):
    at = house()
    gate = at.disk.gate("a")
    held = at.tiers.acquire("b")
    loads = threads.submit(at.tiers.acquire, "a")
    ranks = threads.submit(at.tiers.acquire, "bcde"[:4])
    at.tiers.prefetch("def")
    eventually(lambda: at.disk.reads[-1:] == ["a"])
    closing = threads.submit(at.tiers.close)
    for call in (loads, ranks):
        with pytest.raises(InputError, match="closed"):
            call.result(SOON)
    assert not closing.done()
    gate.set()
    closing.result(SOON)
    held.release()
    assert at.disk.reads == ["b", "a"]
    assert at.tiers.stats.host_bytes == 0
    for call in (at.tiers.acquire, at.tiers.try_acquire, at.tiers.prefetch):
        with pytest.raises(InputError, match="closed"):
            call("b")
    at.tiers.close()


def test_an_interrupted_wait_leaves_the_queue(house, monkeypatch):
    at = house(capacity=1)
    held = at.tiers.acquire("a")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(at.tiers._changed, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        at.tiers.acquire("b")
    monkeypatch.undo()
    assert at.tiers.try_acquire("a") is not None  # nobody is before it
    held.release()


def test_bad_arguments(tmp_path):
    for options in ({"host_bytes": -1}, {"host_bytes": 0, "arena_bytes": -1}, {"host_bytes": 0, "workers": 0}):
        with pytest.raises(InputError):
            Tiers(FakeArena(1), content, **options)
    tiers = Tiers(FakeArena(1), content, host_bytes=0)
    with pytest.raises(InputError, match="should exist"):
        tiers.add("a", tmp_path / "none")
    tiers.add("grammar", tmp_path)
    for call in (tiers.remove, tiers.pin, tiers.unpin, tiers.evict):
        with pytest.raises(InputError, match="Did you mean `grammar`"):
            call("gramma")
    for call in (tiers.acquire, tiers.try_acquire, tiers.prefetch):
        with pytest.raises(InputError, match=r"'x'.*\n.*'y'"):
            call(["x", "grammar", "y"])


def some_threads(work, count=6):
    with ThreadPoolExecutor(count) as pool:
        for call in [pool.submit(work, seed) for seed in range(count)]:
            call.result(60)


class Chaos:
    """What a thread may do to tiers whose disk and arena fail now and then."""

    fault = OSError("a disk that fails now and then")
    known = ("content hash", "the arena's tensors", "No adapter", "not removed while", "in all but the arena")

    def __init__(self, at):
        self.at = at
        self.served = 0
        at.tiers._store._read = self.read

    def read(self, folder, sha256):
        if folder.name in "gh" and random.random() < 0.3:
            raise self.fault
        return self.at.disk(folder, sha256)

    def hold(self, lease, rng):
        with lease:
            for _ in range(rng.randint(1, 3)):
                assert all(self.at.arena.inside[name].sha256 == sha256 for name, sha256 in lease.hashes.items())
                time.sleep(rng.random() * 0.001)
            self.served += 1

    def acquire(self, names, rng):
        self.hold(self.at.tiers.acquire(names), rng)

    def attempt(self, names, rng):
        lease = self.at.tiers.try_acquire(names)
        if lease is not None:
            self.hold(lease, rng)

    def prefetch(self, names, rng):
        self.at.tiers.prefetch(names)

    def replace(self, names, rng):
        self.at.add(names[0], content(f"{names[0]}{rng.random()}", rng.randint(1, 2)))

    def remove(self, names, rng):
        self.at.tiers.remove(names[0])
        time.sleep(rng.random() * 0.001)
        self.replace(names, rng)

    def pin(self, names, rng):
        self.at.tiers.pin(names[0])
        time.sleep(rng.random() * 0.001)
        self.at.tiers.unpin(names[0])

    def evict(self, names, rng):
        self.at.tiers.evict(names[0])

    def damage(self, names, rng):
        self.at.arena.broken = rng.choice([None, None, "c"])

    def work(self, seed, steps=150):
        rng = random.Random(seed)
        acts = [self.acquire] * 12 + [self.attempt] * 6 + [self.prefetch] * 2
        acts += [self.replace, self.remove, self.pin, self.evict, self.damage]
        for _ in range(steps):
            try:
                rng.choice(acts)(rng.sample("abcdefgh", rng.randint(1, 3)), rng)
            except (OSError, MemoryError, InputError, CapacityError) as error:
                if error is not self.fault and not any(part in str(error) for part in self.known):
                    raise


@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_of_threads_with_faults(tmp_path, seed):
    """Whoever holds a lease sees its bytes, to the end; errors are those that were put there; nothing is left."""
    at = House(tmp_path, "abcdefgh", capacity=7, host=4, arena_bytes=6 * ONE, workers=2)
    chaos = Chaos(at)
    some_threads(lambda number: chaos.work(100 * seed + number))
    assert chaos.served > 100  # how many differs with what the threads do to one another
    assert at.tiers.stats.failures > 0
    assert at.tiers.stats.evictions > 30
    at.arena.broken = None
    at.tiers._store._read = at.disk
    eventually(lambda: not at.tiers._store._running)
    assert not at.tiers._queue.waiting
    assert at.tiers.stats.host_bytes <= 4 * ONE
    for name in "abcdefgh":
        at.add(name)
    assert at.arena.used == 0  # no lease was left behind
    for name in "abcdefgh":
        with at.tiers.acquire(name):
            assert at.inside(name)
    at.tiers.close()


@pytest.mark.parametrize("seed", range(2))
def test_batches_in_a_real_arena_while_others_come_and_go(tmp_path, seed):
    """Every batch equals the formula, though growth, compaction and eviction go on beside it."""
    torch.manual_seed(seed)
    base = nn.ModuleDict({"linear": nn.Linear(WIDTH, WIDTH)})
    plain = nn.Linear(WIDTH, WIDTH)
    plain.load_state_dict(base["linear"].state_dict())
    adapters = {name: content(name, 1 + index % 4) for index, name in enumerate("abcdefgh")}
    arena = Arena(base.get_submodule, 10)
    packed = PackedCache(tmp_path / "cache", "base", torch.float32)
    at = House(tmp_path, "", arena=arena, host=6, packed=packed, workers=2)
    for name, folded in adapters.items():
        at.add(name, folded)

    def work(number):
        rng = random.Random(100 * seed + number)
        for _ in range(60):
            names = rng.sample(sorted(adapters), rng.randint(1, 2))
            gates = [rng.uniform(-1, 1) for _ in names]
            x = torch.randn(2, 3, WIDTH)
            with at.tiers.acquire(names), torch.no_grad():
                plan = arena.plan([Route(tuple(names), tuple(gates)), Route()])
                time.sleep(rng.random() * 0.001)
                with arena.running(plan):
                    found = base["linear"](x)
            wanted = plain(x).detach()
            for name, gate in zip(names, gates, strict=True):
                low = adapters[name].deltas["linear"].low
                wanted[0] += gate * (x[0] @ low.down.T @ low.up)
            torch.testing.assert_close(found, wanted)

    some_threads(work)
    stats = at.tiers.stats
    assert stats.evictions > 50
    assert stats.packed_loads > 10
    assert stats.host_bytes <= 6 * ONE
    at.tiers.close()


@pytest.mark.slow
def test_the_process_ends_though_much_is_being_prefetched(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import time, pathlib, test_engine_tiers as t\n"
        "at = t.House(sys.argv[1])\n"
        "at.tiers._store._read = lambda folder, sha256: time.sleep(0.2) or t.content(folder.name)\n"
        "for n in range(1000): at.add(f'n{n}', t.content(str(n)))\n"
        "at.tiers.prefetch(at.tiers.names)\n"
        "at.tiers.acquire(['n7']).release()\n"
        "print('end')\n"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *paths], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "end\n"
    assert not done.stderr


class Model(RuleBasedStateMachine):
    """One caller at a time: every step's outcome is known beforehand, to the order of eviction."""

    names = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)

    def __init__(self):
        super().__init__()
        self.root = tempfile.TemporaryDirectory()
        self.ranks = {name: 1 + index % 3 for index, name in enumerate("abcdef")}
        self.at = House(self.root.name, "", capacity=6, host=5, arena_bytes=5 * ONE)
        self.arena, self.host, self.leases, self.pinned, self.leaving = [], [], [], set(), Counter()
        self.version = dict.fromkeys("abcdef", 0)
        for name in "abcdef":
            self.add(name)

    def teardown(self):
        self.at.tiers.close()
        self.root.cleanup()

    def text(self, name):
        return f"{name}{self.version[name]}"

    def leased(self, name):
        return any(name in lease.names for lease in self.leases)

    def rank(self, names):
        return sum(self.ranks[name] for name in names)

    def add(self, name):
        self.at.add(name, content(self.text(name), self.ranks[name]))

    def keep(self, name):
        text = self.text(name)
        if text in self.host:
            self.host.remove(text)
        if self.ranks[name] <= 5:
            self.host.append(text)
        while self.rank(text[0] for text in self.host) > 5:
            self.host.pop(0)

    def expect(self, names):
        """What `acquire` should do: `wait`, `error`, or place."""
        missing = [name for name in names if name not in self.arena]
        for name in [name for name in missing if self.text(name) in self.host]:
            self.keep(name)
        # Those not in host memory land one after the other, once all were looked for.
        for name in [name for name in missing if self.text(name) not in self.seen]:
            self.keep(name)
        if any(self.leaving[name] for name in names):
            return "wait"
        if not missing:
            return "place"
        pinned = [name for name in self.pinned if name in self.arena and name not in names]
        if self.rank(names) + self.rank(pinned) > 5:
            return "error"
        staying = {*names, *self.pinned, *filter(self.leased, self.arena)}
        drained = [name for name in "abcdef" if self.leaving[name]]
        used = self.rank(missing) + self.rank(name for name in self.arena if name in staying) + self.rank(drained)
        if used > 5:
            return "wait"
        free = [name for name in self.arena if name not in staying]
        while self.rank(self.arena) + self.rank(missing) + self.rank(drained) > 5:
            self.arena.remove(free.pop(0))
        self.arena += missing
        return "place"

    @rule(names=names)
    def acquire(self, names):
        self.seen = list(self.host)
        wanted = [name for name in names if name not in self.arena]
        outcome = self.expect(names)
        tiers = self.at.tiers
        if outcome == "wait":
            tiers_host = [name for name in wanted if self.text(name) not in self.seen]
            lease = tiers.try_acquire(names)
            assert lease is None
            eventually(lambda: not tiers._store._running)
            for name in tiers_host:
                tiers._store.settle(tiers._sources[name])  # this caller does not come back
        elif outcome == "error":
            with pytest.raises(CapacityError):
                tiers.acquire(names)
        else:
            self.leases.append(tiers.acquire(names))
            self.touch(names)

    def touch(self, names):
        for name in names:
            if name in self.arena:
                self.arena.remove(name)
                self.arena.append(name)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data):
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        for name in lease.names:
            text = next(
                text for text in self.texts(name) if content(text, self.ranks[name]).sha256 == lease.hashes[name]
            )
            if text == self.text(name):
                self.touch([name])
            else:
                self.leaving[name] -= 1

    def texts(self, name):
        return [f"{name}{version}" for version in range(self.version[name] + 1)]

    @rule(name=st.sampled_from("abcdef"))
    def replace(self, name):
        if self.leaving[name]:
            return
        self.leaving[name] = sum(name in lease.names for lease in self.leases)
        self.version[name] += 1
        self.add(name)
        self.pinned.discard(name)
        if name in self.arena:
            self.arena.remove(name)

    @rule(name=st.sampled_from("abcdef"))
    def pin(self, name):
        self.at.tiers.pin(name)
        self.pinned.add(name)

    @rule(name=st.sampled_from("abcdef"))
    def unpin(self, name):
        self.at.tiers.unpin(name)
        self.pinned.discard(name)

    @rule(name=st.sampled_from("abcdef"))
    def evict(self, name):
        held = (name in self.arena and (self.leased(name) or name in self.pinned)) or self.leaving[name] > 0
        assert self.at.tiers.evict(name) is not held
        if not held and name in self.arena:
            self.arena.remove(name)

    @invariant()
    def as_expected(self):
        tiers, inside = self.at.tiers, self.at.arena.inside
        assert list(tiers.loaded) == self.arena
        assert set(tiers.host) == {text[0] for text in self.host if text == self.text(text[0])}
        assert tiers.stats.host_bytes == self.rank(text[0] for text in self.host) * ONE
        assert tiers.stats.arena_bytes == sum(folded.nbytes for folded in inside.values()) <= 5 * ONE
        for name in self.arena:
            assert inside[name].sha256 == content(self.text(name)).sha256
        for lease in self.leases:
            assert all(inside[name].sha256 == lease.hashes[name] for name in lease.names)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
