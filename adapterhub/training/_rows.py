"""Rows of training data from lists, JSONL, CSV, Parquet and `datasets`, each with the place it came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from adapterhub.errors import DataError, MissingExtraError

__all__ = ["DataSource", "Row", "read_rows"]

DataSource: TypeAlias = str | Path | Sequence[Mapping[str, object]]

_SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row as it was read.

    Args:
        where: File and line, or the source and the number of the row.
        fields: What the row holds.
        fault: Why it could not be read at all, or the empty string.
    """

    where: str
    fields: Mapping[str, object] = field(default_factory=dict)
    fault: str = ""


def read_rows(source: DataSource, name: str, split: str = "train") -> list[Row]:
    """Read every row of a source; a row that cannot be parsed is kept with its fault.

    Args:
        source: A list of mappings, a `.jsonl`, `.csv` or `.parquet` file, a folder written by `save_to_disk`, or the
            name of a data set for `datasets.load_dataset` (`name` or `name:configuration`).
        name: What to call rows of a list in messages.
        split: The split to read where a source has several.

    Returns:
        The rows in order, blank lines left out.

    Raises:
        DataError: If the source is missing, of an unknown kind, or not UTF-8.
        MissingExtraError: If the source needs the `data` extra.
    """
    if not isinstance(source, str | Path):
        return list(_list_rows(source, name))
    path = Path(source)
    if path.is_dir():
        return list(_dataset_rows(_load_folder(path, split), str(path)))
    if path.suffix in _SUFFIXES:
        return _file_rows(path)
    if isinstance(source, Path) or path.exists() or path.suffix in {".json", ".tsv", ".txt", ".xlsx"}:
        known = ", ".join(_SUFFIXES)
        raise DataError(f"{path}: a data file ends in {known}. Found `{path.suffix}`. Convert it to one of these.")
    return list(_dataset_rows(_load_name(source, split), source))


def _list_rows(source: Iterable[object], name: str) -> Iterator[Row]:
    for number, fields in enumerate(source, start=1):
        where = f"{name} row {number}"
        if isinstance(fields, Mapping):
            yield Row(where, fields)
        else:
            yield Row(where, fault=f"a row is a mapping of fields. Found {type(fields).__name__}. Write a dict.")


def _file_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path}: no such data file. Check the path.")
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        return list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: a data file is UTF-8. Found byte {error.start} that is not. Convert the file."
        ) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                yield Row(where, fault=f"invalid JSON ({error.msg} at column {error.colno}). Write one object a line.")
                continue
            if isinstance(fields, dict):
                yield Row(where, fields)
            else:
                yield Row(
                    where, fault=f"a line is a JSON object. Found {type(fields).__name__}. Write one object a line."
                )


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        begin = 2
        for fields in reader:
            where = f"{path}:{begin}"
            begin = reader.line_num + 1  # a quoted field may span lines
            if None in fields or None in fields.values():
                count = len(reader.fieldnames or ())
                yield Row(
                    where, fault=f"a line has as many fields as the header ({count}). Quote fields that hold commas."
                )
            else:
                yield Row(where, {name: _from_text(name, text) for name, text in fields.items()})


def _from_text(name: str, text: str) -> object:
    """A CSV field as the type that its column asks for; what cannot be converted stays text and is reported later."""
    try:
        if name in {"tokens", "tags", "outputs"} and text.lstrip().startswith("["):
            return json.loads(text)
        if name == "value":
            return float(text)
    except ValueError:
        return text
    return text.split() if name in {"tokens", "tags"} else text


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("Reading Parquet", "data") from error
    try:
        table = parquet.read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}). Write it again.") from error
    return _numbered(table.to_pylist(), str(path))


def _numbered(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Row]:
    for number, fields in enumerate(rows, start=1):
        yield Row(f"{name} row {number}", {key: value for key, value in fields.items() if value is not None})


def _load_folder(path: Path, split: str) -> Any:
    datasets = _datasets()
    try:
        return _one_split(datasets.load_from_disk(str(path)), str(path), split)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not a folder of `datasets`' save_to_disk. Name the file inside it.") from error


def _load_name(source: str, split: str) -> Any:
    datasets = _datasets()
    name, _, configuration = source.partition(":")
    try:
        found = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source}: no file, folder or data set of that name ({reason}). Check the name.") from error
    return _one_split(found, source, split)


def _one_split(found: Any, name: str, split: str) -> Any:
    if not isinstance(found, Mapping):  # a DatasetDict is a dict of splits, a Dataset is not
        return found
    if split not in found:
        raise DataError(f"{name}: needs a split `{split}`. Found {', '.join(found)}. Select the split and save it.")
    return found[split]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Reading a `datasets` source", "data") from error
    return datasets


def _dataset_rows(data: Any, name: str) -> Iterator[Row]:
    """Rows of a `datasets.Dataset`, class numbers turned into their names."""
    names = {column: found for column, feature in data.features.items() if (found := _class_names(feature))}
    for row in _numbered(data, name):
        fields = dict(row.fields)
        for column in names.keys() & fields.keys():
            fields[column] = _named(fields[column], names[column])
        yield Row(row.where, fields)


def _class_names(feature: Any) -> list[str]:
    return list(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _named(value: Any, names: list[str]) -> object:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
