"""Bases whose weights are quantised while they are loaded: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

Adapters belong to the base as its files have it, in floating point, whatever became of it in memory. So they run on a
quantised base and on the plain one alike.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from adapterhub.adapter import BaseSignature, describe_base
from adapterhub.errors import InputError, MissingExtraError

__all__ = [
    "check_quantisation",
    "describe_float",
    "holds_plain_weights",
    "keep_differentiable",
    "quantising",
    "quietly",
    "recorded",
]


def check_quantisation(config: Any) -> None:
    """Raise InputError where something is neither None nor one of transformers' quantisation configurations."""
    if config is not None and not isinstance(config, QuantizationConfigMixin | Mapping):
        raise InputError(
            "`quantization_config` should be one of transformers' configurations, such as BitsAndBytesConfig or "
            f"TorchAoConfig. Found {config!r}."
        )


@contextmanager
def quantising(config: Any) -> Iterator[dict[str, Any]]:
    """What `from_pretrained` is given to quantise a base; what keeps it from doing so is told as an error of ours.

    Args:
        config: A quantisation configuration, or None for a base in floating point.

    Raises:
        MissingExtraError: If an extra of this package is missing.
        InputError: If another package is missing, or does not run on this machine.
    """
    if config is None:
        yield {}
        return
    try:
        yield {"quantization_config": copy.deepcopy(config)}  # transformers writes into it
    except ImportError as error:
        if "torchao" in str(error):
            raise MissingExtraError("A base quantised by torchao", "quantised") from error
        raise InputError(
            f"A quantised base needs the package that quantises it. Found none: {_first_line(error)}"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"A base is quantised where the quantiser's kernels run. Found {type(config).__name__} on this machine: "
            f"{_first_line(error)}"
        ) from error


def describe_float(path: str, kind: type[PreTrainedModel], model_id: str) -> BaseSignature:
    """Describe a base as its files have it, for one that is quantised in memory.

    It is loaded in the files' own dtype on the CPU, where its weights are mapped, not read: what is read of them is
    the few rows that the fingerprint samples.

    Args:
        path: Id or folder of the base.
        kind: The class of the quantised model.
        model_id: The id that adapters name as their base.

    Raises:
        InputError: If the files themselves are quantised.
    """
    with quietly():
        found = describe_base(kind.from_pretrained(path, dtype="auto", use_safetensors=True), model_id)
    if found.quantised:
        raise InputError(
            f"`quantization_config` quantises a base in floating point. Found {path}, whose files are quantised "
            "already. Leave it out."
        )
    return found


def holds_plain_weights(module: nn.Module) -> bool:
    """Whether all of a module's own parameters are floating-point numbers as they are."""
    return all(
        type(weight) is nn.Parameter and weight.is_floating_point() for weight in module.parameters(recurse=False)
    )


def keep_differentiable(model: nn.Module) -> None:
    """Let no module rearrange its weights for inference: gradients would no longer pass through them.

    On a CPU, bitsandbytes packs 4-bit weights for a kernel without a backward pass as soon as a module that is not
    training meets an input that needs no gradient, which the first one of a frozen base always does.

    Args:
        model: A quantised base.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()
            vars(module)["train"] = partial(_unmoved, module)  # also when the model is put into evaluation mode


def _unmoved(module: nn.Module, mode: bool = True) -> nn.Module:
    del mode
    return module


def recorded(config: Any) -> str | None:
    """A configuration as a checkpoint remembers it; None where there is none."""
    if config is None:
        return None
    fields = dict(config) if isinstance(config, Mapping) else config.to_dict()
    return json.dumps(fields, sort_keys=True, default=str)


@contextmanager
def quietly() -> Iterator[None]:
    """No loading bars and no report on what transformers did not find: what is missing is checked by the caller."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
