"""Which token answers for which word; the same rule for training and for inference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from adapterhub.errors import InputError

__all__ = ["align_words", "locate_words", "positions", "split_words"]

_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Split raw text into words and single punctuation marks.

    Args:
        text: Any text.

    Returns:
        Word, start and end (character positions in `text`, end exclusive), in order.
    """
    return [(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def locate_words(text: str, words: Iterable[str]) -> list[tuple[int, int]]:
    """Find words in the text that they come from.

    Args:
        text: The text.
        words: Words of it, in order.

    Returns:
        Start and end of each word in the text.

    Raises:
        InputError: If a word does not occur behind the one before it.
    """
    spans: list[tuple[int, int]] = []
    end = 0
    for word in words:
        start = text.find(word, end)
        if start < 0:
            raise InputError(
                f"Words occur in their text, in order. Found no {word!r} in {text[end:]!r}. Correct the row."
            )
        end = start + len(word)
        spans.append((start, end))
    return spans


def align_words(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], *, last: bool
) -> tuple[list[int], list[int]]:
    """Tokenise a text and find the token that stands for each word.

    A decoder has read a whole word only at its last token, an encoder marks words at their first (Devlin et al. 2019).
    Tokens are matched to words by character offsets, so byte-level tokenizers need no prefix space.

    Args:
        tokenizer: A fast tokenizer.
        text: The text as the model reads it, prompt included.
        spans: Start and end of each word in `text`, in order.
        last: Whether the last token of a word stands for it (decoders) or the first (encoders); see `is_decoder`.

    Returns:
        The token ids with the tokenizer's special tokens, and for each word the index of its token, -1 where no token
        covers it.
    """
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return list(encoding["input_ids"]), positions(encoding["offset_mapping"], spans, last=last)


def positions(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], *, last: bool) -> list[int]:
    """The index of each word's token, from the character offsets of the tokens; -1 where no token covers a word."""
    found = [-1] * len(spans)
    first = 0
    for index, (start, end) in enumerate(offsets):
        if start == end:  # special tokens cover nothing
            continue
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        word = first
        while word < len(spans) and spans[word][0] < end:
            if last or found[word] < 0:
                found[word] = index
            word += 1
    return found
