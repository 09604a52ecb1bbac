"""Outcomes and traces as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from adapterhub.errors import DataError, InputError, did_you_mean
from adapterhub.evaluation._outcome import Outcome, Trace

__all__ = ["Record", "read_records", "write_records"]

Record = Outcome | Trace
_KINDS: dict[str, type[Outcome] | type[Trace]] = {"outcome": Outcome, "trace": Trace}
_SHOWN = 20


def write_records(path: Path, records: Iterable[Record], *, append: bool = False) -> None:
    """Write records, one JSON object a line: `{"record": "outcome" | "trace", …}` with the fields that have a value.

    Args:
        path: The file; its folder is made.
        records: What was measured.
        append: Add to the file instead of replacing it, so that a long measurement keeps what it has.
    """
    lines = "".join(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    if append:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(lines, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read what `write_records` wrote.

    Args:
        paths: Files of JSON lines; blank lines do not count.

    Raises:
        DataError: If a file is missing or lines break a rule; the message lists them with their places.
    """
    found: list[Record] = []
    faults: list[str] = []
    for path in paths:
        if not path.is_file():
            faults.append(f"{path}: no such file. Check the path.")
            continue
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            faults.append(f"{path}: a file of outcomes is UTF-8. Found byte {error.start} that is not. Convert it.")
            continue
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    found.append(_parsed(line))
                except InputError as error:
                    faults.append(f"{path}:{number}: {error}")
    if faults:
        rest = f"\n… and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError("\n".join(faults[:_SHOWN]) + rest)
    return found


def _plain(record: Record) -> dict[str, object]:
    kind = "outcome" if isinstance(record, Outcome) else "trace"
    # Not `asdict`, which copies every row.
    held = {field.name: getattr(record, field.name) for field in fields(record)}
    return {"record": kind} | {name: value for name, value in held.items() if value is not None and value != ""}


def _parsed(line: str) -> Record:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"a line is a JSON object. Found: {error}. Correct or remove the line.") from error
    if not isinstance(found, dict):
        raise InputError(f"a line is a JSON object. Found {type(found).__name__}. Correct the line.")
    kind = found.pop("record", "outcome")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"`record` is {' or '.join(_KINDS)}. Found {kind!r}. Correct it.")
    made = _KINDS[kind]
    known = {field.name for field in fields(made)}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise InputError(f"unknown field `{unknown[0]}`.{did_you_mean(unknown[0], known)} Known: {sorted(known)}.")
    try:
        return made(**found)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"a field is missing or of a wrong kind: {error}. Correct the line.") from error
