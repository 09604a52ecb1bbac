"""Writing an adapter's folder: sealed, the same bytes for the same values, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._files import CONFIG, WEIGHTS, write_json
from adapterhub.adapter._read import seal
from adapterhub.errors import IncompatibleAdapterError, InputError

__all__ = ["check_absent", "write_folder", "write_lora"]


def write_lora(
    out: Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor], base: BaseSignature, source: str
) -> str:
    """Write a LoRA adapter and seal it; what does not fit the base leaves nothing behind.

    Args:
        out: The folder to make.
        config: PEFT's configuration of it.
        tensors: By PEFT's key, without the adapter's name.
        base: The base that it fits.
        source: What it was made of, for messages.

    Returns:
        The content hash of the sealed folder.

    Raises:
        InputError: If `out` exists.
        IncompatibleAdapterError: If the adapter does not fit the base.
    """
    config.base_model_name_or_path = base.model_id
    config.inference_mode = True
    return write_folder(out, _canonical(config), tensors, base, source)


def write_folder(
    out: Path,
    fields: Mapping[str, object],
    tensors: Mapping[str, torch.Tensor],
    base: BaseSignature,
    source: str,
    *,
    stack: Mapping[str, str] | None = None,
    note: str | None = None,
) -> str:
    """Write an adapter of any method and seal it; what does not fit the base leaves nothing behind.

    Args:
        out: The folder to make.
        fields: The content of `adapter_config.json`.
        tensors: The content of the safetensors file by key.
        base: The base that it fits.
        source: What it was made of, for messages.
        stack: The adapters below it, as `seal` takes them.
        note: A line for people who look into the safetensors file's metadata.

    Returns:
        The content hash of the sealed folder.

    Raises:
        InputError: If `out` exists.
        IncompatibleAdapterError: If the adapter does not fit the base.
    """
    values = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in sorted(tensors.items())}
    with _made_whole(Path(out)) as folder:
        # safetensors writes several entries in an order of chance; one alone keeps the bytes the same.
        save_file(values, folder / WEIGHTS, {"format": "pt"} if note is None else {"note": note})
        write_json(folder / CONFIG, fields)
        try:
            return seal(folder, base, stack)
        except IncompatibleAdapterError as error:
            raise IncompatibleAdapterError(source, base.model_id, error.faults) from None


def check_absent(out: Path) -> None:
    """Raise InputError where something is at `out` already."""
    if Path(out).exists() or Path(out).is_symlink():
        raise InputError(f"An adapter is written into a new folder. Found something at {out}. Give another path.")


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name once the block has ended well."""
    check_absent(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield aside
        # Made for this user alone; other users' servers read adapters too.
        aside.chmod(0o755)
        for file in aside.iterdir():
            file.chmod(0o644)
        check_absent(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _canonical(config: LoraConfig) -> dict[str, object]:
    """The configuration with its sets sorted: PEFT writes them in the order of the process's hash seed."""
    fields = config.to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
