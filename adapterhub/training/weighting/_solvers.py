"""Weights of gradients from their inner products: small convex problems in T unknowns, solved in float64.

Each takes a Gramian `G = J Jᵀ`, (T, T) float64 on the CPU, and returns weights w, (T,) float64; the direction is
`wᵀ J`. TorchJD's own ways need quadprog (GPL), ECOS (GPL), cvxpy, or stop at three digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from adapterhub.training.weighting._quadratic import Array, nonnegative_minimum

__all__ = ["conflict_averse", "cosines", "minimal_norm", "nash"]


def cosines(gramian: Array) -> tuple[Array, Array]:
    """The inner products of the rows at length 1, and their lengths; a zero row keeps zeros and gets length 1."""
    lengths = np.sqrt(np.diag(gramian))
    lengths = np.where(lengths > 0, lengths, 1.0)
    return gramian / np.outer(lengths, lengths), lengths


def minimal_norm(gramian: Tensor) -> Tensor:
    """MGDA (Désidéri 2012): the shortest vector among the weighted means of the gradients, exactly.

    The least of `xᵀ G x + (Σ x - 1)²` over x ≥ 0 points to it: for a fixed sum the first term alone decides.
    """
    given = gramian.numpy()
    scaled = given / max(np.trace(given), np.finfo(float).tiny)
    found = nonnegative_minimum(scaled + 1, -np.ones(len(scaled)))
    return torch.from_numpy(found / found.sum())


def conflict_averse(c: float) -> Callable[[Tensor], Tensor]:
    """CAGrad (Liu et al. 2021, arXiv 2110.14048): the best worst case in a ball around the mean gradient g₀.

    `d = g₀ + (√φ / ‖g_w‖) g_w` with `√φ = c ‖g₀‖` and w the minimiser of `⟨g_w, g₀⟩ + √φ ‖g_w‖` over the simplex.
    Where `g_w` vanishes no direction helps every task, and the weights are 0.

    Args:
        c: The ball's radius as a share of ‖g₀‖.
    """

    def weigh(gramian: Tensor) -> Tensor:
        given = gramian.numpy()
        scaled, number = given / max(np.trace(given), np.finfo(float).tiny), len(given)
        mean = np.full(number, 1 / number)
        radius = c * np.sqrt(mean @ scaled @ mean)

        def length(w: Array) -> float:
            return float(np.sqrt(max(w @ scaled @ w, 0.0) + 1e-20))

        found = minimize(
            lambda w: w @ scaled @ mean + radius * length(w),
            mean,
            jac=lambda w: scaled @ mean + radius * (scaled @ w) / length(w),
            method="SLSQP",
            bounds=[(0, 1)] * number,
            constraints=LinearConstraint(np.ones((1, number)), 1, 1),
            options={"ftol": 1e-14, "maxiter": 500},
        ).x.clip(min=0)
        found /= found.sum()
        weights = mean + radius / length(found) * found if length(found) > 1e-6 else np.zeros(number)
        return torch.from_numpy(weights)

    return weigh


def nash(gramian: Tensor) -> Tensor:
    """Nash-MTL (Navon et al. 2022, arXiv 2202.01017): the bargaining solution `G w = 1 / w`, w > 0.

    It is where `½ wᵀ G w - Σ log w` is least, a self-concordant function, so damped Newton steps reach it from
    anywhere; on gradients of length 1, as it does not depend on their scale. Every task gains: `J d = 1 / w > 0`.
    The direction always has length √T, so a learning rate must do the shrinking that gradients do elsewhere.
    """
    angles, lengths = cosines(gramian.numpy())
    angles = angles + 1e-8 * np.eye(len(angles))  # bounds the weights where no direction serves all
    found = np.ones(len(angles))
    for _ in range(500):
        slope = angles @ found - 1 / found
        step = np.linalg.solve(angles + np.diag(found**-2.0), slope)
        decrement = np.sqrt(slope @ step)
        found = found - step / (1 + decrement if decrement > 0.25 else 1.0)
        if decrement < 1e-9:
            break
    return torch.from_numpy(np.where(np.diag(gramian.numpy()) > 0, found / lengths, 0.0))
