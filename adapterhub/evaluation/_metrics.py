"""Metrics of the four heads, from the libraries made for them."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adapterhub.errors import InputError, MissingExtraError, did_you_mean
from adapterhub.task import Head

__all__ = ["LOWER_IS_BETTER", "MAIN_METRIC", "folded", "score", "word_f1"]

MAIN_METRIC: Mapping[Head, str] = {
    "generation": "exact_match",
    "classification": "accuracy",
    "token-classification": "entity_f1",
    "regression": "mae",
}
"""The metric that stands for a head where there is room for one."""

LOWER_IS_BETTER = frozenset({"mae"})
"""Metrics of which less is better; of all others more is."""

_TAG = re.compile(r"O|[BI]-.+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(
    head: Head, predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str] = ()
) -> dict[str, float]:
    """Measures predictions against references; a metric whose denominator is zero is 0.

    - `generation`: texts. `exact_match` folds white space and keeps the case; `exact_match_normalized` also drops case,
      ASCII punctuation and the articles a, an, the, as SQuAD does (Rajpurkar et al., 2016); `f1` is SQuAD's of the
      words so normalised, the best over the right answers; all in [0, 1]. `bleu` (Papineni et al., 2002) and `chrf`
      (Popović, 2015) are sacrebleu's of the whole corpus, in [0, 100]. Orders of n-grams that no prediction is long
      enough for are left out of `bleu`, so that one-word answers have one.
    - `classification`: labels. `accuracy` and `macro_f1`, the mean over the labels that occur.
    - `token-classification`: one BIO tag for each word. `entity_precision`, `entity_recall` and `entity_f1` over whole
      entities as seqeval and conlleval count them, and `accuracy` over the words.
    - `regression`: numbers. `mae`, and `pearson`, which is 0 where either side is constant.

    Args:
        head: The head that answered.
        predictions: One answer a row.
        references: One right answer a row; for `generation` a row may be a list of right answers.
        labels: The head's labels; the references are checked against them, if given.

    Raises:
        InputError: If there is no row, the sizes differ, or values are not what the head answers with.
        MissingExtraError: If the metric's library is not installed.
    """
    if head not in _SCORES:
        raise InputError(f"A head is one of {', '.join(_SCORES)}. Found `{head}`.{did_you_mean(head, _SCORES)}")
    if len(predictions) != len(references) or not len(references):
        raise InputError(
            f"There is one prediction for each reference, and at least one. Found {len(predictions)} predictions and "
            f"{len(references)} references. Give as many of both."
        )
    return _SCORES[head](predictions, references, labels)


def _generation(predictions: Sequence[Any], references: Sequence[Any], _: Sequence[str]) -> dict[str, float]:
    accepted = [[row] if isinstance(row, str) else list(row) for row in references]
    _check("a text", predictions, lambda text: isinstance(text, str), "prediction")
    _check("a text or a list of texts", accepted, _are_texts, "reference")
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ModuleNotFoundError as error:
        raise MissingExtraError("Scoring generated text", "evaluation") from error
    # sacrebleu wants the references by column; None fills rows that have fewer.
    columns = [[row[i] if i < len(row) else None for row in accepted] for i in range(max(map(len, accepted)))]
    return {
        "exact_match": _matches(predictions, accepted, folded),
        "exact_match_normalized": _matches(predictions, accepted, _normalized),
        "f1": sum(map(word_f1, predictions, accepted)) / len(accepted),
        "bleu": float(BLEU(effective_order=True).corpus_score(list(predictions), columns).score),
        "chrf": float(CHRF().corpus_score(list(predictions), columns).score),
    }


def _classification(predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    _check("a label", predictions, lambda label: isinstance(label, str), "prediction")
    _check("one of the labels", references, lambda label: isinstance(label, str), "reference", labels)
    try:
        from sklearn.metrics import accuracy_score, f1_score
    except ModuleNotFoundError as error:
        raise MissingExtraError("Scoring labels", "evaluation") from error
    # An answer outside the labels is wrong; it is no class of its own in the mean.
    occurring = set(references) | {label for label in predictions if not labels or label in labels}
    macro = f1_score(references, predictions, labels=sorted(occurring), average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(references, predictions)), "macro_f1": float(macro)}


def _token_classification(
    predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str]
) -> dict[str, float]:
    pairs = list(zip(predictions, references, strict=True))
    _check("as many tags as the reference", pairs, lambda pair: len(pair[0]) == len(pair[1]), "prediction")
    told, right = ([tag for row in rows for tag in row] for rows in (predictions, references))
    _check("a BIO tag", told, _is_tag, "prediction")
    _check("a BIO tag" if not labels else "one of the labels", right, _is_tag, "reference", labels)
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score
    except ModuleNotFoundError as error:
        raise MissingExtraError("Scoring entities", "evaluation") from error
    rows = [list(row) for row in references], [list(row) for row in predictions]
    return {
        "entity_f1": float(f1_score(*rows, zero_division=0)),
        "entity_precision": float(precision_score(*rows, zero_division=0)),
        "entity_recall": float(recall_score(*rows, zero_division=0)),
        "accuracy": sum(a == b for a, b in zip(told, right, strict=True)) / max(len(right), 1),
    }


def _regression(predictions: Sequence[Any], references: Sequence[Any], _: Sequence[str]) -> dict[str, float]:
    _check("a finite number", predictions, _is_number, "prediction")
    _check("a finite number", references, _is_number, "reference")
    try:
        from sklearn.metrics import mean_absolute_error
    except ModuleNotFoundError as error:
        raise MissingExtraError("Scoring numbers", "evaluation") from error
    return {"mae": float(mean_absolute_error(references, predictions)), "pearson": _pearson(predictions, references)}


_SCORES: Mapping[str, Callable[[Sequence[Any], Sequence[Any], Sequence[str]], dict[str, float]]] = {
    "generation": _generation,
    "classification": _classification,
    "token-classification": _token_classification,
    "regression": _regression,
}


def _check(
    rule: str, values: Sequence[Any], holds: Callable[[Any], bool], kind: str, labels: Sequence[str] = ()
) -> None:
    """Raises InputError with the first five values that break the rule, and how many there are."""
    wrong = [(row, value) for row, value in enumerate(values) if not holds(value) or (labels and value not in labels)]
    if wrong:
        found = "; ".join(f"{kind} {row}: {value!r}{did_you_mean(str(value), labels)}" for row, value in wrong[:5])
        known = f" ({', '.join(labels)})" if labels else ""
        raise InputError(f"A {kind} is {rule}{known}. Found {len(wrong)} that are not: {found}. Correct them.")


def _are_texts(row: Any) -> bool:
    return len(row) > 0 and all(isinstance(text, str) for text in row)


def _is_tag(value: Any) -> bool:
    return isinstance(value, str) and _TAG.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def _matches(predictions: Sequence[str], accepted: Sequence[Sequence[str]], fold: Callable[[str], str]) -> float:
    pairs = zip(predictions, accepted, strict=True)
    return sum(fold(text) in map(fold, answers) for text, answers in pairs) / len(predictions)


def folded(text: str) -> str:
    """The text with every run of white space as one blank, and none at its ends."""
    return " ".join(text.split())


def word_f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of the normalised words, the best over the right answers.

    Args:
        prediction: A text.
        answers: Right answers.
    """
    told = collections.Counter(_normalized(prediction).split())
    return max(_overlap(told, collections.Counter(_normalized(text).split())) for text in answers)


def _overlap(told: collections.Counter[str], right: collections.Counter[str]) -> float:
    total = told.total() + right.total()
    return 2 * (told & right).total() / total if total else 1.0


def _normalized(text: str) -> str:
    return folded(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def _pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    both = np.asarray([predictions, references], dtype=np.float64)  # (2, rows)
    if (np.ptp(both, axis=1) == 0).any():
        return 0.0
    both -= both.mean(axis=1, keepdims=True)
    both /= np.abs(both).max(axis=1, keepdims=True)  # so that neither a tiny nor a huge spread is lost when squared
    return float(np.clip(both[0] @ both[1] / np.sqrt((both**2).sum(axis=1).prod()), -1.0, 1.0))
