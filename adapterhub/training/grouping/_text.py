"""How alike tasks are by what their cards say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import Encoder
from adapterhub.errors import InputError
from adapterhub.task import Task

__all__ = ["text_similarity"]


def text_similarity(tasks: Sequence[Task], encoder: Encoder) -> NDArray[np.float64]:
    """The cosine of every two tasks' mean vectors, over description and examples.

    Args:
        tasks: Cards, at least one.
        encoder: What reads them.

    Returns:
        (tasks, tasks), symmetric, with ones on the diagonal.

    Raises:
        InputError: If there is no task.
    """
    if not tasks:
        raise InputError("Texts of at least one task are compared. Found none. Name tasks.")
    texts = [[task.description, *task.examples] for task in tasks]
    vectors = encoder.encode([text for own in texts for text in own]).astype(np.float64)
    ends = np.cumsum([len(own) for own in texts])
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.clip(means @ means.T, -1, 1)
    np.fill_diagonal(found, 1)
    return found
