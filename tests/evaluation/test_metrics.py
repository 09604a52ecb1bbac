"""Every metric against values worked by hand and against a slow one written from its definition."""

from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import InputError, MissingExtraError
from adapterhub.evaluation import LOWER_IS_BETTER, MAIN_METRIC, score

words = st.lists(st.sampled_from(["the", "cat", "sat", "mat", "on"]), min_size=1, max_size=8).map(" ".join)
tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
numbers = st.floats(-100, 100).map(lambda value: round(value, 3))


def pairs_of(values: st.SearchStrategy, least: int = 1) -> st.SearchStrategy:
    return st.lists(st.tuples(values, values), min_size=least, max_size=6)


# Generation


def test_exact_match_folds_white_space_and_keeps_the_case():
    found = score("generation", ["Baku", " New  York\n", "paris", "The Hague"], ["Baku", "New York", "Paris", "Hague."])
    assert found["exact_match"] == 0.5
    assert found["exact_match_normalized"] == 1.0


def test_any_of_several_references_is_right():
    found = score("generation", ["UK", "no", "x"], [["Britain", "UK"], "yes", ["x"]])
    assert found["exact_match"] == pytest.approx(2 / 3)


def test_normalized_as_squad_does():
    found = score("generation", ["an apple, the pear", "another"], ["apple pear", "other"])
    assert found["exact_match_normalized"] == 0.5  # `an` is an article only as a word


def test_identical_texts_have_the_best_scores_even_if_short():
    assert score("generation", ["Baku"], ["Baku"]) == pytest.approx(
        {"exact_match": 1, "exact_match_normalized": 1, "f1": 1, "bleu": 100, "chrf": 100}
    )


def test_an_empty_answer_scores_nothing():
    assert set(score("generation", [""], ["a cat"]).values()) == {0.0}


def ngrams(units: list[str] | str, order: int) -> Counter:
    return Counter(tuple(units[i : i + order]) for i in range(len(units) - order + 1))


def slow_bleu(pairs: list[tuple[str, str]]) -> float:
    logs, smoothing = [], 1.0
    for order in range(1, 5):
        counts = [(ngrams(told.split(), order), ngrams(right.split(), order)) for told, right in pairs]
        total = sum(told.total() for told, _ in counts)
        hits = sum((told & right).total() for told, right in counts)
        if not total:
            break
        if not hits:
            smoothing *= 2
        logs.append(math.log(hits / total if hits else 1 / (smoothing * total)))
        if order == 1 and not any((ngrams(a.split(), n) & ngrams(b.split(), n)) for a, b in pairs for n in range(1, 5)):
            return 0.0
    told, right = (sum(len(pair[side].split()) for pair in pairs) for side in (0, 1))
    return 100 * min(1.0, math.exp(1 - right / told)) * math.exp(sum(logs) / len(logs))


def slow_chrf(pairs: list[tuple[str, str]]) -> float:
    precisions, recalls = [], []
    for order in range(1, 7):
        counts = [tuple(ngrams(text.replace(" ", ""), order) for text in pair) for pair in pairs]
        hits = sum((told & right).total() for told, right in counts)
        right = sum(pair[1].total() for pair in counts)
        told = sum(pair[0].total() for pair in counts if pair[1])  # as the authors' script: no such n-grams, no count
        if told and right:
            precisions.append(hits / told)
            recalls.append(hits / right)
    precision, recall = np.mean(precisions), np.mean(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@settings(max_examples=50, deadline=None)
@given(pairs_of(words))
def test_bleu_and_chrf_equal_their_definitions(pairs: list[tuple[str, str]]):
    found = score("generation", *zip(*pairs, strict=True))
    assert found["bleu"] == pytest.approx(slow_bleu(pairs))
    assert found["chrf"] == pytest.approx(slow_chrf(pairs))


def test_one_more_reference_never_hurts_and_rows_may_have_different_numbers():
    told, right = ["the cat sat on the mat", "a dog"], ["a cat is on a mat", "a dog"]
    alone = score("generation", told, right)
    more = score("generation", told, [[right[0], "the cat sat on a mat"], [right[1]]])
    assert more["bleu"] > alone["bleu"]
    assert more["chrf"] > alone["chrf"]


# Classification


def test_accuracy_and_macro_f1_by_hand():
    # yes: 2 of 3 told right, 2 of 2 found: F1 .8; no: 1 of 1, 1 of 2: F1 2/3; maybe never occurs
    found = score("classification", ["yes", "yes", "yes", "no"], ["yes", "yes", "no", "no"], ["no", "yes", "maybe"])
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (0.8 + 2 / 3) / 2})


