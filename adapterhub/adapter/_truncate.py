"""Smaller ranks: each module's ΔW = BA cut to its largest singular values (Eckart and Young 1936)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._files import WEIGHTS
from adapterhub.adapter._method import ROOT
from adapterhub.adapter._types import LowRank
from adapterhub.adapter._values import Values, read_values
from adapterhub.adapter._write import check_absent, write_folder
from adapterhub.errors import InputError

__all__ = ["ModuleLoss", "Truncation", "truncate_rank"]

_FACTORS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
_BIAS = ".lora_B.bias"
_NOISE = 1e-12  # of ‖ΔW‖²: what float32 factors cannot tell from nothing


@dataclass(frozen=True)
class ModuleLoss:
    """What a truncation did at one module.

    Args:
        before: Its rank before.
        rank: Its rank now.
        norm: ‖ΔW‖ before, in the Frobenius norm.
        lost: ‖ΔW − ΔW'‖, measured on what was written.
    """

    before: int
    rank: int
    norm: float
    lost: float


@dataclass(frozen=True)
class Truncation:
    """What became of an adapter.

    Args:
        sha256: Content hash of the new folder.
        before: Bytes of its tensors' file before.
        after: And now.
        modules: What was lost, by the module's name in the model that was trained.
    """

    sha256: str
    before: int
    after: int
    modules: Mapping[str, ModuleLoss]

    @property
    def rank(self) -> int:
        """The largest rank now."""
        return max(module.rank for module in self.modules.values())

    @property
    def error(self) -> float:
        """`‖ΔW − ΔW'‖ / ‖ΔW‖` over all modules together; 0 where ΔW is 0."""
        whole = math.hypot(*(module.norm for module in self.modules.values()))
        return math.hypot(*(module.lost for module in self.modules.values())) / whole if whole else 0.0


def truncate_rank(folder: Path, base: BaseSignature, out: Path, *, rank: int | float) -> Truncation:
    """Write a LoRA adapter with smaller ranks as a plain sealed PEFT folder.

    No ΔW is formed: with upᵀ = Q₁R₁ and downᵀ = Q₂R₂, the singular values of ΔW = upᵀ·down are those of R₁R₂ᵀ, a matrix
    of the size of the rank. The new factors share the singular values evenly, and their scale is 1. A head, stored
    normalisations and the biases of `lora_bias` are kept as they are, and so is the dtype.

    Args:
        folder: The adapter's folder, sealed to the base.
        base: The base.
        out: The folder to make; it appears whole or not at all.
        rank: The largest rank at every module, or, as a float in (0, 1], the share of ‖ΔW‖² that each module keeps
            with as few ranks as that needs; ranks then differ, and `rank_pattern` says so.

    Raises:
        InputError: If `rank` is out of bounds, `out` exists, or the adapter is not LoRA. DoRA is not: its ΔW is no
            product of factors.
        IntegrityError: If a file is missing or not the one that was sealed.
        IncompatibleAdapterError: If the adapter does not fit the base.
    """
    _check_rank(rank)
    check_absent(out)
    found = read_values(folder, base)
    _check_method(found, rank)
    tensors = {key: value.to(found.dtypes[key]) for key, value in found.tensors.items()}
    losses = {}
    for name, (down_key, up_key) in _places(found.tensors):
        low = found.adapter.modules[_relative(name, found, base)]
        down, up, singular = _cut(low, rank)
        tensors[down_key] = down.to(found.dtypes[down_key])
        tensors[up_key] = up.T.to(found.dtypes[up_key])
        if low.up_bias is not None:
            tensors[ROOT + name + _BIAS] = low.up_bias.to(found.dtypes[ROOT + name + _BIAS])
        lost = _distance(low, tensors[down_key], tensors[up_key].T)
        losses[name] = ModuleLoss(low.rank, len(down), float(singular.norm()), lost)
    fields = {**found.fields, **_ranks({name: loss.rank for name, loss in losses.items()})}
    sha256 = write_folder(out, fields, tensors, base, str(folder), stack=found.stack)
    return Truncation(sha256, found.size, (Path(out) / WEIGHTS).stat().st_size, MappingProxyType(losses))


def _check_rank(rank: int | float) -> None:
    whole = type(rank) is int and rank >= 1
    share = type(rank) is float and 0 < rank <= 1
    if not whole and not share:
        raise InputError(
            f"`rank` should be a whole number of at least 1, or a share of ΔW's energy in (0, 1]. Found {rank!r}."
        )


def _check_method(found: Values, rank: int | float) -> None:
    adapter = found.adapter
    if adapter.method != "LORA":
        raise InputError(f"Ranks are cut of LoRA adapters. Found {adapter.method} in {adapter.source}. Keep it whole.")
    dora = [name for name, low in adapter.modules.items() if low.magnitude is not None]
    if dora:
        raise InputError(
            f"Ranks are cut of plain LoRA. Found DoRA's magnitude at {dora[0]} in {adapter.source}: its change of the "
            "weights is no product of two factors. Keep it whole, or train without `use_dora`."
        )
    if type(rank) is int and rank >= adapter.rank:
        raise InputError(
            f"`rank` should be below the adapter's largest, {adapter.rank}. Found {rank}. Give a smaller one."
        )


def _places(keys: Mapping[str, object]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each module's name in the model that was trained, with the keys of its two factors."""
    for key in keys:
        for down, up in _FACTORS.items():
            if key.endswith(down):
                stem = key.removesuffix(down)
                yield stem.removeprefix(ROOT), (key, stem + up)


def _relative(trained: str, found: Values, base: BaseSignature) -> str:
    return trained if trained in found.adapter.modules else trained.removeprefix(f"{base.prefix}.")


def _cut(low: LowRank, rank: int | float) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (kept, d_in) and (kept, d_out), and all singular values of ΔW, largest first."""
    q_up, r_up = torch.linalg.qr(low.up.double().T)
    q_down, r_down = torch.linalg.qr(low.down.double().T)
    left, singular, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = min(rank, low.rank, len(singular)) if isinstance(rank, int) else _needed(singular, rank)
    root = singular[:kept].sqrt()
    down = root[:, None] * (right[:kept] @ q_down.T)
    up = root[:, None] * (q_up @ left[:, :kept]).T
    return down, up, singular


def _needed(singular: Tensor, share: float) -> int:
    """The fewest singular values that keep a share of their energy; at least one, since PEFT has no rank 0."""
    energy = singular.square()
    tail = energy.flip(0).cumsum(0).flip(0)  # tail[i]: what is lost if i are kept
    allowed = (1 - share + _NOISE) * float(energy.sum())
    return max(1, int((tail > allowed).sum()))


def _distance(low: LowRank, down: Tensor, up: Tensor) -> float:
    """‖upᵀ·down − up'ᵀ·down'‖ of the old and the new factors, through QR: exact where a difference of norms is not."""
    ups = torch.cat([low.up.double(), -up.double()])
    downs = torch.cat([low.down.double(), down.double()])
    r_up, r_down = torch.linalg.qr(ups.T).R, torch.linalg.qr(downs.T).R
    return float((r_up @ r_down.T).norm())


def _ranks(ranks: Mapping[str, int]) -> dict[str, object]:
    """The options that say each module's rank, with the scale 1 everywhere."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT takes a pattern for the end of a name; with `^` it is the whole of it.
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
    }
