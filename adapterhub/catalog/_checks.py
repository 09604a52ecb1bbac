"""What a catalogue takes: rules for rows and vectors, checked before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog._records import TaskRecord, TaskVectors
from adapterhub.errors import CardError, InputError
from adapterhub.task import check_name

__all__ = ["check", "check_vectors", "halves"]

_SHOWN = 20


def check(records: Sequence[TaskRecord], vectors: Sequence[TaskVectors], dimension: int | None = None) -> None:
    """Check rows, and vectors that are written with them.

    Args:
        records: The rows.
        vectors: Vectors of some of them.
        dimension: Width d that the vectors should have; None for any, the same for all.

    Raises:
        InputError: If anything is wrong; the message lists every fault.
    """
    hashes = {record.name: record.content_hash for record in records}
    faults = [fault for record in records for fault in _record_faults(record)]
    faults += _repeated("rows", [record.name for record in records])
    for item in vectors:
        if item.name not in hashes:
            faults.append(f"{item.name}: vectors go with a row. Found none of that name. Use `put_vectors`.")
        elif item.content_hash not in ("", hashes[item.name]):
            faults.append(
                f"{item.name}: vectors should be of the row's content {hashes[item.name]!r}. "
                f"Found {item.content_hash!r}. Encode the new content."
            )
    _refuse(faults + _vector_faults(vectors, dimension))


def check_vectors(vectors: Sequence[TaskVectors], dimension: int | None = None) -> None:
    """Check vectors that are written by themselves, which must say what content they are of.

    Args:
        vectors: The vectors.
        dimension: Width d that they should have; None for any, the same for all.

    Raises:
        InputError: If anything is wrong; the message lists every fault.
    """
    faults = [
        f"{item.name}: vectors should say what content was encoded. Found no `content_hash`. Set it to the row's."
        for item in vectors
        if not item.content_hash
    ]
    _refuse(faults + _vector_faults(vectors, dimension))


def halves(vectors: Sequence[TaskVectors]) -> list[NDArray[np.float16]]:
    """The rows of each task as they are stored: its examples, then its description if there is one.

    Args:
        vectors: n checked vectors.

    Returns:
        n arrays (examples + described, d) float16; they share memory.
    """
    parts = [part for item in vectors for part in _parts(item)]
    rows = np.concatenate(parts).astype(np.float16) if parts else np.empty((0, 0), dtype=np.float16)
    ends = list(accumulate(item.count + (item.description is not None) for item in vectors))
    return [rows[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]


def _record_faults(record: TaskRecord) -> list[str]:
    faults = []
    try:
        check_name(record.name)
    except CardError as error:
        faults.append(str(error))
    if record.status not in ("active", "retired"):
        faults.append(f"{record.name}: a status is `active` or `retired`. Found {record.status!r}. Choose one.")
    for field in ("version", "sha256", "card", "content_hash", "source", "base_model"):
        value = getattr(record, field)
        if value is not None and not _storable(value):
            faults.append(_text_fault(record.name, field, value))
        if value is None and field not in ("version", "sha256"):
            faults.append(f"{record.name}: `{field}` is text. Found None. Leave it empty.")
    faults += [_text_fault(record.name, "tags", tag) for tag in record.tags if not _storable(tag)]
    return faults


def _storable(value: object) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_fault(name: str, field: str, value: object) -> str:
    shown = ascii(value)[:60]
    return f"{name}: `{field}` is text without NUL and lone surrogates. Found {shown}. Remove them."


def _repeated(what: str, names: Iterable[str]) -> list[str]:
    return [
        f"{name}: the {what} of one commit have different names. Found it {number} times. Keep one."
        for name, number in Counter(names).items()
        if number > 1
    ]


def _vector_faults(vectors: Sequence[TaskVectors], dimension: int | None) -> list[str]:
    faults = _repeated("vectors", [item.name for item in vectors])
    sound = []
    for item in vectors:
        width = item.total.shape[-1] if item.total.ndim else 0
        dimension = dimension or width
        described = item.description is None or item.description.shape == (dimension,)
        if (
            dimension
            and item.total.shape == (dimension,)
            and item.examples.shape == (item.count, dimension)
            and described
        ):
            sound.append(item)
            continue
        shapes = [None if part is None else part.shape for part in (item.total, item.description, item.examples)]
        faults.append(
            f"{item.name}: vectors should be a sum ({dimension},), a description ({dimension},) or none, and examples "
            f"({item.count}, {dimension}). Found {shapes}. Make them with `TaskVectors.of`, all with one encoder."
        )
    text = f"vectors should be finite and at most {np.finfo(np.float16).max:g}. Found others. Check the encoder."
    return faults + [f"{name}: {text}" for name in _unstorable(sound)]


def _unstorable(vectors: Sequence[TaskVectors]) -> list[str]:
    if not vectors:
        return []
    parts = [part for item in vectors for part in _parts(item)]
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        wrong = ~np.isfinite(np.concatenate(parts).astype(np.float16)).all(axis=1)
    names = [item.name for item in vectors for _ in _parts(item)]
    found = {names[owner]: None for owner in owners[wrong]}
    sums = np.stack([item.total for item in vectors])
    return list(found | {vectors[at].name: None for at in np.flatnonzero(~np.isfinite(sums).all(axis=1)).tolist()})


def _parts(item: TaskVectors) -> list[NDArray[np.float32]]:
    return [item.examples] if item.description is None else [item.examples, item.description[None]]


def _refuse(faults: list[str]) -> None:
    if faults:
        more = [f"… and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise InputError("\n".join(faults[:_SHOWN] + more))
