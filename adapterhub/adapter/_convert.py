"""Adapters of other methods as LoRA: what PEFT can convert, sealed, with the loss told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.conversion import convert_to_lora as peft_convert
from peft.tuners.miss.layer import MissLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load as load_tensors
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterhub.adapter._base import LM_HEAD, describe_base
from adapterhub.adapter._config import strings
from adapterhub.adapter._copy import plain_copy
from adapterhub.adapter._files import CONFIG, WEIGHTS, parse_json, read_folder
from adapterhub.adapter._tensors import read_header
from adapterhub.adapter._write import check_absent, write_lora
from adapterhub.errors import IncompatibleAdapterError, InputError

__all__ = ["Conversion", "convert_to_lora"]

_ROOT = "base_model.model."
_NAME = "default"
_A = ".lora_A.weight"


@dataclass(frozen=True)
class Conversion:
    """What a conversion made, and what it lost.

    Args:
        sha256: Content hash of the new folder.
        method: PEFT's name of the method that was converted.
        rank: The largest rank over the modules.
        error: `‖ΔW − BA‖ / ‖ΔW‖` in the Frobenius norm, over all modules together; 0 where ΔW is 0 and so is BA.
    """

    sha256: str
    method: str
    rank: int
    error: float


def convert_to_lora(
    folder: Path, model: PreTrainedModel, out: Path, *, rank: int | float, model_id: str | None = None
) -> Conversion:
    """Convert an adapter that adds a matrix to the base's weights (LoHa, LoKr, VeRA, …) to LoRA.

    PEFT's conversion does it, by a singular value decomposition of each module's ΔW. The converted adapter is sealed
    to the base, as `seal` does: say so only of the base that the adapter was trained on. A head and normalisations that
    `modules_to_save` names are kept as they are.

    Args:
        folder: The adapter's folder, as PEFT saves it.
        model: The base. Its weights are read and left as they are.
        out: The folder to make; it appears whole or not at all.
        rank: The rank at every module, or, as a float in (0, 1], the share of ‖ΔW‖² that each module keeps with as few
            ranks as that needs. MiSS is LoRA in disguise and keeps its own rank.
        model_id: Id of the base; by default where the model was loaded from.

    Returns:
        The new adapter's hash, and how far it is from the old one.

    Raises:
        InputError: If `rank` is out of bounds, `out` exists, or the adapter's method has no ΔW that PEFT converts.
        IntegrityError: If a file is missing or damaged.
        IncompatibleAdapterError: If the adapter does not fit the base, or holds what a LoRA adapter here cannot.
    """
    _check_rank(rank)
    check_absent(out)
    files = read_folder(Path(folder))
    fields = parse_json(files.config, str(Path(folder) / CONFIG))
    method = _method(fields, folder)
    read_header(files.weights, str(Path(folder) / WEIGHTS))
    base = describe_base(model, model_id)
    tensors = load_tensors(bytes(files.weights))
    extra = _stored_whole(tensors, tuple(strings(fields.get("modules_to_save"))))
    name = base.model_id or "a model without an id"
    tuned = _tuned(_trained_on(model, base.prefix, tensors), name, folder, fields)
    faults = _load(tuned, {key: value for key, value in tensors.items() if key not in extra}, fields)
    if faults:
        raise IncompatibleAdapterError(str(folder), name, faults)
    config, factors = _converted(tuned, rank, f"{folder}, {method}")
    config.task_type = fields.get("task_type")
    config.modules_to_save = strings(fields.get("modules_to_save")) or None
    largest = max(value.shape[0] for key, value in factors.items() if key.endswith(_A))
    error = _error(tuned, factors)
    return Conversion(write_lora(out, config, {**factors, **extra}, base, str(folder)), method, largest, error)


def _stored_whole(tensors: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of modules that `modules_to_save` names: a head's, or a normalisation's by the end of its name."""
    heads = tuple(f"{_ROOT}{name}." for name in names)
    return {k: value for k, value in tensors.items() if k.startswith(heads) or k.rpartition(".")[0].endswith(names)}


def _check_rank(rank: int | float) -> None:
    whole = type(rank) is int and rank >= 1
    share = type(rank) is float and 0 < rank <= 1
    if not whole and not share:
        raise InputError(
            f"`rank` should be a whole number of at least 1, or a share of ΔW's energy in (0, 1]. Found {rank!r}."
        )


def _method(fields: Mapping[str, object], folder: Path) -> str:
    """The method's name, where PEFT might convert it; `_tuned` asks its layers."""
    found = fields.get("peft_type")
    if not isinstance(found, str) or found not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise InputError(f"{folder}: `peft_type` should be a method of PEFT. Found {found!r}. Update PEFT.")
    if found == PeftType.LORA:
        raise InputError(f"{folder}: a LoRA adapter needs no conversion. Seal it with `adapterhub.adapter.seal`.")
    return found


