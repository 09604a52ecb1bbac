"""Staying close to what an older model said."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from adapterhub.errors import InputError

__all__ = ["distillation_loss"]


def distillation_loss(new_logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """T² KL(softmax(old / T) ‖ softmax(new / T)), the mean over items (Hinton et al. 2015; Li & Hoiem 2016).

    T² keeps the gradient's size about the same for every temperature.

    Args:
        new_logits: (items, classes), of the model in training.
        old_logits: (items, classes), of the model as it was; no gradient goes there.
        temperature: T, above 0.

    Returns:
        A scalar, 0 where both say the same.

    Raises:
        InputError: If the shapes differ or T is not above 0.
    """
    if new_logits.shape != old_logits.shape or new_logits.dim() != 2:
        raise InputError(
            f"Distillation compares logits (items, classes) of one shape. Found {tuple(new_logits.shape)} and "
            f"{tuple(old_logits.shape)}."
        )
    if not temperature > 0:
        raise InputError(f"`temperature` should be a number above 0. Found {temperature!r}.")
    new = log_softmax(new_logits / temperature, dim=-1)
    old = log_softmax(old_logits.detach() / temperature, dim=-1)
    return temperature**2 * kl_div(new, old, reduction="batchmean", log_target=True)
