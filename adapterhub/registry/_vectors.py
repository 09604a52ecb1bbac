"""Vectors of the tasks: encoded once for each content and encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Catalog, TaskRecord, TaskVectors
from adapterhub.encoder import Encoder
from adapterhub.errors import InputError, IntegrityError
from adapterhub.registry._rows import task_of
from adapterhub.task import Task

__all__ = ["fill_vectors"]

_TEXTS = 1024  # encoded and committed at once
_TASKS = 4096  # asked for at once
_Unheard = tuple[TaskRecord, Task]


def fill_vectors(catalog: Catalog, encoder: Encoder, progress: Callable[[int], None] | None = None) -> int:
    """Encode the content of every active task that this encoder has not heard yet.

    Args:
        catalog: The catalogue, which keeps the vectors; each batch is kept as soon as it is encoded.
        encoder: The encoder.
        progress: Told the number of tasks of each batch that has been kept.

    Returns:
        Number of a commit after which no task was missing.

    Raises:
        InputError: If the encoder's rows do not have the shape and unit length that it promises.
    """
    before: list[tuple[int, str]] = []
    while True:
        seq = catalog.seq
        records = catalog.missing(encoder.fingerprint, limit=_TASKS)
        if not records:
            return seq
        asked = [(record.id, record.content_hash) for record in records]
        if asked == before:
            text = "Run `adapterhub fsck`."
            raise IntegrityError(f"The catalogue keeps vectors that it was given. Found none of {len(asked)}. {text}")
        before = asked
        for batch in _batches([(record, task_of(record)) for record in records]):
            catalog.put_vectors(encoder.fingerprint, _encode(encoder, batch))
            if progress is not None:
                progress(len(batch))


def _batches(tasks: Sequence[_Unheard]) -> Iterator[list[_Unheard]]:
    batch: list[_Unheard] = []
    texts = 0
    for record, task in tasks:
        batch.append((record, task))
        texts += 1 + len(task.examples)
        if texts >= _TEXTS:
            yield batch
            batch, texts = [], 0
    if batch:
        yield batch


def _encode(encoder: Encoder, batch: Sequence[_Unheard]) -> list[TaskVectors]:
    texts = [text for _, task in batch for text in (task.description, *task.examples)]
    rows = _checked(encoder, encoder.encode(texts), len(texts))
    vectors, start = [], 0
    for record, task in batch:
        stop = start + 1 + len(task.examples)
        found = TaskVectors.of(task.name, rows[start], rows[start + 1 : stop], record.content_hash, record.id)
        vectors.append(found)
        start = stop
    return vectors


def _checked(encoder: Encoder, rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    rows = np.asarray(rows, dtype=np.float32)
    if rows.shape != (count, encoder.dimension):
        text = f"Found shape {rows.shape}. Return one row for each text."
        raise InputError(f"An encoder should return ({count}, {encoder.dimension}) for {count} texts. {text}")
    lengths = np.linalg.norm(rows, axis=1)
    # A longer vector would win every search without a word.
    if not np.allclose(lengths, 1, atol=1e-2):
        worst = float(lengths[np.argmax(np.abs(lengths - 1))])
        raise InputError(f"An encoder's rows should have length 1. Found {worst}. Divide each row by its norm.")
    return rows
