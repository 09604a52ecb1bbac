"""The index of signs: what it finds beside the exact scan, and what it does with damaged files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from index_contract import SPREAD, ByHand, agrees, bits, clustered, recall, some_queries, some_rows

from adapterhub.catalog import BitIndex, ExactIndex, Manifest, Queries, Rows, Typical, _generation, building
from adapterhub.catalog._builder import build, collect_garbage
from adapterhub.catalog._generation import FILES, MANIFEST
from adapterhub.catalog._linear import checksums
from adapterhub.catalog._scanned import CHUNK
from adapterhub.errors import InputError, IntegrityError

NONE = np.empty(0, dtype=np.int64)


def built(folder: Path, keys: np.ndarray, rows: Rows, seq: int = 0) -> BitIndex:
    blocks = [(keys[at : at + 5000], rows.take(slice(at, at + 5000))) for at in range(0, len(keys), 5000)]
    with building(folder, 10):
        return BitIndex.build(folder, blocks, rows.take(slice(0, None, 7)), Typical(SPREAD), seq=seq)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    keys, rows, queries = clustered(0, 7 * CHUNK + 3000)  # more than are all looked at twice
    folder = tmp_path_factory.mktemp("many")
    exact = ExactIndex(64)
    exact.add(keys, rows)
    return built(folder, keys, rows), exact, keys, rows, queries


def test_nearly_all_of_the_best_are_found_with_their_exact_scores(many):
    index, exact, _, _, queries = many
    found, expected = index.search(queries, 10), exact.search(queries, 10)
    assert recall(found, expected) >= 0.98
    for (keys, scores), (others, theirs) in zip(found, expected, strict=True):
        both, mine, other = np.intersect1d(keys, others, return_indices=True)
        assert len(both)
        np.testing.assert_array_equal(scores[mine], theirs[other])


def test_a_subset_is_searched_exactly_and_a_large_one_nearly(many, monkeypatch):
    index, exact, keys, _, queries = many
    random = np.random.default_rng(1)
    scattered, together = np.sort(random.permutation(keys)[:500]), keys[2000:2500]
    for subset in (scattered, together):
        for found, expected in zip(index.search(queries, 10, subset), exact.search(queries, 10, subset), strict=True):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    monkeypatch.setattr(_generation, "MOST_EXACT", 1000)
    half = keys[random.random(len(keys)) < 0.5]
    found = index.search(queries, 10, half)
    assert all(np.isin(some, half).all() for some, _ in found)
    assert recall(found, exact.search(queries, 10, half)) >= 0.98


def test_a_batch_is_searched_like_its_queries(many):
    index, _, _, _, queries = many
    batch = index.search(queries, 20)
    for row, (keys, scores) in enumerate(batch[:10]):
        one = Queries(queries.linear[row : row + 1], queries.groups[row : row + 1])
        [(alone, theirs)] = index.search(one, 20)
        np.testing.assert_array_equal(keys, alone)
        np.testing.assert_array_equal(scores, theirs)


def test_what_came_later_is_found_at_once_and_what_went_no_more(many, tmp_path):
    _, _, keys, rows, queries = many
    index, exact = built(tmp_path / "index", keys, rows), ExactIndex(64)
    exact.add(keys, rows)
    best = [int(found[0]) for found, _ in exact.search(queries, 1)]
    gone, replaced = np.unique(best)[::2], np.unique(best)[1::2]
    _, fresh, _ = clustered(5, 1000)
    new = np.concatenate([replaced, 3 * np.arange(1000 - len(replaced)) + 1])
    for one in (index, exact):
        one.update(new, fresh, gone)
    found, expected = index.search(queries, 10), exact.search(queries, 10)
    assert recall(found, expected) >= 0.98
    assert not np.isin(np.concatenate([some for some, _ in found]), gone).any()
    assert len(index) == len(exact)
    np.testing.assert_array_equal(index.keys(), exact.keys())
    with building(tmp_path / "index", 0):
        again = BitIndex.build(tmp_path / "index", index.blocks(), index.sample(5000)[1], Typical(SPREAD))
    np.testing.assert_array_equal(again.keys(), exact.keys())
    assert again.changed == 0
    assert recall(again.search(queries, 10), expected) >= 0.98
    subset = exact.keys()[::50]
    for some, others in zip(again.search(queries, 10, subset), exact.search(queries, 10, subset), strict=True):
        np.testing.assert_array_equal(some[1], others[1])


def test_many_dead_rows_take_no_place_in_a_shortlist(many, tmp_path):
    """All but 1 % of the rows were removed: the ones that are left are all found."""
    _, _, keys, rows, queries = many
    index, exact = built(tmp_path / "index", keys, rows), ExactIndex(64)
    left = np.random.default_rng(2).permutation(len(keys))[: len(keys) // 100]
    exact.add(keys[left], rows.take(left))
    index.remove(np.setdiff1d(keys, keys[left]))
    for some, others in zip(index.search(queries, 10), exact.search(queries, 10), strict=True):
        np.testing.assert_array_equal(some[0], others[0])


def test_a_generation_is_what_was_built(tmp_path):
    random = np.random.default_rng(0)
    keys, rows = np.arange(0, 500, 5), some_rows(random, 100)
    index = bits(tmp_path / "index", keys, rows)
    assert (index.manifest.seq, index.manifest.rows, index.manifest.fingerprint) == (7, 100, "test")
    assert list(index.manifest.groups) == np.unique(rows.group).tolist()
    found = list(index.blocks(30))
    np.testing.assert_array_equal(np.concatenate([some for some, _ in found]), keys)
    for name in ("linear", "group", "offset"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for _, part in found]), getattr(rows, name))


def test_keys_ascend(tmp_path):
    rows = some_rows(np.random.default_rng(0), 2)
    with building(tmp_path, 0), pytest.raises(InputError, match="ascending"):
        BitIndex.build(tmp_path, [(np.array([3, 2]), rows)], rows, Typical(np.ones(12)))
    with building(tmp_path, 0), pytest.raises(InputError, match="ascending"):
        BitIndex.build(tmp_path, [(np.array([2, 3]), rows), (np.array([3, 4]), rows)], rows, Typical(np.ones(12)))
    assert not list(tmp_path.glob("g*"))


def damages(raw: bytes):
    """Every kind of damage: flipped bits, files cut and grown, zeros, halves swapped, noise."""
    middle, half = len(raw) // 2, raw[: len(raw) // 2]
    for place in (0, middle, len(raw) - 1):
        for bit in (0, 7):
            yield raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]
    yield from (b"", half, raw[:-1], raw + b"\0", bytes(len(raw)), half + bytes(len(raw) - middle), raw[middle:] + half)
    yield np.random.default_rng(0).integers(0, 256, len(raw), dtype=np.uint8).tobytes()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damage_is_an_error_that_says_so_and_never_a_wrong_score(tmp_path, name):
    random = np.random.default_rng(0)
    keys, rows, queries = np.arange(300), some_rows(random, 300), some_queries(random, 3)
    hand = ByHand()
    hand.add(keys, rows)
    index = bits(tmp_path / "index", keys, rows)
    path = tmp_path / "index" / (name if name == MANIFEST else f"{index.manifest.name}/{name}")
    raw = path.read_bytes()
    for damaged in damages(raw):
        if damaged == raw:
            continue
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="built again"):
            agrees(BitIndex.open(tmp_path / "index"), hand, queries, 300)
    path.unlink()
    with pytest.raises(IntegrityError, match="built again"):
        BitIndex.open(tmp_path / "index")
    path.write_bytes(raw)
    agrees(BitIndex.open(tmp_path / "index"), hand, queries, 300)


def test_damage_after_the_opening_is_noticed_too(tmp_path):
    random = np.random.default_rng(0)
    rows, queries = some_rows(random, 300), some_queries(random, 3)
    index = bits(tmp_path / "index", np.arange(300), rows)
    before = index.search(queries, 300)
    folder = tmp_path / "index" / index.manifest.name
    for path in folder.iterdir():
        if path.name != "linear":
            path.write_bytes(b"")  # all that is scanned is in memory
    assert str(index.search(queries, 300)) == str(before)
    with (folder / "linear").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(IntegrityError, match="ends too early"):
        index.search(queries, 300)


def test_every_changed_bit_of_a_row_changes_its_checksum():
    row = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float16)
    seen = {int(checksums(row)[0])}
    for bit in range(256):
        raw = bytearray(row.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        seen.add(int(checksums(np.frombuffer(bytes(raw), dtype=np.float16)[None])[0]))
    assert len(seen) == 257


def test_readers_go_on_while_generations_are_swapped(tmp_path):
    """Each generation has rows of its own; a reader finds all rows of one of them, whatever happens to the folder."""
    random = np.random.default_rng(0)
    folder, keys = tmp_path / "index", np.arange(400)
    base, queries = some_rows(random, 400), Queries(np.zeros((1, 12)), np.zeros((1, 4)))

    def write(turn):
        rows = Rows(base.linear, base.group, np.full(400, turn, dtype=np.float32))
        with building(folder, 10):
            build(folder, [(keys, rows)], rows, Typical(np.ones(12)), seq=turn, fingerprint="")
            collect_garbage(folder, Manifest.read(folder).name, grace=0.0)

    write(0)
    stop, faults = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                index = BitIndex.open(folder)
                [(_, scores)] = index.search(queries, 400)
                assert set(scores.tolist()) == {float(index.manifest.seq)}
            except Exception as error:
                faults.append(error)
                raise

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(1, 20):
        write(turn)
    stop.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert len(list(folder.glob("g*"))) == 1


def endless(folder, ready):
    def blocks():
        for turn in range(10**6):
            yield np.array([turn]), some_rows(np.random.default_rng(0), 1)
            ready.set()
            time.sleep(0.01)

    with building(folder, 0):
        build(folder, blocks(), some_rows(np.random.default_rng(0), 1), Typical(np.ones(12)), seq=9, fingerprint="")


def test_a_killed_builder_leaves_the_old_generation_and_no_lock(tmp_path):
    folder, random = tmp_path / "index", np.random.default_rng(0)
    rows, queries = some_rows(random, 100), some_queries(random, 3)
    before = bits(folder, np.arange(100), rows).search(queries, 5)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    builder = context.Process(target=endless, args=(folder, ready))
    builder.start()
    assert ready.wait(60)
    with pytest.raises(TimeoutError), building(folder, 0):
        pass
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert len(list(folder.glob("g*"))) == 2
    assert str(BitIndex.open(folder).search(queries, 5)) == str(before)
    with building(folder, 10):
        current = build(folder, [(np.arange(100), rows)], rows, Typical(np.ones(12)), seq=8, fingerprint="")
        assert len(list(folder.glob("g*"))) == 3  # both others are in their grace period
        collect_garbage(folder, current.manifest.name, grace=0.0)
    assert [path.name for path in folder.glob("g*")] == [current.manifest.name]
    assert str(BitIndex.open(folder).search(queries, 5)) == str(before)


def test_a_builder_that_cannot_write_leaves_nothing(tmp_path, monkeypatch):
    folder, random = tmp_path / "index", np.random.default_rng(0)
    rows = some_rows(random, 100)
    name = bits(folder, np.arange(100), rows).manifest.name

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with building(folder, 10), pytest.raises(OSError, match="No space left"):
        build(folder, [(np.arange(100), rows)], rows, Typical(np.ones(12)), seq=8, fingerprint="")
    assert [path.name for path in folder.glob("g*")] == [name]
    assert Manifest.read(folder).name == name
    assert sorted(path.name for path in folder.iterdir()) == ["builder.lock", name, MANIFEST]


def test_a_manifest_of_another_format_is_refused(tmp_path):
    index = bits(tmp_path, np.arange(10), some_rows(np.random.default_rng(0), 10))
    path = tmp_path / MANIFEST
    content = json.loads(path.read_bytes())
    content["content"]["format"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="checksum"):
        BitIndex.open(tmp_path)
    content["crc32"] = zlib.crc32(json.dumps(content["content"], sort_keys=True).encode())
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="its format is 1"):
        BitIndex.open(tmp_path)
    assert index.search(some_queries(np.random.default_rng(0), 1), 3)
