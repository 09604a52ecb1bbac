"""The packed cache: what is read is exactly what was written, or nothing."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.adapter import HeadTensors, LowRank
from adapterhub.engine._delta import Delta, Folded, Gain
from adapterhub.engine._flat import compact
from adapterhub.engine._packed import PackedCache
from adapterhub.errors import InputError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool]
MANY = settings(max_examples=60, deadline=None)


def name_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def cache_in(folder, fingerprint="base", dtype=torch.float32, **options):
    return PackedCache(folder, fingerprint, dtype, **options)


def adapter(number=0, rank=4, modules=3, width=8):
    draw = torch.Generator().manual_seed(number)
    deltas = {
        f"layers.{index}.q_proj": Delta(
            LowRank(torch.randn(rank, width, generator=draw), torch.randn(rank, 2 * width, generator=draw))
        )
        for index in range(modules)
    }
    return Folded(name_of(number), deltas, HeadTensors("token", torch.randn(3, width, generator=draw)))


@st.composite
def tensors(draw):
    """Any bits of any dtype and shape, NaN and negative zero among them, contiguous or not."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if dtype is torch.bool:
        tensor = torch.randint(0, 2, shape, generator=generator).bool()
    else:
        bits = torch.randint(0, 256, [*shape, dtype.itemsize], dtype=torch.uint8, generator=generator)
        tensor = bits.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if tensor.dim() and draw(st.booleans()) else tensor


def maybe(strategy):
    return st.none() | strategy


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LOWS = st.builds(
    LowRank, tensors(), tensors(), st.sampled_from(["input", "output", "tokens"]), TEXT, *[maybe(tensors())] * 3
)
GAINS = st.builds(Gain, st.sampled_from(["input", "output", "normalised"]), tensors())
DELTAS = st.builds(Delta, maybe(LOWS), maybe(GAINS), maybe(tensors()))
HEADS = st.builds(HeadTensors, st.sampled_from(["sequence", "token"]), tensors(), maybe(tensors()))
FOLDED = st.builds(
    Folded,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.dictionaries(TEXT, DELTAS, max_size=4),
    maybe(HEADS),
)


