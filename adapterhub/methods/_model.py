"""The PEFT tuner that puts bottlenecks around a model's linear modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from adapterhub.errors import InputError, did_you_mean
from adapterhub.methods._config import BottleneckConfig
from adapterhub.methods._layer import BASE_ROW, BottleneckLayer

__all__ = ["BottleneckModel"]

# The linear modules before a block's two residual additions, the positions of Houlsby et al. 2019.
_LLAMA_LIKE = ["o_proj", "down_proj"]
_BERT_LIKE = r".*\.output\.dense"
_TARGETS: dict[str, list[str] | str] = {
    **dict.fromkeys(
        ["gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"], _LLAMA_LIKE
    ),
    **dict.fromkeys(["bert", "electra", "roberta", "xlm-roberta"], _BERT_LIKE),
    "distilbert": ["attention.out_lin", "ffn.lin2"],
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "gpt_neox": ["attention.dense", "dense_4h_to_h"],
    "opt": ["out_proj", "fc2"],
}


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """The tuner behind `peft_type: BOTTLENECK`; made by `peft.get_peft_model(model, BottleneckConfig(...))`.

    Not available, as PEFT has them for LoRA or its own list of methods only: mixed models of several methods, weighted
    merging, hot swapping, conversion to LoRA.
    """

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping = _TARGETS

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del current_key, parameter_name
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            # A further adapter is not trained before it is made the active one.
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand each row's adapter name to the layers for the time of one call, also when that call fails."""
        del args
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_names(names)
        copies = _copies(kwargs)
        repeated = [name for name in names for _ in range(copies)]
        # The encoder of an encoder-decoder runs before `generate` repeats its rows.
        has_encoder = copies > 1 and self.get_model_config(self.model).get("is_encoder_decoder")
        once = {id(module) for module in self.model.get_encoder().modules()} if has_encoder else set()
        with ExitStack() as hooks:
            for module in self.modules():
                if isinstance(module, BottleneckLayer | AuxiliaryTrainingWrapper):
                    rows = list(names) if id(module) in once else repeated
                    handle = module.register_forward_pre_hook(partial(_with_names, rows), with_kwargs=True)
                    hooks.callback(handle.remove)
            yield

    def _check_names(self, names: Sequence[str]) -> None:
        if self.training:
            raise InputError(
                "`adapter_names` is for inference. Found a model in training mode. Call `model.eval()` first."
            )
        unknown = sorted(set(names) - set(self.peft_config) - {BASE_ROW})
        if unknown:
            raise InputError(
                f"`adapter_names` should name loaded adapters ({', '.join(self.peft_config)}) or `{BASE_ROW}`. "
                f"Found {', '.join(unknown)}.{did_you_mean(unknown[0], self.peft_config)}"
            )


def _copies(kwargs: dict[str, Any]) -> int:
    """How many rows `generate` makes of each one."""
    config = kwargs.get("generation_config")
    settings = ("num_beams", "num_return_sequences")
    return max(kwargs.get(setting) or getattr(config, setting, None) or 1 for setting in settings)


def _with_names(
    names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    del module
    return args, {**kwargs, "adapter_names": names}
