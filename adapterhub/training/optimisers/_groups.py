"""Parameters in groups with learning rates of their own: by task, and LoRA+."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from adapterhub.errors import InputError

__all__ = ["parameter_groups"]


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    lr: float,
    *,
    lora_plus_ratio: float | None = None,
    task_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser, one for each learning rate, in the order in which the rates first come.

    Args:
        named_parameters: Names and parameters; those that need no gradient are left out.
        lr: The learning rate.
        lora_plus_ratio: LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of each `lora_B` times this,
            at least 1. PEFT's own does the same to biases and norms too, which the paper does not ask for.
        task_rates: Learning rates in the place of `lr` for the parameters of a task's adapter: those whose dotted
            name has the task's name as one of its parts, as PEFT's names have the adapter's.

    Returns:
        Groups of `params`, `names` and `lr`. `names` lets `muon` tell an adapter's matrices from other ones.

    Raises:
        InputError: If a rate is not above 0, the ratio is below 1, or a task's name is in no parameter's name or two
            names are in one.
    """
    rates = dict(task_rates or {})
    faults = [
        f"`{name}` should be a number above 0. Found {value!r}."
        for name, value in {"lr": lr, **{f"task_rates[{task}]": rate for task, rate in rates.items()}}.items()
        if not (math.isfinite(value) and value > 0)
    ]
    if lora_plus_ratio is not None and not 1 <= lora_plus_ratio < math.inf:
        faults.append(f"`lora_plus_ratio` should be at least 1. Found {lora_plus_ratio!r}.")
    groups: dict[float, dict[str, Any]] = {}
    seen = set()
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            tasks = rates.keys() & set(name.split("."))
            seen |= tasks
            if len(tasks) > 1:
                faults.append(f"A parameter is of one task. Found {name} in the rates of {', '.join(sorted(tasks))}.")
            rate = rates[min(tasks)] if tasks else lr
            rate *= lora_plus_ratio if lora_plus_ratio and "lora_B" in name else 1.0
            group = groups.setdefault(rate, {"params": [], "names": [], "lr": rate})
            group["params"].append(parameter)
            group["names"].append(name)
    faults += [f"`task_rates` names tasks with parameters. Found none of {task}." for task in rates if task not in seen]
    if faults:
        raise InputError("\n".join(faults))
    return list(groups.values())
