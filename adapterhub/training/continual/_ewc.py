"""A spring on every weight, as stiff as the old tasks need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from adapterhub.errors import InputError

__all__ = ["EWC", "fisher_diagonal"]

_Batch = TypeVar("_Batch")


def fisher_diagonal(
    log_likelihoods: Callable[[_Batch], Tensor], batches: Iterable[_Batch], parameters: Sequence[Tensor]
) -> Tensor:
    """The mean over rows of the squared gradient of a row's log-likelihood: the empirical Fisher's diagonal.

    Args:
        log_likelihoods: Gives log p(answer | input) of each row of a batch, (rows,). A mean over rows gives one number,
            and is then one row: too small by about the number of rows.
        batches: The rows of the task.
        parameters: What the gradient is taken of.

    Returns:
        (P,) over all parameters, float32 or wider.

    Raises:
        InputError: If there is no batch.
    """
    total = torch.zeros_like(parameters_to_vector(parameters).detach(), dtype=_wide(parameters))
    rows = 0
    for batch in batches:
        values = log_likelihoods(batch).reshape(-1)
        for place, value in enumerate(values):
            grads = torch.autograd.grad(
                value, parameters, retain_graph=place + 1 < len(values), allow_unused=True, materialize_grads=True
            )
            total += parameters_to_vector(grads).to(total.dtype) ** 2
            rows += 1
    if rows == 0:
        raise InputError("The Fisher information needs at least one row. Found none. Pass rows of the task.")
    return total / rows


class EWC:
    """Elastic weight consolidation (Kirkpatrick et al. 2017): ½ λ Σ_t Σ_i F_t,i (θ_i − θ*_t,i)².

    The tasks' springs are kept as one spring and a constant, which is exact for sums of squares: two vectors of the
    parameters' size, however many tasks there are.

    Args:
        strength: λ.

    Raises:
        InputError: If `strength` is below 0.
    """

    def __init__(self, strength: float = 1.0) -> None:
        if not strength >= 0:
            raise InputError(f"`strength` should be a number of at least 0. Found {strength!r}.")
        self.strength = strength
        self._fisher: Tensor | None = None
        self._anchor: Tensor | None = None
        self._constant = torch.zeros(())

    def add_task(self, parameters: Sequence[Tensor], fisher: Tensor) -> None:
        """Remember a task at the weights as they are.

        Args:
            parameters: The weights after training on it.
            fisher: (P,), from `fisher_diagonal`.

        Raises:
            InputError: If the Fisher has another size than the parameters, or a number below 0.
        """
        anchor = parameters_to_vector(parameters).detach().to(fisher.dtype)
        if fisher.shape != anchor.shape or (self._fisher is not None and fisher.shape != self._fisher.shape):
            raise InputError(f"A Fisher has one number for each of {anchor.numel()} weights. Found {fisher.numel()}.")
        if not bool((fisher >= 0).all()):
            raise InputError("A Fisher is a mean of squares. Found a number below 0, or none at all. Check the loss.")
        if self._fisher is None or self._anchor is None:
            self._fisher, self._anchor, self._constant = fisher.clone(), anchor.clone(), fisher.new_zeros(())
            return
        total = self._fisher + fisher
        share = torch.where(total > 0, fisher / total, 1.0)  # where no task cares, the newest weights are the anchor
        step = anchor - self._anchor
        self._constant = self._constant + (self._fisher * share * step**2).sum()
        self._anchor = self._anchor + share * step
        self._fisher = total

    def penalty(self, parameters: Sequence[Tensor]) -> Tensor:
        """What to add to the loss, a scalar; 0 before the first task.

        Args:
            parameters: The weights, in the order of `add_task`.
        """
        if self._fisher is None or self._anchor is None:
            return parameters[0].new_zeros(())
        now = parameters_to_vector(parameters)
        squares = self._fisher.to(now.device) * (now - self._anchor.to(now.device)) ** 2
        return 0.5 * self.strength * (squares.sum() + self._constant.to(now.device))

    def gradient(self, parameters: Sequence[Tensor]) -> Tensor:
        """The gradient of `penalty`: λ F (θ − θ*), (P,) in the parameters' type; 0 before the first task.

        Args:
            parameters: The weights, in the order of `add_task`.
        """
        now = parameters_to_vector(parameters).detach()
        if self._fisher is None or self._anchor is None:
            return torch.zeros_like(now)
        pull = self._fisher.to(now.device) * (now - self._anchor.to(now.device))
        return (self.strength * pull).to(now.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """`fisher` (P,), `anchor` (P,) and `constant` (): tensors that safetensors stores; empty before a task."""
        if self._fisher is None or self._anchor is None:
            return {}
        return {"fisher": self._fisher, "anchor": self._anchor, "constant": self._constant}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._fisher, self._anchor = state.get("fisher"), state.get("anchor")
        self._constant = state.get("constant", torch.zeros(()))


def _wide(parameters: Sequence[Tensor]) -> torch.dtype:
    """Squares of small gradients vanish in half precision."""
    return torch.promote_types(parameters[0].dtype, torch.float32)
