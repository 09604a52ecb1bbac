"""Adapters as int8: a quarter of the bytes, for sending and keeping; every reader here takes them as they are.

Each row of a matrix is divided by its own scale, a 127th of its largest magnitude, and rounded. The scales are
bfloat16, rounded up: they have float32's range, so the smallest rows keep their precision, and no value is cut off.

PEFT has no int8 tensors, and would read the steps as if they were the values. So the values lie flat: PEFT, and every
program that compares shapes, refuses the file with a size mismatch instead of loading something else. `dequantise`
makes a folder that they load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._files import WEIGHTS
from adapterhub.adapter._method import ROOT
from adapterhub.adapter._options import HEAD_MODULES
from adapterhub.adapter._tensors import SCALE
from adapterhub.adapter._values import read_values
from adapterhub.adapter._write import check_absent, write_folder
from adapterhub.errors import InputError

__all__ = ["Quantisation", "dequantise", "quantise"]

_LARGEST = 127  # the range is symmetric: -128 has no partner
_NOTE = "int8 rows times KEY.scale; PEFT loads it after adapterhub.adapter.dequantise"


@dataclass(frozen=True)
class Quantisation:
    """What became of an adapter.

    Args:
        sha256: Content hash of the new folder.
        before: Bytes of its tensors' file before.
        after: And now.
        error: `‖T - T'‖ / ‖T‖` in the Frobenius norm over all tensors T of the file together.
    """

    sha256: str
    before: int
    after: int
    error: float


def quantise(folder: Path, base: BaseSignature, out: Path) -> Quantisation:
    """Write an adapter of any method as int8, sealed as content of its own.

    Matrices become int8 with a scale for each output row. Vectors (biases, norms, DoRA's magnitudes) stay as they are,
    and so does the head: it is small, and its error would be the answer's.

    Args:
        folder: The adapter's folder, sealed to the base.
        base: The base.
        out: The folder to make; it appears whole or not at all.

    Raises:
        InputError: If `out` exists, the adapter is int8 already, or it has no matrix.
        IntegrityError: If a file is missing or not the one that was sealed.
        IncompatibleAdapterError: If it does not fit the base.
    """
    check_absent(out)
    found = read_values(folder, base)
    if found.quantised:
        raise InputError(f"What is quantised has values in floating point. Found int8 in {folder}. Use it as it is.")
    tensors: dict[str, torch.Tensor] = {}
    read: dict[str, torch.Tensor] = {}
    for key, value in found.tensors.items():
        dtype = found.dtypes[key]
        if _is_worth_it(key, value, dtype):
            steps, scale = _rows(value)
            tensors |= {key: steps.flatten(), key + SCALE: scale}
            read[key] = steps * scale.float()[:, None]
        else:
            tensors[key] = read[key] = value.to(dtype)
    if len(tensors) == len(read):
        raise InputError(f"What is quantised has matrices. Found only vectors in {folder}. Use it as it is.")
    sha256 = write_folder(out, found.fields, tensors, base, str(folder), stack=found.stack, note=_NOTE)
    return Quantisation(sha256, found.size, _size(out), _error(found.tensors, read))


def dequantise(folder: Path, base: BaseSignature, out: Path) -> Quantisation:
    """Write an int8 adapter as a plain PEFT folder in float32, with just the values that its readers here have.

    Args:
        folder: The adapter's folder, sealed to the base.
        base: The base.
        out: The folder to make; it appears whole or not at all.

    Raises:
        InputError: If `out` exists, or the adapter is not int8.
        IntegrityError: If a file is missing or not the one that was sealed.
        IncompatibleAdapterError: If it does not fit the base.
    """
    check_absent(out)
    found = read_values(folder, base)
    if not found.quantised:
        raise InputError(f"What is dequantised holds int8. Found none in {folder}. PEFT loads it as it is.")
    tensors = {key: value.to(found.dtypes[key]) for key, value in found.tensors.items()}
    sha256 = write_folder(out, found.fields, tensors, base, str(folder), stack=found.stack)
    return Quantisation(sha256, found.size, _size(out), _error(found.tensors, tensors))


def _is_worth_it(key: str, value: torch.Tensor, dtype: torch.dtype) -> bool:
    smaller = value.dim() == 2 and value.numel() + 2 * len(value) < value.numel() * dtype.itemsize
    return smaller and key.removeprefix(ROOT).split(".")[0] not in HEAD_MODULES


def _rows(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps (rows, columns) int8 and scales (rows,) bfloat16 of a matrix."""
    wanted = value.abs().amax(dim=1) / _LARGEST
    scale = wanted.bfloat16()
    scale = torch.where(scale.float() < wanted, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    # A row of zeros has the scale 0, by which nothing is divided.
    steps = value / torch.where(scale == 0, 1, scale.float())[:, None]
    return steps.round().to(torch.int8), scale


def _error(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    lost = sum(float((value.double() - after[key].double()).square().sum()) for key, value in before.items())
    whole = sum(float(value.double().square().sum()) for value in before.values())
    return (lost / whole) ** 0.5 if whole else 0.0


def _size(folder: Path) -> int:
    return (Path(folder) / WEIGHTS).stat().st_size
