"""The engine's formula, written as slowly as it reads: row by row, a hook a module, one adapter after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterhub.adapter import Adapter, HeadTensors, LowRank, Norm, Scaling
from adapterhub.route import Route

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda h: h,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}

Part = tuple[float, LowRank | Scaling | Norm]


def answer(
    model: PreTrainedModel,
    adapters: Mapping[str, Adapter],
    route: Route,
    tokens: torch.Tensor,
    decoder_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """What one row answers: its tokens alone, without padding, through the head of its route's first adapter.

    Args:
        model: A base that no engine holds.
        adapters: What `read_adapter` gave, by name.
        route: The row's route.
        tokens: (T,).
        decoder_tokens: (n,), what an encoder-decoder's decoder reads.

    Returns:
        As `Engine.forward`, and (T, hidden) of a base without an LM head under a route without a head.
    """
    head = adapters[route.adapters[0]].head if route.adapters else None
    inputs: dict[str, Any] = {"input_ids": tokens[None]}
    if decoder_tokens is not None:
        inputs["decoder_input_ids"] = decoder_tokens[None]
    with torch.no_grad(), adapted(model, adapters, route):
        if head is not None:
            return _head(head, model.base_model(**inputs), causal=model.can_generate())
        output = model(**inputs)
        return (output.logits if "logits" in output else output.last_hidden_state)[0]


@contextmanager
def adapted(model: PreTrainedModel, adapters: Mapping[str, Adapter], route: Route) -> Iterator[None]:
    """Put every adapter of a route around the model's modules, each with its gate, until the block is left."""
    parts: dict[str, list[Part]] = {}
    for name, gate in zip(route.adapters, route.gates, strict=True):
        adapter = adapters[name]
        for held in (adapter.modules, adapter.scalings, adapter.norms):
            for module, part in held.items():
                parts.setdefault(module, []).append((gate, part))
    with ExitStack() as hooks:
        for name, here in parts.items():
            module = model.lm_head if name == "lm_head" else model.base_model.get_submodule(name)
            handle = module.register_forward_hook(_hook(here))  # type: ignore[operator, union-attr]
            hooks.callback(handle.remove)
        yield


def in_double(adapter: Adapter) -> Adapter:
    """The same adapter in float64."""

    def widened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: widened(part) for name, part in value.items()}
        if isinstance(value, torch.Tensor):
            return value.double()
        if isinstance(value, LowRank | Scaling | Norm | HeadTensors):
            return replace(value, **{item.name: widened(getattr(value, item.name)) for item in fields(value)})
        return value

    named = ("modules", "scalings", "norms", "head")
    return replace(adapter, **{name: widened(getattr(adapter, name)) for name in named})


def _hook(parts: list[Part]) -> Callable[..., torch.Tensor]:
    def changed(module: nn.Module, args: tuple[torch.Tensor, ...], own: torch.Tensor) -> torch.Tensor:
        (x,) = args
        factor = 1 + sum(
            gate * (part.factors - 1) for gate, part in parts if isinstance(part, Scaling) and part.scales == "input"
        )
        y = own if isinstance(factor, int) else module.forward(x * factor)
        for gate, part in parts:
            y = y + gate * _added(module, part, x, own)
        return y

    return changed


def _added(module: nn.Module, part: LowRank | Scaling | Norm, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """What one adapter adds to a module's output at the gate 1."""
    if isinstance(part, Norm):
        new = {"norm.weight": part.weight} | ({} if part.bias is None else {"norm.bias": part.bias})
        result: torch.Tensor = functional_call(_Bare(module), new, (x,)) - own
        return result
    if isinstance(part, Scaling):
        return own * (part.factors - 1) if part.scales == "output" else torch.zeros_like(own)
    if part.magnitude is not None:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        changed = weight + part.up.T @ part.down  # (d_out, d_in)
        direction = changed / changed.norm(dim=1, keepdim=True)  # type: ignore[operator]
        bias = 0 if module.bias is None else module.bias
        return functional.linear(x, part.magnitude[:, None] * direction) + bias - own  # type: ignore[operator]
    if part.reads == "tokens":
        z = functional.one_hot(x, part.down.shape[1]).to(part.down)
    else:
        z = x if part.reads == "input" else own
    h = z @ part.down.T + (0 if part.bias is None else part.bias)
    return ACTIVATIONS[part.activation](h) @ part.up + (0 if part.up_bias is None else part.up_bias)


class _Bare(nn.Module):
    """A module's forward without its hooks."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm.forward(x)
        return result


def _head(head: HeadTensors, output: Any, *, causal: bool) -> torch.Tensor:
    hidden = output.last_hidden_state[0]  # (T, hidden)
    if head.kind == "sequence":
        pooled = getattr(output, "pooler_output", None)
        hidden = pooled[0] if pooled is not None else hidden[-1 if causal else 0]
    return functional.linear(hidden, head.weight, head.bias)
