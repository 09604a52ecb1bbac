"""Groups: planted ones are found, joins and splits equal slow references, faults are told."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score
from workshop import COLOURS, card

from adapterhub.errors import CardError, InputError, TaskNotFoundError
from adapterhub.registry import Registry
from adapterhub.task import read_group
from adapterhub.training.grouping import (
    average_linkage,
    best_grouping,
    build_group,
    pairwise_loss,
    text_similarity,
    write_groups,
)


def blobs(seed: int, groups: int = 3, each: int = 5) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    kinds = [place % groups for place in range(groups * each)]
    vectors = generator.normal(size=(groups, 12))[kinds] + 0.5 * generator.normal(size=(len(kinds), 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T, kinds


def same_split(a: list[int], b: list[int]) -> bool:
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize("seed", range(8))
def test_three_planted_groups_are_found(seed: int) -> None:
    similarity, kinds = blobs(seed)
    found = average_linkage(similarity, 3)
    assert adjusted_rand_score(kinds, found) == 1
    assert found[0] == 0
    assert set(found) == {0, 1, 2}


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 14), st.integers(0, 2**16), st.data())
def test_it_joins_as_scipy_does(size: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, size))
    vectors = np.random.default_rng(seed).normal(size=(size, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    distance = 1 - (similarity + similarity.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    assert same_split(average_linkage(similarity, k), list(fcluster(tree, k, "maxclust")))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 10), st.integers(0, 2**16), st.data())
def test_the_order_of_the_tasks_does_not_matter(size: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, size))
    similarity, _ = blobs(seed, groups=size, each=1)
    order = data.draw(st.permutations(range(size)))
    turned = average_linkage(similarity[np.ix_(order, order)], k)
    assert same_split([average_linkage(similarity, k)[place] for place in order], turned)


def test_a_faulty_similarity_is_refused() -> None:
    for matrix in (np.ones((2, 3)), np.array([[1.0, 0.2], [0.9, 1.0]]), np.full((2, 2), np.nan)):
        with pytest.raises(InputError, match="square, symmetric, finite"):
            average_linkage(matrix, 1)
    for k in (0, 3):
        with pytest.raises(InputError, match=f"between 1 and the number of tasks, 2. Found {k}"):
            average_linkage(np.eye(2), k)


def brute_force(loss, tasks: int, k: int) -> float:
    """Every assignment of tasks to k groups."""
    best = np.inf
    for assignment in itertools.product(range(k), repeat=tasks):
        groups = [tuple(t for t in range(tasks) if assignment[t] == g) for g in range(k)]
        best = min(best, sum(loss(group) for group in groups if group))
    return float(best)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**16))
def test_the_grouping_is_the_best_of_all(tasks: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    losses = {
        group: float(generator.normal())
        for size in range(1, tasks + 1)
        for group in itertools.combinations(range(tasks), size)
    }
    for loss in (losses.__getitem__, pairwise_loss(generator.uniform(size=(tasks, tasks)))):
        found = best_grouping(loss, tasks, k)
        assert sorted(sum(found, ())) == list(range(tasks))
        assert 1 <= len(found) <= k
        assert sum(map(loss, found)) == pytest.approx(brute_force(loss, tasks, k))


def test_pairs_that_hurt_each_other_are_kept_apart() -> None:
    table = np.full((6, 6), 2.0)
    for one in ((0, 3), (1, 4, 5), (2,)):
        table[np.ix_(one, one)] = 0.5
    np.fill_diagonal(table, 1.0)
    assert best_grouping(pairwise_loss(table), 6, 6) == [(0, 3), (1, 4, 5), (2,)]
    assert len(best_grouping(pairwise_loss(table), 6, 2)) == 2
    asymmetric = np.array([[1.0, 0.1], [5.0, 1.0]])  # 0 gains from 1, which loses more
    assert best_grouping(pairwise_loss(asymmetric), 2, 2) == [(0,), (1,)]


def test_the_search_has_bounds() -> None:
    with pytest.raises(InputError, match=r"1 to 12 tasks\. Found 13"):
        best_grouping(len, 13, 2)
    with pytest.raises(InputError, match="`k` should be at least 1"):
        best_grouping(len, 3, 0)
    with pytest.raises(InputError, match="square, finite table"):
        pairwise_loss(np.ones((2, 3)))
    assert sorted(sum(best_grouping(lambda group: len(group) ** 2, 12, 4), ())) == list(range(12))


class _Words:
    """An encoder that counts words: texts with the same words are alike."""

    fingerprint = "words"
    dimension = 64

    def encode(self, texts):
        found = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in text.lower().split():
                row[sum(map(ord, word)) % self.dimension] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_texts_are_compared_by_their_mean_vectors() -> None:
    tasks = [
        card(name="tests/one", description="name the colour", examples=("red apple", "green apple")),
        card(name="tests/two", description="name the colour", examples=("green apple", "red apple")),
        card(name="tests/far", description="add two numbers"),
    ]
    found = text_similarity(tasks, _Words())
    wanted = []
    for task in tasks:
        mean = np.mean([_Words().encode([text])[0] for text in (task.description, *task.examples)], axis=0)
        wanted.append(mean / np.linalg.norm(mean))
    assert np.allclose(found, np.array(wanted) @ np.array(wanted).T, atol=1e-6)
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] < 0.5
    with pytest.raises(InputError, match="at least one task"):
        text_similarity([], _Words())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    registry.add(card("classification", name="words/mood"))
    registry.add(card("classification", name="words/topic", labels=COLOURS[:2]))
    registry.add(card("token-classification", name="words/names"))
    registry.add(card("generation", name="words/grammar"))
    registry.add(card("generation", name="else/where", base_model="other/base"))
    return registry


def test_a_group_checks_the_heads_of_its_tasks(registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        build_group(registry, "groups/classes", ["words/mood", "words/names", "words/grammar"], head="classification")
    assert "words/names (token-classification), words/grammar (generation)" in str(caught.value)
    assert "words/mood" not in str(caught.value)
    plain = build_group(registry, "groups/classes", ["words/topic", "words/mood"], head="classification")
    assert (plain.tasks, plain.head) == (("words/mood", "words/topic"), "classification")
    mixed = build_group(registry, "groups/mixed", ["words/mood", "words/names"])
    assert mixed.head is None
    assert "head" not in mixed.card


def test_unknown_names_are_errors_and_all_are_told(registry: Registry) -> None:
    with pytest.raises(TaskNotFoundError) as caught:
        build_group(registry, "groups/one", ["words/mod", "words/mood", "nothing/here"])
    assert "words/mod" in str(caught.value)
    assert "nothing/here" in str(caught.value)
    with pytest.raises(CardError):
        build_group(registry, "Bad Name", ["words/mood"])


def test_what_cannot_be_a_group_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError, match="Found none"):
        build_group(registry, "groups/one", [])
    with pytest.raises(InputError, match="Found words/mood twice"):
        build_group(registry, "groups/one", ["words/mood", "words/names", "words/mood"])
    with pytest.raises(InputError, match=r"have one base model\. Found _base, other/base"):
        build_group(registry, "groups/one", ["words/mood", "else/where"])


def test_a_group_is_written_as_a_card_that_is_read_back(registry: Registry, tmp_path: Path) -> None:
    group = build_group(registry, "groups/one", ["words/mood", "words/topic"])
    other = build_group(registry, "groups/two", ["words/names", "words/mood"])
    paths = write_groups([group, other], tmp_path / "out")
    assert paths == [tmp_path / "out/groups/one/_group.yaml", tmp_path / "out/groups/two/_group.yaml"]
    assert read_group(tmp_path / "out", "groups/one") == {"head": "classification", "base_model": "_base"}
    assert read_group(tmp_path / "out", "groups/two") == {"base_model": "_base"}
    assert "words/mood, words/topic" in paths[0].read_text()
    paths[0].unlink()
    with pytest.raises(InputError, match="Choose another folder"):
        write_groups([group, other], tmp_path / "out")
    assert not paths[0].exists()  # none is written where one is there