@settings(max_examples=50, deadline=None)
@given(pairs_of(st.sampled_from("abc")))
def test_macro_f1_equals_its_definition(pairs: list[tuple[str, str]]):
    told, right = zip(*pairs, strict=True)
    scores = []
    for label in set(told) | set(right):
        hits = sum(a == b == label for a, b in pairs)
        scores.append(2 * hits / (told.count(label) + right.count(label)))
    found = score("classification", told, right, "abc")
    assert found["macro_f1"] == pytest.approx(np.mean(scores))
    assert found["accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))


def test_an_answer_outside_the_labels_is_wrong_but_no_class():
    found = score("classification", ["a", "?"], ["a", "b"], ["a", "b"])
    assert found == {"accuracy": 0.5, "macro_f1": 0.5}


# Token classification


def slow_entities(row: list[str]) -> set[tuple[str, int, int]]:
    """An entity begins at B, and at I after another type or O; it goes on over I of its type."""
    entities, start = set(), None
    for i, tag in enumerate([*row, "O"]):
        goes_on = start is not None and tag == f"I-{row[start][2:]}"
        if start is not None and not goes_on:
            entities.add((row[start][2:], start, i))
            start = None
        if tag != "O" and not goes_on:
            start = i
    return entities


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=8), min_size=1, max_size=4))
def test_entity_f1_equals_its_definition(rows: list[list[tuple[str, str]]]):
    told, right = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    both = [(slow_entities(a), slow_entities(b)) for a, b in zip(told, right, strict=True)]
    hits, n_told, n_right = (sum(len(s) for s in sets) for sets in ([a & b for a, b in both], *zip(*both, strict=True)))
    found = score("token-classification", told, right)
    assert found["entity_precision"] == pytest.approx(hits / n_told if n_told else 0)
    assert found["entity_recall"] == pytest.approx(hits / n_right if n_right else 0)
    assert found["entity_f1"] == pytest.approx(2 * hits / (n_told + n_right) if hits else 0)
    assert found["accuracy"] == pytest.approx(np.mean([a == b for row in rows for a, b in row]))


def test_entities_by_hand():
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    told = [["B-PER", "I-PER", "O", "B-PER"], ["O", "O"]]
    assert score("token-classification", told, right, ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]) == pytest.approx(
        {"entity_precision": 1 / 2, "entity_recall": 1 / 3, "entity_f1": 0.4, "accuracy": 4 / 6}
    )


def test_rows_do_not_run_into_one_another():
    found = score("token-classification", [["B-PER"], ["I-PER"]], [["B-PER"], ["I-PER"]])
    assert found["entity_f1"] == 1.0
    assert score("token-classification", [["B-PER", "I-PER"]], [["B-PER", "B-PER"]])["entity_recall"] == 0.0


def test_no_entity_at_all_is_zero_without_a_warning():
    assert score("token-classification", [["O"]], [["O"]])["entity_f1"] == 0.0


# Regression


