"""Projection on the dual cone without a GPL solver."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchjd.linalg import DualConeProjector, PSDMatrix

from adapterhub.training.weighting._quadratic import nonnegative_minimum
from adapterhub.training.weighting._solvers import cosines

__all__ = ["ConeProjector"]


class ConeProjector(DualConeProjector):
    """`argmin vᵀ G v` subject to `v ≥ u`, as TorchJD's aggregators ask for it.

    With `v = u + s` it is the least `sᵀ G s + 2 sᵀ G u` over `s ≥ 0`, solved on gradients of length 1 and without
    regularisation: TorchJD's default, 1e-4 of the trace, stops resolving conflicts where loss scales differ by 1 : 100.
    """

    def __call__(self, U: Tensor, G: PSDMatrix) -> Tensor:  # noqa: N803 the parent's names
        """Weights of the projections, (..., T), for weights U, (..., T), of rows with inner products G, (T, T)."""
        angles, lengths = cosines(G.double().cpu().numpy())
        wanted = (U.double().cpu().numpy() * lengths).reshape(-1, len(lengths))
        found = np.stack([u + nonnegative_minimum(angles, angles @ u) for u in wanted]) / lengths
        return torch.from_numpy(found).reshape(U.shape).to(U)
