"""TorchJD's scalarizers and aggregators as weightings; extra `mtl`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchjd.aggregation import (
    Aggregator,
    AlignedMTLWeighting,
    DualProjWeighting,
    GradDrop,
    GramianWeightedAggregator,
    IMTLGWeighting,
    PCGradWeighting,
    UPGradWeighting,
)
from torchjd.scalarization import FAMO, IMTLL, STCH, UW, GeometricMean, Random, Scalarizer

from adapterhub.errors import InputError
from adapterhub.training.weighting._gradients import gramian
from adapterhub.training.weighting._projector import ConeProjector
from adapterhub.training.weighting._solvers import conflict_averse, minimal_norm, nash
from adapterhub.training.weighting._weighting import GradientWeighting, LossWeighting

__all__ = ["AggregatorWeighting", "GramianWeighting", "ScalarizerWeighting", "named", "wrapped"]


class ScalarizerWeighting(LossWeighting):
    """A TorchJD scalarizer; its random numbers, if any, depend on the seed and on the steps done alone.

    A scalarizer that keeps a history of its own outside its parameters (`DWA`) trains, but cannot resume: take the
    weighting of that name instead.

    Args:
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`.
        scalarizer: The scalarizer.
        seed: Seed of its random numbers.
    """

    calls: Tensor

    def __init__(
        self, tasks: Sequence[str], static: Mapping[str, float] | None = None, *, scalarizer: Scalarizer, seed: int = 0
    ) -> None:
        super().__init__(tasks, static)
        self.scalarizer, self.seed = scalarizer, seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def combine(self, losses: Tensor) -> Tensor:
        with _drawing(self.seed, self.calls, losses.device):
            return self.scalarizer(losses)

    def epoch(self) -> None:
        if callable(step := getattr(self.scalarizer, "step", None)):
            step()

    def get_extra_state(self) -> dict[str, Any]:
        return _kept(self.scalarizer)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        _refuse(state)


class GramianWeighting(GradientWeighting):
    """Weights of the gradients from their inner products alone; the direction is their sum with these weights.

    Args:
        tasks: As in `GradientWeighting`.
        static: As in `GradientWeighting`.
        solve: Inner products, (T, T) float64 on the CPU, to weights, (T,).
        seed: Seed of its random numbers.
    """

    calls: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        static: Mapping[str, float] | None = None,
        *,
        solve: Callable[[Tensor], Tensor],
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, static)
        self.solve, self.seed = solve, seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def direct(self, gradients: Tensor, losses: Tensor, validation: Tensor | None) -> Tensor:  # noqa: ARG002
        static = self.static.to("cpu", torch.float64)
        products = gramian(gradients) * torch.outer(static, static)
        if not bool(torch.isfinite(products).all()):
            return gradients.new_full(gradients.shape[1:], torch.nan)
        with _drawing(self.seed, self.calls, products.device):
            self._last = (self.solve(products) * static).to(gradients)
        return self._last @ gradients


class AggregatorWeighting(GradientWeighting):
    """A TorchJD aggregator over the matrix of gradients; its random numbers depend on the seed and the steps alone.

    Args:
        tasks: As in `GradientWeighting`.
        static: As in `GradientWeighting`.
        aggregator: The aggregator. One that keeps a history (`GradVac`, `NashMTL`) trains, but cannot resume.
        seed: Seed of its random numbers.
    """

    calls: Tensor

    def __init__(
        self, tasks: Sequence[str], static: Mapping[str, float] | None = None, *, aggregator: Aggregator, seed: int = 0
    ) -> None:
        super().__init__(tasks, static)
        self.aggregator, self.seed = aggregator, seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def direct(self, gradients: Tensor, losses: Tensor, validation: Tensor | None) -> Tensor:  # noqa: ARG002
        if not bool(torch.isfinite(gradients).all()):
            return gradients.new_full(gradients.shape[1:], torch.nan)
        with _drawing(self.seed, self.calls, gradients.device):
            return self.aggregator(self.static.to(gradients)[:, None] * gradients)

    def get_extra_state(self) -> dict[str, Any]:
        return _kept(self.aggregator)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        _refuse(state)


def wrapped(
    given: object, tasks: Sequence[str], static: Mapping[str, float] | None, seed: int
) -> LossWeighting | GradientWeighting | None:
    """A TorchJD object as a weighting, or None for any other object.

    Raises:
        InputError: If it is a `FAMO`, whose `update` nothing here would call.
    """
    if isinstance(given, FAMO):
        raise InputError("TorchJD's FAMO learns in a call of its own. Found one. Take weighting 'famo' by name.")
    if isinstance(given, Scalarizer):
        return ScalarizerWeighting(tasks, static, scalarizer=given, seed=seed)
    if isinstance(given, GramianWeightedAggregator) and not _has_history(given):
        return GramianWeighting(tasks, static, solve=given.gramian_weighting, seed=seed)
    if isinstance(given, Aggregator):
        return AggregatorWeighting(tasks, static, aggregator=given, seed=seed)
    return None


def impartial(products: Tensor) -> Tensor:
    """IMTL-G (Liu et al. 2021): equal projections on all gradients.

    Turned round where its weights, scaled to the sum 1, would ascend; 0 where dependent gradients have no direction of
    equal projections, since what the formula gives then hurts a task.
    """
    weights = IMTLGWeighting()(products)
    gains = products @ weights
    gains, weights = gains * torch.sign(gains.sum()), weights * torch.sign(gains.sum())
    scale = (torch.diagonal(products) * (weights @ products @ weights).clamp(min=0)).sqrt()
    return weights if bool((gains >= -1e-6 * scale).all()) else torch.zeros_like(weights)


def named(
    name: str, tasks: Sequence[str], static: Mapping[str, float] | None, seed: int, *, mu: float = 0.1, c: float = 0.5
) -> LossWeighting | GradientWeighting:
    """The weighting of a name.

    Args:
        name: One that TorchJD or a solver serves.
        tasks: As in `LossWeighting`.
        static: As in `LossWeighting`.
        seed: Seed of its random numbers.
        mu: Of `stch`: the smaller, the nearer to the maximum.
        c: Of `cagrad`: radius of the ball.
    """
    scalarizers: dict[str, Callable[[], Scalarizer]] = {
        "gls": GeometricMean,
        "imtl_l": lambda: IMTLL(len(tasks)),
        "random": Random,
        "stch": lambda: STCH(mu),
    }
    solvers: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "aligned_mtl": AlignedMTLWeighting,
        "cagrad": lambda: conflict_averse(c),
        "dualproj": lambda: DualProjWeighting(projector=ConeProjector()),
        "imtl_g": lambda: impartial,
        "mgda": lambda: minimal_norm,
        "nash_mtl": lambda: nash,
        "pcgrad": PCGradWeighting,
        "upgrad": lambda: UPGradWeighting(projector=ConeProjector()),
    }
    if name in scalarizers:
        return ScalarizerWeighting(tasks, static, scalarizer=scalarizers[name](), seed=seed)
    if name == "graddrop":
        return AggregatorWeighting(tasks, static, aggregator=GradDrop(), seed=seed)
    return GramianWeighting(tasks, static, solve=solvers[name](), seed=seed)


@contextmanager
def _drawing(seed: int, calls: Tensor, device: torch.device) -> Iterator[None]:
    """Generators of torch in a state that the seed and the number of calls decide; as they were afterwards."""
    mixed = int(np.random.SeedSequence((seed, int(calls))).generate_state(1, np.uint64)[0] >> np.uint64(1))
    calls += 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(mixed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(mixed)
        yield


def _has_history(given: torch.nn.Module) -> bool:
    """Whether TorchJD says that an object or a part of it remembers calls, parameters aside."""
    return any(hasattr(part, "reset") for part in given.modules() if not isinstance(part, UW | IMTLL))


def _kept(given: torch.nn.Module) -> dict[str, Any]:
    return {"history": type(given).__name__ if _has_history(given) else None}


def _refuse(state: dict[str, Any]) -> None:
    if state.get("history") is not None:
        raise InputError(
            f"A run resumes with the whole state of its weighting, which TorchJD's {state['history']} does not save. "
            "Train with resume=False, or take a weighting by name."
        )