def _tuned(model: nn.Module, name: str, folder: Path, fields: Mapping[str, object]) -> PeftModel:
    """The adapter's layers in a model that is thrown away, without values."""
    method = str(fields["peft_type"])
    refusal = InputError(
        f"Only a method that adds a matrix to the base's weights becomes LoRA. Found {method} in {folder}, which PEFT "
        "does not convert. Run it by its own method, or train a LoRA adapter."
    )
    try:
        # The head, if any, stays out: it has no part in the conversion.
        config = PeftConfig.from_peft_type(**{**fields, "task_type": None, "modules_to_save": None})
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder}: {CONFIG} should be a configuration of {method}. Found: {error}") from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise refusal
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on layers of methods that are refused below
            tuned = PeftModel(model, config, adapter_name=_NAME, autocast_adapter_dtype=False).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise IncompatibleAdapterError(str(folder), name, [str(error)]) from error
    if not tuned.supports_lora_conversion(_NAME):
        raise refusal
    return tuned


class _Nested(nn.Module):
    """A backbone under the name that it has inside a model with a head."""

    def __init__(self, prefix: str, backbone: nn.Module) -> None:
        super().__init__()
        self.add_module(prefix, backbone)
        self.config = backbone.config  # PEFT asks for it


def _trained_on(model: PreTrainedModel, prefix: str, keys: Iterable[str]) -> nn.Module:
    """A twin of the base whose modules have the names of the model that was trained: below `prefix`, or not."""
    twin, _ = plain_copy(model, shared=True)  # PEFT changes the modules that it is given
    tops = {key.removeprefix(_ROOT).split(".")[0] for key in keys}
    backbone: nn.Module = twin.base_model
    if prefix in tops and backbone is twin:
        return _Nested(prefix, twin)
    return twin if tops & {prefix, LM_HEAD} else backbone


def _load(tuned: PeftModel, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, object]) -> list[str]:
    """Copy the file's tensors in if they are just those that the layers have; else what is wrong, a line each."""
    wanted = get_peft_model_state_dict(tuned, adapter_name=_NAME, save_embedding_layers=False)
    faults = [f"{key}: missing." for key in wanted if key not in tensors]
    for key, value in tensors.items():
        if key not in wanted:
            faults.append(f"{key}: unexpected for {fields['peft_type']} on this base.")
        elif value.shape != wanted[key].shape:
            faults.append(f"{key} should have shape {tuple(wanted[key].shape)}. Found {tuple(value.shape)}.")
        elif value.is_floating_point() and not value.float().isfinite().all():
            faults.append(f"{key} holds NaN or infinity.")
    if not faults:
        set_peft_model_state_dict(tuned, dict(tensors), adapter_name=_NAME)
    return faults


def _converted(tuned: PeftModel, rank: int | float, source: str) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """PEFT's own conversion, its modules named in full so that nothing else matches."""
    try:
        config, factors = peft_convert(tuned, rank=rank, adapter_name=_NAME)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: PEFT cannot convert it. Found: {error}") from error
    config.target_modules = {key.removeprefix(_ROOT).removesuffix(_A) for key in factors if key.endswith(_A)}
    config.layers_to_transform = config.layers_pattern = None
    config.fan_in_fan_out = any(isinstance(layer.get_base_layer(), Conv1D) for _, layer in _layers(tuned))
    return config, factors


def _layers(tuned: PeftModel) -> Iterator[tuple[str, BaseTunerLayer]]:
    return ((name, layer) for name, layer in tuned.named_modules() if isinstance(layer, BaseTunerLayer))


@torch.no_grad()
def _error(tuned: PeftModel, factors: Mapping[str, torch.Tensor]) -> float:
    """`‖ΔW − BA‖ / ‖ΔW‖` over all modules."""
    lost = whole = 0.0
    for name, layer in _layers(tuned):
        delta = _delta(layer)  # (d_out, d_in)
        made = factors[f"{name}.lora_B.weight"].float() @ factors[f"{name}{_A}"].float()
        lost += float((delta - made).square().sum())
        whole += float(delta.square().sum())
    return math.sqrt(lost / whole) if whole else 0.0


def _delta(layer: BaseTunerLayer) -> torch.Tensor:
    """What the layer adds to its base's weight, (d_out, d_in)."""
    base = layer.get_base_layer()
    delta: torch.Tensor
    if isinstance(layer, MissLinear):  # its `get_delta_weight` is made for merging, and means another thing
        ones = torch.eye(base.in_features, dtype=base.weight.dtype, device=base.weight.device)
        delta = (layer(ones) - base(ones)).T
    else:
        delta = layer.get_delta_weight(_NAME)
        delta = delta.T if isinstance(base, Conv1D) else delta
    return delta.float()
