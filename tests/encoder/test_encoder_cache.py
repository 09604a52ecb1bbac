from __future__ import annotations

import numpy as np
import pytest

from adapterhub.encoder import check_texts
from adapterhub.encoder._cache import EncodingCache
from adapterhub.errors import InputError


class Counter:
    def __init__(self):
        self.seen: list[str] = []

    def __call__(self, texts):
        self.seen.extend(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)


def test_each_text_is_computed_once_and_in_the_right_place():
    cache, compute = EncodingCache(8), Counter()
    first = cache.encode(["b", "aa", "b"], compute, 2)
    second = cache.encode(["aa", "c", "b"], compute, 2)
    assert compute.seen == ["b", "aa", "c"]
    np.testing.assert_array_equal(first, [[1, 98], [2, 97], [1, 98]])
    np.testing.assert_array_equal(second, [[2, 97], [1, 99], [1, 98]])


def test_the_least_recently_used_leaves_first():
    cache, compute = EncodingCache(2), Counter()
    cache.encode(["a", "b"], compute, 2)
    cache.encode(["a", "c"], compute, 2)  # b leaves
    compute.seen.clear()
    cache.encode(["a", "c"], compute, 2)
    assert not compute.seen
    cache.encode(["b"], compute, 2)
    assert compute.seen == ["b"]
    assert len(cache) == 2


def test_answers_are_the_callers_own():
    cache, compute = EncodingCache(2), Counter()
    cache.encode(["a"], compute, 2)[:] = 7
    np.testing.assert_array_equal(cache.encode(["a"], compute, 2), [[1, 97]])


def test_size_zero_keeps_nothing_and_no_texts_give_no_rows():
    cache, compute = EncodingCache(0), Counter()
    cache.encode(["a"], compute, 2)
    assert len(cache) == 0
    assert cache.encode([], compute, 2).shape == (0, 2)
    with pytest.raises(InputError, match="0 or more"):
        EncodingCache(-1)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["a", "", "b", " \n"], "row 1, 3"),
        ("a text", "list of strings"),
        (["a", 3, None], r"1 \(int\), 2 \(NoneType\)"),
    ],
)
def test_bad_texts_are_named(texts, rule):
    with pytest.raises(InputError, match=rule):
        check_texts(texts)