def bits(value):
    """All that a value holds, tensors as their bytes, so that NaN equals itself and -0.0 differs from 0.0."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if is_dataclass(value):
        return type(value), [bits(getattr(value, item.name)) for item in fields(value)]
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    return value


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        return [found for item in fields(value) for found in tensors_in(getattr(value, item.name))]
    return [found for item in value.values() for found in tensors_in(item)] if isinstance(value, dict) else []


@MANY
@given(FOLDED)
def test_what_is_read_is_what_was_written(folded):
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_in(folder)
        assert cache.write(folded)
        read = cache.read(folded.sha256)
    assert bits(read) == bits(folded)


@MANY
@given(FOLDED)
def test_a_compact_adapter_is_the_same_on_one_buffer(folded):
    tight = compact(folded)
    assert bits(tight) == bits(folded)
    storages = {found.untyped_storage().data_ptr(): found.untyped_storage() for found in tensors_in(tight)}
    assert len(storages) <= 1
    stacks = {(found.dtype, found.shape) for found in tensors_in(tight)}
    assert sum(storage.nbytes() for storage in storages.values()) <= tight.nbytes + 64 * len(stacks)


def test_another_base_dtype_or_adapter_finds_nothing(tmp_path):
    cache_in(tmp_path).write(adapter())
    assert cache_in(tmp_path, "other").read(name_of(0)) is None
    assert cache_in(tmp_path, dtype=torch.bfloat16).read(name_of(0)) is None
    assert cache_in(tmp_path).read(name_of(1)) is None
    assert cache_in(tmp_path).read("../" + name_of(0)) is None
    assert cache_in(tmp_path).read(name_of(0)) is not None


@pytest.mark.parametrize("other", ["other base", "other adapter"])
def test_a_file_under_the_name_of_another_is_not_taken_for_it(tmp_path, other):
    cache = cache_in(tmp_path)
    cache.write(adapter(0))
    (right,) = tmp_path.iterdir()
    foreign = cache_in(tmp_path / "aside", "other" if other == "other base" else "base")
    foreign.write(adapter(0 if other == "other base" else 1))
    (wrong,) = (tmp_path / "aside").iterdir()
    wrong.replace(right)
    assert cache.read(name_of(0)) is None
    assert not right.exists()


def test_a_release_with_other_fields_makes_its_own_files(tmp_path, monkeypatch):
    cache_in(tmp_path).write(adapter())
    monkeypatch.setattr("adapterhub.engine._packed.SCHEMA", [["Folded", "sha256"]])
    assert cache_in(tmp_path).read(name_of(0)) is None


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_deleted_and_made_again(tmp_path, seed):
    rng = random.Random(seed)
    cache = cache_in(tmp_path)
    cache.write(adapter())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    kind = rng.choice(["flip", "cut", "grow", "empty", "swap", "zero"])
    place = rng.choice([rng.randrange(80), rng.randrange(len(whole))])
    damaged = {
        "flip": whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :],
        "cut": whole[:place],
        "grow": whole + b"\0" * rng.randint(1, 100),
        "empty": b"",
        "swap": whole[place:] + whole[:place] if place else whole[::-1],
        "zero": bytes(len(whole)),
    }[kind]
    path.write_bytes(damaged)
    assert cache.read(name_of(0)) is None
    assert not path.exists()
    assert cache.write(adapter())
    assert bits(cache.read(name_of(0))) == bits(adapter())


def test_what_nobody_uses_is_freed_without_the_garbage_collector(tmp_path):
    cache = cache_in(tmp_path)
    cache.write(adapter())
    gc.collect()
    gc.disable()
    try:
        read = cache.read(name_of(0))
        alive = weakref.ref(read.deltas["layers.0.q_proj"].low.down)
        assert alive() is not None
        del read
        assert alive() is None
    finally:
        gc.enable()


def size_of_one(tmp_path):
    cache_in(tmp_path / "one").write(adapter())
    return next((tmp_path / "one").iterdir()).stat().st_size


def test_the_least_recently_used_files_make_room(tmp_path):
    folder, size = tmp_path / "cache", size_of_one(tmp_path)
    cache = cache_in(folder, max_bytes=4 * size + size // 2)
    for number in range(4):
        assert cache.write(adapter(number))
    assert cache.read(name_of(0)) is not None  # the oldest, but just used
    (folder / "notes.txt").write_text("not ours")
    assert cache.write(adapter(4))
    found = [number for number in range(5) if cache.read(name_of(number)) is not None]
    assert 1 not in found
    assert {0, 4} <= set(found)
    assert (folder / "notes.txt").exists()


def test_the_folder_stays_within_its_budget_whoever_writes(tmp_path):
    folder, size = tmp_path / "cache", size_of_one(tmp_path)
    budget = 32 * size
    caches = [cache_in(folder, base, max_bytes=budget) for base in "abc"]
    for number in range(96):
        caches[number % 3].write(adapter(number))
        total = sum(path.stat().st_size for path in folder.iterdir())
        assert total <= budget + 3 * (budget // 16 + size)  # each lists the folder after a sixteenth of the budget
    cache_in(folder, "d", max_bytes=budget).write(adapter(99))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= budget


def test_an_adapter_beyond_the_budget_is_not_written(tmp_path):
    cache = cache_in(tmp_path, max_bytes=100)
    assert not cache.write(adapter())
    assert cache.read(name_of(0)) is None
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_away_and_what_is_being_written_is_not(tmp_path):
    old, young = tmp_path / ".a.packed.part", tmp_path / ".b.packed.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    cache = cache_in(tmp_path)
    assert cache.write(adapter())
    assert not old.exists()
    assert young.exists()
    assert bits(cache.read(name_of(0))) == bits(adapter())


def test_a_folder_that_cannot_be_written_to_is_no_cache_and_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = cache_in(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        assert not cache.write(adapter(0))
        assert not cache.write(adapter(1))
    assert cache.read(name_of(0)) is None
    assert len(caplog.records) == 1
    assert "cannot be written to" in caplog.text


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    cache = cache_in(tmp_path)
    monkeypatch.setattr(Path, "replace", full)
    assert not cache.write(adapter())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert cache.write(adapter())


def test_a_folder_that_is_deleted_meanwhile_is_made_again(tmp_path):
    cache = cache_in(tmp_path / "cache")
    cache.write(adapter(0))
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    assert cache.read(name_of(0)) is None
    assert cache.write(adapter(0))
    assert cache.read(name_of(0)) is not None


def test_many_writers_and_readers_of_one_file(tmp_path):
    wrong = []

    def work():
        cache = cache_in(tmp_path)
        for _ in range(20):
            cache.write(adapter())
            read = cache.read(name_of(0))
            if read is not None and bits(read) != bits(adapter()):
                wrong.append(read)
            for path in tmp_path.glob("*.packed"):
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_and_temporary_ones(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import pathlib, test_engine_packed as t\n"
        "cache = t.cache_in(pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "for number in range(10**6): cache.write(t.adapter(number, modules=20, width=512))\n"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *paths], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = cache_in(tmp_path)
    written = list(tmp_path.glob("*.packed"))
    for number in range(len(written)):
        assert bits(cache.read(name_of(number))) == bits(adapter(number, modules=20, width=512))
    left = [path for path in tmp_path.iterdir() if path not in written]
    assert all(path.name.endswith(".packed.part") for path in left)
    for path in left:
        os.utime(path, (time.time() - 3600,) * 2)
    cache.write(adapter(10**6))
    assert not [path for path in left if path.exists()]


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="max_bytes"):
        cache_in(tmp_path, max_bytes=-1)
    with pytest.raises(InputError, match="content hash"):
        cache_in(tmp_path).write(Folded("../escape"))
    with pytest.raises(InputError, match="complex64"):
        cache_in(tmp_path).write(Folded(name_of(0), {"q": Delta(shift=torch.zeros(2, dtype=torch.complex64))}))
    assert list(tmp_path.iterdir()) == []
