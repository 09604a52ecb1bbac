"""Examples to token ids: the prompt of the card, the answer behind it, and nothing cut without being counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.task import Task
from adapterhub.training._examples import Example
from adapterhub.training._words import locate_words, positions

__all__ = ["IGNORED", "Features", "RowEncoder", "answer_text", "encode_prompt"]

IGNORED = -100
"""The label of a token that takes no part in the loss; PyTorch's default."""


@dataclass(frozen=True)
class Features:
    """One example as the model reads it.

    Args:
        example: Where it came from.
        ids: Token ids, special tokens included.
        labels: A label for each token (generation and token classification), else empty.
        prompt: Number of ids before the answer (generation).
    """

    example: Example
    ids: list[int]
    labels: list[int]
    prompt: int = 0


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt that an answer will follow: with special tokens, but without a closing end token.

    Args:
        tokenizer: The base's tokenizer.
        prompt: The prompt as the card formats it.

    Returns:
        Token ids.
    """
    return _open(tokenizer, list(tokenizer(prompt, verbose=False)["input_ids"]))


def answer_text(prompt: str, output: str) -> str:
    """The answer as it follows the prompt: behind one space, unless the prompt ends in white space."""
    output = output.strip()
    return output if prompt[-1:].isspace() else " " + output


def _open(tokenizer: Any, ids: list[int]) -> list[int]:
    end = tokenizer.eos_token_id
    while len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    return ids


class RowEncoder:
    """Turns the examples of one task into features.

    Texts that do not fit lose their beginning, never the prompt around them and never the answer.

    Args:
        tokenizer: The base's fast tokenizer.
        task: The card.
        length: The most tokens of a row.
        last: Whether a word's last token carries its tag; see `is_decoder`.
    """

    def __init__(self, tokenizer: Any, task: Task, length: int, *, last: bool) -> None:
        self._tokenizer = tokenizer
        self._task = task
        self._length = length
        self._last = last
        self.truncated = 0

    def __call__(self, examples: Sequence[Example]) -> tuple[list[Features], list[str]]:
        """Encode examples; `truncated` counts the texts that lost their beginning.

        Returns:
            The features, and a sentence for each example that does not fit even without its text.
        """
        kinds: dict[str, Callable[[Sequence[Example]], list[Features | str]]]
        kinds = {"generation": self._answers, "token-classification": self._words}
        found = kinds.get(self._task.head, self._texts)(examples)
        return [item for item in found if isinstance(item, Features)], [item for item in found if isinstance(item, str)]

    def _batch(self, texts: list[str], **options: bool) -> Any:
        return self._tokenizer(texts, verbose=False, **options) if texts else {"input_ids": [], "offset_mapping": []}

    def _texts(self, examples: Sequence[Example]) -> list[Features | str]:
        encoded = self._batch([self._task.format(example.text) for example in examples])["input_ids"]
        found: list[Features | str] = []
        for example, ids in zip(examples, encoded, strict=True):
            fitting = ids if len(ids) <= self._length else self._shorten(example, ids, self._length, self._closed)
            found.append(self._unfit(example, len(ids)) if fitting is None else Features(example, fitting, []))
        return found

    def _answers(self, examples: Sequence[Example]) -> list[Features | str]:
        prompts = [self._task.format(example.text) for example in examples]
        answers = [answer_text(prompt, e.answers[0]) for prompt, e in zip(prompts, examples, strict=True)]
        befores = self._batch(prompts)["input_ids"]
        # Tokenised apart, so that the boundary lies where it lies at inference.
        afters = self._batch(answers, add_special_tokens=False)["input_ids"]
        end = [self._tokenizer.eos_token_id]
        found: list[Features | str] = []
        for example, before, after in zip(examples, befores, afters, strict=True):
            room = self._length - len(after) - 1
            opened = _open(self._tokenizer, before)
            ids = opened if len(opened) <= room else self._shorten(example, opened, room, self._opened)
            if ids is None:
                found.append(self._unfit(example, len(opened) + len(after) + 1))
            else:
                found.append(Features(example, ids + after + end, [IGNORED] * len(ids) + after + end, len(ids)))
        return found

    def _closed(self, text: str) -> list[int]:
        return list(self._tokenizer(self._task.format(text), verbose=False)["input_ids"])

    def _opened(self, text: str) -> list[int]:
        return encode_prompt(self._tokenizer, self._task.format(text))

    def _shorten(
        self, example: Example, ids: list[int], room: int, encode: Callable[[str], list[int]]
    ) -> list[int] | None:
        """The ids with the longest end of the text that fits, or None where nothing of it does."""
        encoding = self._tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        drop = len(ids) - room
        while drop < len(offsets):
            shorter = encode(example.text[offsets[drop][0] :].lstrip())
            if len(shorter) <= room:
                self.truncated += 1
                return shorter
            drop += len(shorter) - room
        return None

    def _words(self, examples: Sequence[Example]) -> list[Features | str]:
        texts = [self._task.format(example.text) for example in examples]
        encoded = self._batch(texts, return_offsets_mapping=True)
        found: list[Features | str] = []
        for example, ids, offsets in zip(examples, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            places = self._places(example.text, example.words, offsets)
            if max(places) < 0:
                found.append(
                    f"{example.where}: a row needs a word that the base's tokenizer knows. Found none. Drop the row."
                )
            elif len(ids) <= self._length:
                found.append(Features(example, ids, _tagged(len(ids), places, example.tags)))
            else:
                found.append(self._drop_words(example, ids, places) or self._unfit(example, len(ids)))
        return found

    def _drop_words(self, example: Example, ids: list[int], places: list[int]) -> Features | None:
        """The features of the longest end of the words that fits, or None where not one word does."""
        words, tags = example.words, example.tags
        while len(ids) > self._length and len(words) > 1:
            excess = len(ids) - self._length
            drop = next((n for n, place in enumerate(places) if place - places[0] >= excess), len(words) - 1)
            words, tags = words[max(1, drop) :], tags[max(1, drop) :]
            text = " ".join(words)
            encoding = self._tokenizer(self._task.format(text), return_offsets_mapping=True, verbose=False)
            ids, places = encoding["input_ids"], self._places(text, words, encoding["offset_mapping"])
        if len(ids) > self._length:
            return None
        self.truncated += 1
        return Features(example, ids, _tagged(len(ids), places, tags))

    def _places(self, text: str, words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
        shift = self._task.prompt.index("{text}")
        spans = [(start + shift, end + shift) for start, end in locate_words(text, words)]
        return positions(offsets, spans, last=self._last)

    def _unfit(self, example: Example, size: int) -> str:
        return (
            f"{example.where}: a row takes at most {self._length} tokens. Found {size}, even without its text. "
            "Shorten the answer or the prompt, or drop the row."
        )


def _tagged(size: int, places: Sequence[int], tags: Sequence[int]) -> list[int]:
    labels = [IGNORED] * size
    for place, tag in zip(places, tags, strict=True):
        if place >= 0:
            labels[place] = tag
    return labels
