"""Which way a metric is better, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from adapterhub.errors import InputError, did_you_mean

__all__ = ["Better", "better_of", "ceiling_of"]

Better = Literal["higher", "lower"]

_HIGHEST: Mapping[str, float] = {
    "accuracy": 1.0,
    "auroc": 1.0,
    "bleu": 100.0,
    "chrf": 100.0,
    "entity_f1": 1.0,
    "entity_precision": 1.0,
    "entity_recall": 1.0,
    "exact_match": 1.0,
    "exact_match_normalized": 1.0,
    "f1": 1.0,
    "macro_f1": 1.0,
    "mcc": 1.0,
    "pearson": 1.0,
    "qwk": 1.0,
    "spearman": 1.0,
}
"""Metrics of which more is better, and their largest value."""

_LOWER = frozenset({"loss", "mae", "mse", "perplexity", "rmse"})
"""Metrics of which less is better; they have no largest value."""

_PREFIXES = ("validation_", "train_", "test_")


def better_of(metric: str) -> Better:
    """Whether more or less of a metric is better, by its name; `validation_`, `train_` and `test_` do not count.

    Args:
        metric: Its name.

    Raises:
        InputError: If the name is not known.
    """
    name = _bare(metric)
    if name in _LOWER:
        return "lower"
    if name in _HIGHEST:
        return "higher"
    known = (*_HIGHEST, *_LOWER)
    raise InputError(
        f"A metric is known to be better higher or lower. Found `{metric}`.{did_you_mean(name, known)} "
        'Give `better="higher"` or `better="lower"` with it.'
    )


def ceiling_of(metric: str) -> float | None:
    """The largest value that a metric can have, or None where there is none or it is not known.

    Args:
        metric: Its name.
    """
    return _HIGHEST.get(_bare(metric))


def _bare(metric: str) -> str:
    for prefix in _PREFIXES:
        metric = metric.removeprefix(prefix)
    return metric
