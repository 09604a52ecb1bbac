"""The least of a convex quadratic over vectors without negative entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["nonnegative_minimum"]

Array = NDArray[np.float64]

_ROUNDING = 1e-15


def nonnegative_minimum(gram: Array, slopes: Array) -> Array:
    """The v ≥ 0 with the least `vᵀ G v + 2 vᵀ c`, by the active set of Lawson and Hanson (1974).

    Written out because scipy's `nnls` from 1.15 on may return a wrong v where an entry of c is zero but for rounding
    (scipy/scipy issue 25389), and that is where gradients lie that no longer conflict: of 100,000 projections on
    random cones 3 were wrong. G may be singular.

    Args:
        gram: G, (T, T), positive semi-definite, its diagonal near 1 or 0.
        slopes: c, (T,).
    """
    found, held = np.zeros(len(slopes)), np.zeros(len(slopes), dtype=bool)
    barred = held.copy()  # whose gain is rounding: let in, they would point backwards
    for _ in range(30 * len(slopes)):
        gains = np.where(held | barred, -np.inf, -(gram @ found + slopes))
        best = int(gains.argmax())
        if gains[best] <= _ROUNDING * np.abs(slopes).max():
            break
        held[best] = True
        wanted = _least_within(held, gram, slopes)
        if wanted[best] <= 0:
            held[best], barred[best] = False, True
            continue
        while wanted[held].min() <= 0:
            losing = held & (wanted <= 0)
            share = (found[losing] / (found[losing] - wanted[losing])).min()
            found = found + share * (wanted - found)
            held &= ~(losing & (found <= _ROUNDING * found.max()))
            found = np.where(held, found, 0.0)
            wanted = _least_within(held, gram, slopes)
        found, barred = wanted, np.zeros_like(barred)
    return found


def _least_within(held: NDArray[np.bool_], gram: Array, slopes: Array) -> Array:
    """The least over the held entries, whatever their signs; the others are 0."""
    wanted = np.zeros(len(slopes))
    wanted[held] = np.linalg.lstsq(gram[np.ix_(held, held)], -slopes[held], rcond=1e-13)[0]
    return wanted
