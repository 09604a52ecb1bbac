"""Which rows of a batch run together."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.task import Task

__all__ = ["passes"]


def passes(heads: Sequence[Task], count: int) -> list[list[int]]:
    """The rows of a batch that run together: all that read, and all that generate.

    Beams are scored when they end, so rows whose beams may be of different lengths do not share a pass; a greedy row is
    cut at its own length afterwards.

    Args:
        heads: Each row's task.
        count: Answers to each row.
    """
    found: dict[tuple[bool, int], list[int]] = {}
    for row, task in enumerate(heads):
        generating = task.head == "generation"
        length = task.max_new_tokens if generating and count > 1 else 0
        found.setdefault((generating, length), []).append(row)
    return list(found.values())
