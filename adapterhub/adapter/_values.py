"""The tensors of an adapter that fits its base, by the keys of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._files import CONFIG, WEIGHTS, parse_json, read_folder, read_seal, sealed_stack
from adapterhub.adapter._read import read_adapter
from adapterhub.adapter._tensors import DTYPES, read_header, read_tensors
from adapterhub.adapter._types import Adapter
from adapterhub.errors import InputError

__all__ = ["Values", "read_values", "stored_tensors"]


@dataclass(frozen=True)
class Values:
    """An adapter as its files have it.

    Args:
        adapter: What it is once it has been read.
        fields: The content of `adapter_config.json`.
        tensors: float32 by key.
        dtypes: The dtype in the file by key; float32 where the file holds int8.
        quantised: Keys that the file holds as int8.
        stack: The adapters that it was trained on top of, as `sealed_stack` gives them.
        size: Bytes of the safetensors file.
    """

    adapter: Adapter
    fields: Mapping[str, object]
    tensors: Mapping[str, torch.Tensor]
    dtypes: Mapping[str, torch.dtype]
    quantised: frozenset[str]
    stack: Mapping[str, str]
    size: int


def read_values(folder: Path, base: BaseSignature) -> Values:
    """Read a sealed adapter twice: checked as `read_adapter` does, and by the keys of its file.

    Args:
        folder: The adapter's folder, sealed to the base.
        base: The base.

    Raises:
        IntegrityError: If a file is missing or not the one that was sealed.
        IncompatibleAdapterError: If it does not fit the base.
    """
    folder = Path(folder)
    files = read_folder(folder)
    adapter = read_adapter(folder, base, sha256=files.content_hash)  # its factors have their scale folded in
    header = read_header(files.weights, str(folder / WEIGHTS))
    tensors, _ = read_tensors(files.weights, header)
    return Values(
        adapter=adapter,
        fields=parse_json(files.config, str(folder / CONFIG)),
        tensors=tensors,
        dtypes={key: DTYPES.get(entry.dtype, torch.float32) for key, entry in header.entries.items()},
        quantised=frozenset(key for key, entry in header.entries.items() if entry.scale is not None),
        stack=sealed_stack(folder),
        size=len(files.weights),
    )


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors as float32 by the keys of its file, without a look at any base.

    This is how to get at the values where `safetensors` alone would give an int8 file's steps.

    Args:
        folder: The adapter's folder; where it is sealed, the files are held against the seal.

    Raises:
        IntegrityError: If a file is missing, cut off, or not the one that was sealed.
        InputError: If a tensor has a dtype that no adapter has.
    """
    folder = Path(folder)
    files = read_folder(folder)
    if files.seal is not None:
        read_seal(folder, files)
    header = read_header(files.weights, str(folder / WEIGHTS))
    odd = sorted(key for key, entry in header.entries.items() if not entry.readable)
    if odd:
        raise InputError(f"{folder}: tensors should be F32, F16, BF16, or int8 with scales. Found {', '.join(odd)}.")
    return read_tensors(files.weights, header)[0]
