"""A log of what was asked, for monitoring: one JSON object a line, no text unless it is asked for.

A record: `time` (seconds since 1970), `task` (whose head answered, null where the base answered alone), `adapters`
(names), `told` (whether the caller named the task), `seconds` (of the call, divided by its texts), `length` (in
characters), and where they are known `score` (the router's best, in nats), `confidence` (of the best answer, in [0, 1])
and `text`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapterhub.errors import InputError
from adapterhub.model._prediction import Prediction

__all__ = ["Usage", "UsageLog", "read_usage"]

_log = logging.getLogger(__name__)
_POLICIES = ("never", "batch")


@dataclass(frozen=True)
class Usage:
    """One answered text.

    Args:
        time: When, in seconds since 1970.
        task: Whose head answered, or None where the base model answered alone.
        adapters: What ran.
        told: Whether the caller named the task: then nothing was routed.
        seconds: Time of the call divided by its texts.
        length: Characters of the text.
        score: The router's best score in nats, or None.
        confidence: Of the best answer, in [0, 1], or None.
        text: The text, where it was kept.
    """

    time: float
    task: str | None
    adapters: tuple[str, ...]
    told: bool
    seconds: float
    length: int
    score: float | None = None
    confidence: float | None = None
    text: str | None = None


class UsageLog:
    """Appends a line for every answered text; several processes may share the file.

    A log must never cost an answer: where the disk is full, lines are lost, counted in `lost`, and said once.

    Args:
        path: The file; its folder is made.
        sync: `batch` brings every call's lines to the disk before the call returns; `never` leaves that to the system,
            so that a loss of power may cost the last seconds.
        keep_abstained: Also keep the text where no task fitted, so that new tasks can be suggested from them.

    Raises:
        InputError: If `sync` is neither.
    """

    def __init__(
        self, path: str | Path, *, sync: Literal["never", "batch"] = "never", keep_abstained: bool = False
    ) -> None:
        if sync not in _POLICIES:
            raise InputError(f"`sync` is {' or '.join(_POLICIES)}. Found {sync!r}. Choose one.")
        self.path, self.sync, self.keep_abstained, self.lost = Path(path), sync, keep_abstained, 0
        self._lock = threading.Lock()
        self._torn = False
        self._clock: Callable[[], float] = time.time
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def record(
        self,
        predictions: Sequence[Prediction],
        seconds: float,
        tasks: Sequence[str | None] | None = None,
        scores: Sequence[float | None] | None = None,
    ) -> None:
        """Append the answers of one call.

        Args:
            predictions: What the call returned.
            seconds: How long it took.
            tasks: The tasks that the caller named, as given to `RoutedModel.predictions`.
            scores: The router's best score for each text, where it is known.
        """
        now, count = self._clock(), len(predictions)
        told = [name is not None for name in tasks] if tasks is not None else [False] * count
        known = scores if scores is not None else [None] * count
        rows = zip(predictions, told, known, strict=True)
        self._append([self._line(one, now, seconds / count, by_name, score) for one, by_name, score in rows])

    def _line(self, one: Prediction, now: float, seconds: float, told: bool, score: float | None) -> bytes:
        found: dict[str, object] = {
            "time": round(now, 3),
            "task": one.task,
            "adapters": [name for name, _ in one.adapters],
            "told": told,
            "seconds": round(seconds, 6),
            "length": len(one.input),
        }
        if score is not None and math.isfinite(score):
            found["score"] = round(score, 4)
        if one.scores:
            found["confidence"] = round(one.scores[0], 6)
        if self.keep_abstained and one.task is None and not told:
            found["text"] = one.input
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"

    def _append(self, lines: Sequence[bytes]) -> None:
        """All lines in one write at the end of the file, so that lines of other processes do not cut them."""
        if not lines:
            return
        with self._lock:
            content = (b"\n" if self._torn else b"") + b"".join(lines)
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    self._torn = os.write(descriptor, content) < len(content)
                    if self._torn:
                        raise OSError("the disk took a part of the lines")
                    if self.sync == "batch":
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if not self.lost:
                    _log.warning("The usage log %s loses lines: %s", self.path, error)
                self.lost += len(lines)


def read_usage(path: Path) -> tuple[list[Usage], int]:
    """Read a log.

    Args:
        path: The file.

    Returns:
        The records in the order of the file, and the number of lines that are none: a process that was killed, or a
        disk that was full, leaves a torn line.

    Raises:
        InputError: If there is no such file.
    """
    if not path.is_file():
        raise InputError(f"A usage log is a file of JSON lines. Found no file {str(path)!r}. Check the path.")
    found, torn = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                one = _parsed(line)
                torn += one is None
                found += [one] if one is not None else []
    return found, torn


def _parsed(line: str) -> Usage | None:
    try:
        held: Any = json.loads(line)
        one = Usage(**held | {"adapters": tuple(held["adapters"])})
        numbers = [float(number) for number in (one.time, one.seconds, one.length, one.score or 0, one.confidence or 0)]
        named = [name for name in (*one.adapters, one.task) if name is not None]
    except (ValueError, TypeError, KeyError):
        return None
    sound = all(map(math.isfinite, numbers)) and all(isinstance(name, str) for name in named)
    return one if sound and one.length >= 0 and one.seconds >= 0 else None
