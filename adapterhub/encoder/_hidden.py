"""The frozen base model as an encoder of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder._cache import EncodingCache
from adapterhub.errors import InputError

__all__ = ["HiddenStateEncoder"]

BATCH = 32
SAMPLES = 64  # values of each tensor that enter the fingerprint


class HiddenStateEncoder:
    """Mean of the last hidden state of a frozen transformers model, at unit length: no second model is needed.

    Make it before adapters are hung into the model: the fingerprint is taken from the bare weights.
    There are no shipped background statistics for it, so the router needs a few tasks with examples to be good.

    Args:
        model: A transformers model; its backbone is run in evaluation mode, without gradients.
        tokenizer: Its tokenizer.
        max_length: Tokens after which a text is cut.
        cache_size: How many encodings are remembered, by the hash of the text.

    Raises:
        InputError: If the maximum length is not positive or larger than the model's positions.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int | None = None, cache_size: int = 4096) -> None:
        self._cache = EncodingCache(cache_size)
        self._backbone = model.base_model.eval()
        self._tokenizer = tokenizer
        self._max_length = _check_length(max_length, model.config)
        self._dimension = int(model.config.hidden_size)
        name = str(model.config.name_or_path or model.config.model_type).rstrip("/").split("/")[-1]
        self._fingerprint = "|".join(
            (
                name,
                f"sampled-sha256={_sampled_hash(self._backbone)}",
                f"max_length={self._max_length}",
                "pooling=mean of last hidden state",
                f"dtype={str(self._backbone.dtype).removeprefix('torch.')}",
                "prefix=''",
            )
        )

    @property
    def fingerprint(self) -> str:
        """Name, hash over sampled weights, maximum length, pooling, dtype, prefix."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Width d of a vector: the model's hidden size."""
        return self._dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts; equal texts get equal vectors while they are remembered.

        Args:
            texts: Any number of texts, none of them empty.

        Returns:
            (len(texts), dimension), float32, each row of unit length.

        Raises:
            InputError: If a text is empty, not a string or without a token, or its vector is not finite.
        """
        return self._cache.encode(texts, self._compute, self._dimension)

    def _compute(self, texts: list[str]) -> NDArray[np.float32]:
        rows = self._tokenizer(texts, truncation=True, max_length=self._max_length)["input_ids"]
        bare = [text for text, ids in zip(texts, rows, strict=True) if not ids]
        if bare:
            raise InputError(f"A text has at least one token. Found none in {bare[0]!r}. Leave it out.")
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # like lengths together: little padding
        pooled = np.empty((len(rows), self._dimension), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            pooled[batch] = self._pool([rows[row] for row in batch])
        if not np.isfinite(pooled).all():
            raise InputError(f"An encoding is finite. The model of {self._fingerprint} gave NaN. Check its weights.")
        return pooled

    def _pool(self, rows: list[list[int]]) -> NDArray[np.float32]:
        import torch

        length = max(len(row) for row in rows)
        device = self._backbone.device
        # Padded here, on the right and with any id: it is masked, and the tokenizer need not know a pad token.
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)  # (b, t)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)  # (b, t)
        with torch.inference_mode():
            hidden = self._backbone(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (b, t, d)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        pooled: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return pooled


def _check_length(max_length: int | None, config: Any) -> int:
    positions = int(getattr(config, "max_position_embeddings", None) or 256)
    length = min(positions, 256) if max_length is None else max_length
    if not 0 < length <= positions:
        raise InputError(
            f"`max_length` is between 1 and the model's {positions} positions. Found {max_length}. Lower it."
        )
    return length


def _sampled_hash(backbone: Any) -> str:
    """Hash over names, shapes and evenly spaced values of all tensors: fast for a base of any size."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()
