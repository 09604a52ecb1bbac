"""The least that a quantised base is, through transformers' own door, so that tests run where no quantiser is."""

from __future__ import annotations

import importlib
import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


class Int8Linear(nn.Linear):
    """A linear module whose weight is int8 with a scale for each output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.bias = linear.bias
        self.scale = linear.weight.detach().abs().amax(dim=1) / 127  # (d_out,)
        rounded = (linear.weight.detach() / self.scale[:, None]).round()
        self.weight = nn.Parameter(rounded.to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias

    def restored(self) -> nn.Linear:
        """A float module of the same rounded numbers."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight.data = self.weight * self.scale[:, None]
        return linear


@register_quantization_config("rounding")
class RoundingConfig(QuantizationConfigMixin):
    """Every linear module but those named becomes an `Int8Linear`; `missing` is what an import of it says."""

    def __init__(self, skip: tuple[str, ...] = ("lm_head", "score", "classifier"), missing: str = "") -> None:
        self.quant_method = "rounding"
        self.skip, self.missing = list(skip), missing


@register_quantizer("rounding")
class RoundingQuantizer(HfQuantizer):
    """Does what the configuration says once the weights are there."""

    def validate_environment(self, *args, **kwargs):
        if self.quantization_config.missing:
            raise ImportError(self.quantization_config.missing)

    def _process_model_after_weight_loading(self, model, **kwargs):
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name.split(".")[-1] not in self.quantization_config.skip:
                model.set_submodule(name, Int8Linear(module))
        return model

    def is_serializable(self):
        return False

    @property
    def is_trainable(self):
        return True


def imported(package: str):
    """A package that may be missing, without what it has to say while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return pytest.importorskip(package, reason=f"needs {package}")
        finally:
            logging.disable(logging.NOTSET)


def int8_config():
    """torchao's configuration for int8 weights, or a skip."""
    imported("torchao")
    return importlib.import_module("torchao.quantization").Int8WeightOnlyConfig()
