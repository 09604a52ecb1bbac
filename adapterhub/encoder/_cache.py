"""A bounded memory of encodings, by the hash of the text."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import InputError

__all__ = ["EncodingCache", "check_texts"]

Floats = NDArray[np.float32]


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list, or name every row that cannot be encoded.

    Raises:
        InputError: If one string was given for a list, or a text is empty or not a string.
    """
    if isinstance(texts, str):
        raise InputError(f"Texts are a list of strings. Found one string, {texts[:40]!r}. Put it into a list.")
    rows = list(texts)
    foreign = [f"{row} ({type(text).__name__})" for row, text in enumerate(rows) if not isinstance(text, str)]
    if foreign:
        raise InputError(
            f"A text is a string. Found other types in rows {', '.join(foreign)}. Convert them with str()."
        )
    empty = [str(row) for row, text in enumerate(rows) if not text.strip()]
    if empty:
        raise InputError(
            f"A text has at least one visible character. Found none in row {', '.join(empty)}. Leave it out."
        )
    return rows


class EncodingCache:
    """The latest encodings, least recently used first out. Safe to share between threads.

    Args:
        size: How many encodings are kept; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise InputError(f"The size of the encoding cache is 0 or more. Found {size}. Give 0 to switch it off.")
        self._size = size
        self._rows: OrderedDict[bytes, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def encode(self, texts: Sequence[str], compute: Callable[[list[str]], Floats], dimension: int) -> Floats:
        """Encode the texts that are not remembered, each distinct text once, and remember them.

        Args:
            texts: Texts to encode.
            compute: Encodes a list of distinct texts to (n, dimension), unit norm.
            dimension: Width of a vector.

        Returns:
            (len(texts), dimension), float32, the caller's own copy.

        Raises:
            InputError: If a text is empty or not a string.
        """
        rows = check_texts(texts)
        keys = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in rows]
        with self._lock:
            known = {key: self._rows[key] for key in keys if key in self._rows}
        missing = {key: text for key, text in zip(keys, rows, strict=True) if key not in known}
        if missing:
            computed = np.asarray(compute(list(missing.values())), dtype=np.float32)
            known.update(zip(missing, computed, strict=True))
        self._remember(keys, known)
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, dimension), dtype=np.float32)

    def _remember(self, keys: list[bytes], known: dict[bytes, Floats]) -> None:
        with self._lock:
            for key in keys:
                if key not in self._rows:
                    self._rows[key] = known[key].copy()  # a view would keep its whole batch alive
                self._rows.move_to_end(key)
            while len(self._rows) > self._size:
                self._rows.popitem(last=False)