def test_regression_by_hand():
    found = score("regression", [1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert found == pytest.approx({"mae": 7 / 3, "pearson": 1.0})
    assert score("regression", [1, 2], [2, 1])["pearson"] == pytest.approx(-1)


@settings(max_examples=50, deadline=None)
@given(pairs_of(numbers, least=2))
def test_regression_equals_its_definition(pairs: list[tuple[float, float]]):
    told, right = (np.array(side) for side in zip(*pairs, strict=True))
    found = score("regression", list(told), list(right))
    assert found["mae"] == pytest.approx(np.mean(np.abs(told - right)))
    centred = told - told.mean(), right - right.mean()
    norms = [math.sqrt((side**2).sum()) for side in centred]
    if min(norms) > 1e-6:
        assert found["pearson"] == pytest.approx(centred[0] @ centred[1] / (norms[0] * norms[1]), abs=1e-6)
    assert -1 <= found["pearson"] <= 1


@pytest.mark.parametrize("told", [[3.0], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_a_constant_side_has_no_correlation(told: list[float]):
    assert score("regression", told, [1.0, 2.0, 5.0][: len(told)])["pearson"] == 0.0


def test_the_scale_of_the_numbers_does_not_matter_to_the_correlation():
    told, right = np.array([1.0, 2.0, 5.0]), [1.0, 3.0, 4.0]
    expected = score("regression", list(told), right)["pearson"]
    for scale in (1e-200, 1e-9, 1e9, 1e200):
        assert score("regression", list(told * scale), right)["pearson"] == pytest.approx(expected)


# What is refused


@pytest.mark.parametrize("head", list(MAIN_METRIC))
def test_sizes_must_agree(head: str):
    with pytest.raises(InputError, match="Found 2 predictions and 1 references"):
        score(head, ["a", "b"], ["a"])
    with pytest.raises(InputError, match="Found 0 predictions and 0 references"):
        score(head, [], [])


@pytest.mark.parametrize(
    ("head", "told", "right", "labels", "said"),
    [
        (
            "generation",
            ["a"],
            [[]],
            (),
            "A reference is a text or a list of texts. Found 1 that are not: reference 0: []",
        ),
        ("generation", ["a", None], ["a", "b"], (), "prediction 1: None"),
        ("generation", ["a"], [[1]], (), "reference 0: [1]"),
        ("classification", [1], ["a"], (), "A prediction is a label. Found 1 that are not: prediction 0: 1"),
        ("classification", ["yes"], ["yess"], ("yes", "no"), "reference 0: 'yess' Did you mean `yes`?"),
        ("token-classification", [["O"]], [["O", "O"]], (), "A prediction is as many tags as the reference."),
        (
            "token-classification",
            [["PER"]],
            [["O"]],
            (),
            "A prediction is a BIO tag. Found 1 that are not: prediction 0",
        ),
        ("token-classification", [["O"]], [["B-PRE"]], ("O", "B-PER"), "Did you mean `B-PER`?"),
        ("regression", [float("nan")], [1.0], (), "A prediction is a finite number. Found 1 that are not"),
        ("regression", [1.0], ["1"], (), "reference 0: '1'"),
        ("regresion", [1.0], [1.0], (), "Did you mean `regression`?"),
    ],
)
def test_values_that_the_head_does_not_answer_with(head: str, told: list, right: list, labels: tuple, said: str):
    with pytest.raises(InputError) as caught:
        score(head, told, right, labels)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("head", "values", "package"),
    [
        ("generation", ["a"], "sacrebleu.metrics"),
        ("classification", ["a"], "sklearn.metrics"),
        ("token-classification", [["O"]], "seqeval.metrics"),
        ("regression", [1.0], "sklearn.metrics"),
    ],
)
def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, head: str, values: list, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"adapterhub\[evaluation\]"):
        score(head, values, values)


def test_every_head_has_a_main_metric_among_its_own():
    rows = {"generation": ["a"], "classification": ["a"], "token-classification": [["B-A"]], "regression": [1.0]}
    for head, name in MAIN_METRIC.items():
        found = score(head, rows[head], rows[head])
        assert found[name] == (0.0 if name in LOWER_IS_BETTER else 1.0)
        assert all(type(value) is float for value in found.values())
