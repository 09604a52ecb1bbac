"""A route for good: its adapters folded into the weights of a copy of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterhub.adapter import LowRank, plain_copy
from adapterhub.engine._delta import Delta, Folded
from adapterhub.errors import InputError
from adapterhub.route import Route

__all__ = ["merged"]

_Parts = Sequence[tuple[float, Delta]]
# Their forward scales the LM head's input where the configuration says that its weights are the embedding's.
_SCALED_WHEN_SHARED = ("switch_transformers", "udop", "umt5")


def merged(
    model: PreTrainedModel, route: Route, folded: Mapping[str, Folded], module: Callable[[str], nn.Module]
) -> PreTrainedModel:
    """Copy a base and fold a route's adapters into the copy's weights.

    A linear module becomes `W' = W · diag(1 + Σ w g_in) + diag(Σ w g_out) W + Σ w upᵀ down` and
    `b' = b + b ⊙ Σ w g_out + Σ w shift`; a normalisation gets the weighted differences of its parameters. The sums are
    formed in float32 and rounded to the weights' dtype once. An embedding and an LM head that share their weights
    are separated when only one of them changes, and the copy's configuration says so.

    Args:
        model: The base, which an engine may hold. It is left as it is.
        route: The adapters and their gates.
        folded: The route's adapters by name.
        module: Finds a module of `model` by its backbone-relative name.

    Returns:
        A plain model of transformers on memory of its own, without the engine's hooks, to run, save and load.

    Raises:
        InputError: If an adapter has a head or a non-linear part, shifts a module that has no bias (a saved model would
            lose it), or changes quantised weights; every fault is listed. If shared weights cannot be separated.
    """
    changes: dict[str, list[tuple[float, Delta]]] = {}
    for name, gate in zip(route.adapters, route.gates, strict=True):
        for place, delta in folded[name].deltas.items():
            changes.setdefault(place, []).append((gate, delta))
    faults = [fault for name in route.adapters for fault in _adapter_faults(name, folded[name])]
    faults += [fault for place, parts in changes.items() for fault in _module_faults(place, module(place), parts)]
    if faults:
        raise InputError(
            "A route merges into plain weights where all of it is linear. Found:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nRun it in the engine, which merges nothing."
        )
    plain, twins = plain_copy(model)
    with torch.no_grad():
        for place, parts in changes.items():
            _fold_in(twins[id(module(place))], parts)
    _separate(model, plain)
    return plain


def _fold_in(module: nn.Module, parts: _Parts) -> None:
    """Change one module of the copy."""
    weight = module.get_parameter("weight")
    bias = getattr(module, "bias", None)
    inward, outward, normal = (_gain(parts, reads, weight.device) for reads in ("input", "output", "normalised"))
    matrix = weight.float().T if isinstance(module, (Conv1D, nn.Embedding)) else weight.float()
    if normal is not None:
        new = matrix + normal
    else:
        new = matrix if inward is None else matrix * (1 + inward)
        new = new if outward is None else new + outward[:, None] * matrix
        new = _add_low_rank(new, parts)
        new = new.T if isinstance(module, (Conv1D, nn.Embedding)) else new
    module.weight = _parameter(new, weight)
    shift = _shift(parts, weight.device)
    if bias is not None and (shift is not None or outward is not None):
        moved = bias.float() if outward is None else bias.float() * (1 + outward)
        module.bias = _parameter(moved if shift is None else moved + shift, bias)


def _add_low_rank(matrix: torch.Tensor, parts: _Parts) -> torch.Tensor:
    """`matrix + Σ w upᵀ down`, (d_out, d_z)."""
    for gate, delta in parts:
        if delta.low is not None:
            up, down = delta.low.up.to(matrix.device), delta.low.down.to(matrix.device)
            matrix = torch.addmm(matrix, up.float().T, down.float(), alpha=gate)
    return matrix


def _gain(parts: _Parts, reads: str, device: torch.device) -> torch.Tensor | None:
    found = [gate * d.gain.values.float() for gate, d in parts if d.gain is not None and d.gain.reads == reads]
    return torch.stack(found).sum(0).to(device) if found else None


def _shift(parts: _Parts, device: torch.device) -> torch.Tensor | None:
    found = [gate * delta.shift.float() for gate, delta in parts if delta.shift is not None]
    return torch.stack(found).sum(0).to(device) if found else None


def _parameter(value: torch.Tensor, old: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.to(old.dtype).contiguous(), requires_grad=old.requires_grad)


def _separate(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Separate weights that were shared and are not all the same now, and say so in the copy's configuration.

    Saving writes only one of those that the configuration calls shared.
    """
    before = dict(model.named_parameters(remove_duplicate=False))
    after = dict(plain.named_parameters(remove_duplicate=False))
    shared = {one: other for one, other in plain.all_tied_weights_keys.items() if before[one] is before[other]}
    if all(after[one] is after[other] for one, other in shared.items()):
        return
    if plain.config.model_type in _SCALED_WHEN_SHARED:
        raise InputError(
            "An adapter at an embedding or LM head merges where the two can be parted. Found "
            f"{type(model).__name__}, which answers otherwise once they are. Run the route in the engine."
        )
    for one, other in shared.items():
        if after[one] is after[other]:
            place, _, name = one.rpartition(".")
            plain.get_submodule(place).register_parameter(name, _parameter(after[one].clone(), after[one]))
    plain.config.tie_word_embeddings = plain.config.get_text_config().tie_word_embeddings = False
    plain.all_tied_weights_keys = {}


def _adapter_faults(name: str, folded: Folded) -> Iterator[str]:
    if folded.head is not None:
        yield f"{name}: a head of its own"
    lows = {place: delta.low for place, delta in folded.deltas.items() if delta.low is not None}
    bent = sorted(place for place, low in lows.items() if _bends(low))
    if bent:
        more = f" and {len(bent) - 1} more modules" if bent[1:] else ""
        yield f"{name}: a bottleneck ({lows[bent[0]].activation}) at {bent[0]}{more}"


def _bends(low: LowRank) -> bool:
    """Whether factors are more than one matrix from the module's input to its output."""
    return low.activation != "identity" or low.reads == "output" or low.bias is not None


def _module_faults(place: str, module: nn.Module, parts: _Parts) -> Iterator[str]:
    weight = module.get_parameter("weight")
    linear = isinstance(module, (nn.Linear, Conv1D, nn.Embedding))
    if not weight.is_floating_point() or type(weight.data) is not torch.Tensor:
        yield f"{place}: quantised weights"
    elif not linear and any(delta.low or (delta.gain and delta.gain.reads != "normalised") for _, delta in parts):
        yield f"{place}: {type(module).__name__}, which is no linear module and no embedding"
    shift = _shift(parts, weight.device)
    if shift is not None and shift.any() and getattr(module, "bias", None) is None:
        yield f"{place}: no bias of its own, which the adapters' would be added to"
