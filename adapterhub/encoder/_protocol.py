"""What the router and the registry need of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoder"]


class Encoder(Protocol):
    """A frozen map from texts to unit vectors."""

    @property
    def fingerprint(self) -> str:
        """Name, weights, maximum length, pooling, dtype and prefix: equal only for encoders with equal outputs."""
        ...

    @property
    def dimension(self) -> int:
        """Width d of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts.

        Args:
            texts: Any number of texts, none of them empty.

        Returns:
            (len(texts), dimension), float32, each row of unit length.

        Raises:
            InputError: If a text is empty or not a string.
        """
        ...
