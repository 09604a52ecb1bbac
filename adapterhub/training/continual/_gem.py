"""The nearest direction that worsens no old task."""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.errors import InputError
from adapterhub.training.weighting import gramian, nonnegative_minimum

__all__ = ["gem_direction"]


def gem_direction(gradient: Tensor, memories: Tensor) -> Tensor:
    """Project a gradient on the directions along which no old task's loss rises (Lopez-Paz & Ranzato 2017).

    min ‖d − g‖² subject to ⟨m_t, d⟩ ≥ 0 for every t. Its dual, min ‖Mᵀv + g‖² over v ≥ 0 with d = g + Mᵀv, is
    non-negative least squares in T unknowns, solved in float64 on rows of length 1, which bound the same cone: tasks
    whose losses differ by orders of magnitude count alike.

    Args:
        gradient: g, (P,), of the new task's loss.
        memories: M, (T, P), the gradient of each old task's loss.

    Returns:
        d, (P,); g itself where it worsens no task.

    Raises:
        InputError: If the shapes do not fit or a number is not finite.
    """
    if gradient.dim() != 1 or memories.dim() != 2 or memories.shape[1] != gradient.shape[0]:
        raise InputError(
            f"GEM takes a gradient (P,) and memories (T, P). Found {tuple(gradient.shape)} and {tuple(memories.shape)}."
        )
    products = gramian(torch.cat((memories, gradient[None])))
    if not bool(products.isfinite().all()):
        raise InputError("GEM needs finite gradients. Found one that is not. Lower the learning rate.")
    if bool((products[-1, :-1] >= 0).all()):
        return gradient
    lengths = products.diagonal()[:-1].sqrt()
    lengths = torch.where(lengths > 0, lengths, 1.0)
    weights = nonnegative_minimum(
        (products[:-1, :-1] / lengths / lengths[:, None]).numpy(), (products[-1, :-1] / lengths).numpy()
    )
    return gradient + (torch.from_numpy(weights) / lengths).to(gradient) @ memories
