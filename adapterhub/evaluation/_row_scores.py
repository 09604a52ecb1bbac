"""What each row adds to its head's main metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub.errors import InputError, MissingExtraError
from adapterhub.evaluation._metrics import MAIN_METRIC, folded, score, word_f1
from adapterhub.task import Head

__all__ = ["row_scores"]


def row_scores(
    head: Head, predictions: Sequence[Any], references: Sequence[Any], metric: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numbers and weights of rows with `sum(numbers) / sum(weights)` = the metric, for `Outcome`.

    Classification and generation: 1 or 0 for a right or wrong answer, weight 1; a generating head's `f1`: that of the
    row. Regression: the absolute error. Token classification: twice the entities found right, weighted by the entities
    predicted and true (micro F1).

    Args:
        head: The head that answered.
        predictions: One answer a row, as for `score`.
        references: One right answer a row.
        metric: The head's main metric unless given; `f1` of a generating head has rows as well.

    Raises:
        InputError: If `score` refuses them, or the metric has no rows.
        MissingExtraError: If the metric's library is not installed.
    """
    score(head, predictions, references)  # refuses what is not of the head's kind
    known = [MAIN_METRIC[head], *(["f1"] if head == "generation" else [])]
    if metric not in (None, *known):
        raise InputError(f"Rows of a {head} head add up to {' or '.join(known)}. Found {metric!r}. Choose one.")
    pairs = list(zip(predictions, references, strict=True))
    if head == "token-classification":
        counts = [_entity_counts(told, right) for told, right in pairs]
        return tuple(2.0 * both for both, _ in counts), tuple(float(all_of) for _, all_of in counts)
    if head == "regression":
        numbers = [abs(float(told) - float(right)) for told, right in pairs]
    elif metric == "f1":
        numbers = [word_f1(told, _accepted(right)) for told, right in pairs]
    elif head == "classification":
        numbers = [float(told == right) for told, right in pairs]
    else:
        numbers = [float(folded(told) in {folded(text) for text in _accepted(right)}) for told, right in pairs]
    return tuple(numbers), (1.0,) * len(numbers)


def _accepted(reference: Any) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)


def _entity_counts(told: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
    """Entities found right, and entities predicted and true together."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ModuleNotFoundError as error:
        raise MissingExtraError("Scoring entities", "evaluation") from error
    found, true = set(get_entities(list(told))), set(get_entities(list(right)))
    return len(found & true), len(found) + len(true)
