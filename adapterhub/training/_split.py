"""The part of the data that is set aside for validation, and no text on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from adapterhub.errors import DataError
from adapterhub.training._examples import Example

__all__ = ["sample", "split", "without"]


def _key(text: str) -> str:
    return " ".join(text.split())


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def split(examples: Sequence[Example], fraction: float, most: int) -> tuple[list[Example], list[Example]]:
    """Set a part aside for validation by the hash of the text, so equal texts fall on one side.

    Args:
        examples: All examples.
        fraction: Share of the distinct texts to set aside, in (0, 1).
        most: Distinct texts to set aside at most.

    Returns:
        Training and validation examples, each in their order.

    Raises:
        DataError: If there are fewer than two distinct texts.
    """
    texts = sorted({_key(example.text) for example in examples}, key=_rank)
    if len(texts) < 2:
        raise DataError(
            f"Setting a validation part aside needs 2 different inputs. Found {len(texts)}. "
            "Add rows or pass validation=0."
        )
    chosen = set(texts[: min(most, max(1, round(fraction * len(texts))), len(texts) - 1)])
    kept = [example for example in examples if _key(example.text) not in chosen]
    return kept, [example for example in examples if _key(example.text) in chosen]


def without(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The examples whose text is not among the others'."""
    texts = {_key(example.text) for example in others}
    return [example for example in examples if _key(example.text) not in texts]


def sample(examples: Sequence[Example], most: int) -> list[Example]:
    """At most that many examples, chosen by the hash of their text, in their order."""
    if len(examples) <= most:
        return list(examples)
    order = sorted(range(len(examples)), key=lambda position: _rank(_key(examples[position].text)))
    return [examples[position] for position in sorted(order[:most])]
