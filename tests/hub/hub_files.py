"""Small adapter folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

CONFIG = b'{"peft_type": "LORA"}'
README = "---\nlibrary_name: peft\n---\n# card\n"


def weights(seed: int = 0) -> bytes:
    return save({"a": np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)})


def adapter_at(path: str, seed: int = 0) -> dict[str, bytes]:
    prefix = f"{path}/" if path else ""
    return {f"{prefix}adapter_config.json": CONFIG, f"{prefix}adapter_model.safetensors": weights(seed)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
