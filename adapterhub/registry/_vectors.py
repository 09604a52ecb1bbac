"""Vectors of the tasks: encoded once for each content and encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Catalog, TaskVectors
from adapterhub.encoder import Encoder
from adapterhub.errors import InputError
from adapterhub.registry._mirror import task_of
from adapterhub.task import Task

__all__ = ["fill_vectors"]

_BATCH = 1024
_Hashed = tuple[str, Task]


def fill_vectors(catalog: Catalog, encoder: Encoder) -> None:
    """Encode the content of every active task that this encoder has not heard yet.

    Args:
        catalog: The catalogue, which keeps the vectors; each batch is kept as soon as it is encoded.
        encoder: The encoder.

    Raises:
        InputError: If the encoder's rows do not have the shape and unit length that it promises.
    """
    unheard = {record.content_hash: record for record in catalog.missing(encoder.fingerprint)}
    for batch in _batches([(key, task_of(record)) for key, record in unheard.items()]):
        catalog.put_vectors(encoder.fingerprint, _encode(encoder, batch))


def _batches(tasks: Sequence[_Hashed]) -> Iterator[list[_Hashed]]:
    batch: list[_Hashed] = []
    texts = 0
    for key, task in tasks:
        batch.append((key, task))
        texts += 1 + len(task.examples)
        if texts >= _BATCH:
            yield batch
            batch, texts = [], 0
    if batch:
        yield batch


def _encode(encoder: Encoder, batch: Sequence[_Hashed]) -> Mapping[str, TaskVectors]:
    texts = [text for _, task in batch for text in (task.description, *task.examples)]
    rows = _checked(encoder, encoder.encode(texts), len(texts))
    vectors, start = {}, 0
    for key, task in batch:
        stop = start + 1 + len(task.examples)
        vectors[key] = TaskVectors.of(task.name, rows[start], rows[start + 1 : stop])
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
