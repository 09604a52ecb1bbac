"""Codes of rows: what they estimate, the order in which they are scanned, and counting in C and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_contract import clustered, some_queries, some_rows

from adapterhub.catalog import Queries, Rows, _counting, _halves, _linear, _shortlist, to_half, to_single
from adapterhub.catalog._ahead import ahead
from adapterhub.catalog._counting import InC, InNumpy
from adapterhub.catalog._scanned import CHUNK, Scanned, scanning_order
from adapterhub.catalog._shortlist import shortlist
from adapterhub.catalog._signature import BITS, DIGITS, WORDS, Signature
from adapterhub.compiled import NoKernelError

NONE = np.empty(0, dtype=np.intp)


@pytest.fixture(scope="module")
def kernel() -> InC:
    try:
        return InC()
    except NoKernelError as error:
        pytest.skip(f"no kernel here: {error}")


def scanned(rows: Rows, groups: int = 41, spread: np.ndarray | None = None) -> Scanned:
    width = rows.linear.shape[1]
    signature = Signature.of(rows, np.ones(width) if spread is None else spread)
    codes, slopes = signature.rows(rows.linear)
    order = scanning_order(rows.group, rows.offset, slopes[:, 0])
    slopes = np.ascontiguousarray(slopes[order].T)
    return Scanned(signature, order, codes[order], slopes, rows.offset[order], rows.group[order], np.zeros(groups))


def differing(one: np.ndarray, other: np.ndarray) -> int:
    return sum(int(word).bit_count() for word in np.bitwise_xor(one, other).tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 9), st.sampled_from([8, 64, 512]))
def test_a_scan_finds_the_rows_within_their_thresholds(kernel, seed, chunks, count, block):
    """Bit by bit in Python, in numpy and in C."""
    random = np.random.default_rng(seed)
    planes = random.integers(0, 2**64, (chunks, WORDS, 512), dtype=np.uint64)
    signs = random.integers(0, 2**64, (count, WORDS), dtype=np.uint64)
    planes[0, :, 0], planes[-1, :, -1] = signs[0], ~signs[-1]  # none differ, and all
    thresholds = random.choice([0, 100, 128, 140, 255], (chunks, count, 512 // block)).astype(np.uint8)
    rows = planes.transpose(0, 2, 1).reshape(-1, WORDS)
    most = thresholds.transpose(1, 0, 2).repeat(block, axis=2).reshape(count, -1)
    expected = {}
    for query, sign in enumerate(signs):
        counts = np.array([differing(row, sign) for row in rows]) % 256
        at = np.flatnonzero(counts <= most[query])
        expected[query] = list(zip(at.tolist(), counts[at].tolist(), strict=True))
    for way in (InNumpy(), kernel):
        found = {query: [] for query in range(count)}
        for query, at, counts in way.scan(planes, signs, thresholds):
            found[query] += list(zip(at.tolist(), counts.tolist(), strict=True))
        assert found == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5000))
def test_digits_are_counted_with_their_worth(kernel, seed, size):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, (300, 2 * WORDS), dtype=np.uint64)
    asked = [(random.integers(0, 300, size), random.integers(0, 2**64, (DIGITS, WORDS), dtype=np.uint64))] * 2
    asked.append((NONE, asked[0][1]))
    compiled, plain = (list(way.differing(codes, asked)) for way in (kernel, InNumpy()))
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    at, signs = asked[0]
    by_hand = [
        sum(
            (2 * differing(codes[row, :WORDS], sign) + differing(codes[row, WORDS:], sign)) << digit
            for digit, sign in enumerate(signs)
        )
        for row in at[:20]
    ]
    assert plain[0][:20].tolist() == by_hand


def test_shortlists_are_the_same_with_and_without_a_compiler(kernel):
    _, rows, queries = clustered(0, 7 * CHUNK + 3000)
    rows = scanned(rows)
    found = []
    for way in (kernel, InNumpy()):
        rows.counting = way
        found.append([places.tolist() for places in shortlist(rows, queries, 512, NONE)])
        found[-1] += [places.tolist() for places in shortlist(rows, queries, 512, np.arange(0, len(rows), 50))]
    assert found[0] == found[1]


def test_without_a_compiler_numpy_counts_and_reads(monkeypatch):
    def none():
        raise NoKernelError("no C compiler was found")

    monkeypatch.setattr(_counting, "kernel", none)
    monkeypatch.setattr(_linear, "kernel", none)
    assert isinstance(_counting.counting.__wrapped__(), InNumpy)
    assert isinstance(_linear._reading.__wrapped__(), _linear.InNumpy)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 40), st.integers(1, 9))
def test_rows_are_read_and_summed_alike_with_and_without_a_compiler(kernel, tmp_path_factory, data, count, width):
    raw = np.random.default_rng(count).integers(0, 2**64, (count, width), dtype=np.uint64)
    path = tmp_path_factory.mktemp("rows") / "linear"
    path.write_bytes(raw.tobytes())
    places = np.array(sorted(data.draw(st.sets(st.integers(0, max(count - 1, 0)), max_size=count))), dtype=np.intp)
    sums = [sum((int(word) ^ int(word) >> 32) * int(odd) for word, odd in zip(row, _linear._odd(width), strict=True))
            for row in raw]  # fmt: skip
    with path.open("r+b") as file:
        for way in (_linear.InNumpy(), _linear.InC()):
            found = way.gather(file.fileno(), places, 8 * width)
            assert found.tobytes() == raw[places].tobytes()
            assert way.sums(raw).tolist() == [each % 2**64 for each in sums]
        cut = data.draw(st.integers(0, 8 * width * count))
        file.truncate(cut)
        short = [way.gather(file.fileno(), places, 8 * width).tobytes() for way in (_linear.InNumpy(), _linear.InC())]
        whole = bool(len(places)) and cut >= 8 * width * (int(places[-1]) + 1)
        assert all((len(each) == 8 * width * len(places)) == (whole or not len(places)) for each in short)


@pytest.mark.parametrize("compiled", [True, False])
def test_every_half_is_converted_as_by_numpy(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(_halves, "_function", lambda _: None)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(-1, 31)
    found = to_single(every)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, every.astype(np.float32))
    assert to_half(found).tobytes() == every.tobytes()
    between = np.sort(found.reshape(-1))
    between = between[:-1] / 2 + between[1:] / 2  # of two as near the even one
    near = np.concatenate([between, np.nextafter(between, np.float32(np.inf)), np.nextafter(between, -np.float32(9e9))])
    np.testing.assert_array_equal(to_half(near), near.astype(np.float16))
    np.testing.assert_array_equal(to_half(near[::2][:6].reshape(2, 3).T), near[::2][:6].reshape(2, 3).T.astype("f2"))
    assert to_half(np.empty((0, 3), dtype=np.float32)).shape == (0, 3)


@pytest.mark.parametrize("way", [_linear.InNumpy, _linear.InC])
def test_a_file_that_cannot_be_read_is_an_error(kernel, way):
    with pytest.raises(OSError, match="Bad file descriptor"):
        way().gather(-1, np.array([0, 1]), 8)


@pytest.mark.parametrize("again", [1920, 6400])
def test_the_first_look_finds_every_row_above_its_cut(monkeypatch, again):
    """Thresholds of blocks are no reason to miss a row, whatever the groups."""
    random = np.random.default_rng(0)
    rows, queries = some_rows(random, CHUNK + 3333), some_queries(random, 7)
    looked = scanned(rows, groups=4)
    asked = looked.signature.queries(queries.linear)
    unusual = (10 * queries.groups).astype(np.float32)
    likely = list(_shortlist._first(looked, asked, unusual, None, again))
    for row, (at, known) in enumerate(likely):
        counts = [differing(code, asked.signs[row, -1]) for code in looked.codes[:, :WORDS]]
        slope = 2 * _shortlist._ROUGH * asked.means[row] * looked.slopes[0]
        base = looked.bases + unusual[row][looked.groups]
        estimates = base + slope * (BITS / 2 - np.array(counts, dtype=np.float32))
        assert 0.6 * again <= len(at) <= 1.5 * again
        above = np.sort(estimates)[-len(at)]
        np.testing.assert_array_equal(np.flatnonzero(estimates >= above), at)
        np.testing.assert_array_equal(known, base[at])


def test_what_is_hidden_takes_no_place():
    random = np.random.default_rng(1)
    rows, queries = some_rows(random, 7 * CHUNK), some_queries(random, 3)
    looked = scanned(rows, groups=4)
    hidden = np.sort(random.permutation(len(rows))[: len(rows) // 10])
    for places in shortlist(looked, queries, 300, hidden):
        assert len(places) == 300
        assert (np.diff(places) > 0).all()
        assert not np.isin(places, hidden).any()


def test_the_scanning_order_holds_every_row_once_and_groups_together():
    random = np.random.default_rng(2)
    groups = random.integers(0, 4, 3 * CHUNK).astype(np.int32)
    order = scanning_order(groups, random.random(len(groups), dtype=np.float32), random.random(len(groups)))
    assert np.sort(order).tolist() == list(range(len(groups)))
    crossings = np.diff(groups[order], prepend=0) != 0
    assert sum(crossings.reshape(-1, CHUNK).any(axis=1)) <= 3  # only in strips where a group ends


@pytest.mark.parametrize("width", [3, 64, 256, 300, 384])
def test_estimates_are_near_the_products(width):
    random = np.random.default_rng(3)
    spread = 1 / np.sqrt(np.arange(1, width + 1))
    linear = (random.standard_normal((2000, width)) * spread).astype(np.float16)
    rows = Rows(linear, np.zeros(2000, dtype=np.int32), np.zeros(2000, dtype=np.float32))
    looked = scanned(rows, groups=1)
    queries = Queries(random.standard_normal((20, width)), np.zeros((20, 1)))
    asked = looked.signature.queries(queries.linear)
    at = np.arange(2000)
    counted = InNumpy().differing(looked.codes, ((at, signs) for signs in asked.signs))
    for query, step, counts in zip(queries.linear, asked.steps, counted, strict=True):
        estimates = step * looked.slopes[1] * (_shortlist._LARGEST - counts)
        exact = (linear.astype(float) - linear.astype(float).mean(axis=0))[looked.order] @ query
        assert np.corrcoef(estimates, exact)[0, 1] > 0.85
        assert 0.85 < (estimates @ exact) / (exact @ exact) < 1.15


def test_a_query_is_rounded_the_same_whatever_other_queries_there_are():
    random = np.random.default_rng(4)
    signature = Signature.of(some_rows(random, 500, 384), np.ones(384))
    queries = random.standard_normal((50, 384))
    many = signature.queries(queries)
    for row, query in enumerate(queries):
        one = signature.queries(query[None])
        np.testing.assert_array_equal(one.signs[0], many.signs[row])
        assert (one.steps[0], one.means[0]) == (many.steps[row], many.means[row])


def test_items_are_made_ahead_in_their_order_and_faults_come_where_they_are():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number
        raise ValueError("the end")

    coming = ahead(items())
    assert [next(coming) for _ in range(5)] == made == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the end"):
        next(coming)
    assert list(ahead([])) == []
