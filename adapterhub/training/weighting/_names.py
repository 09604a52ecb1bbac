"""Weightings by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Literal, NamedTuple

from adapterhub.errors import InputError, MissingExtraError, did_you_mean
from adapterhub.training.weighting._coba import Coba
from adapterhub.training.weighting._gradients import MetaWeighting
from adapterhub.training.weighting._pace import DynamicWeightAverage, Famo
from adapterhub.training.weighting._plain import InitialLoss, InverseLoss, Sum, Threshold, Uncertainty
from adapterhub.training.weighting._weighting import GradientWeighting, LossWeighting

__all__ = ["WEIGHTINGS", "Kind", "weighting_of"]

Weighting = LossWeighting | GradientWeighting


class Kind(NamedTuple):
    """What a weighting looks at, and in one line what it does."""

    kind: Literal["losses", "gradients"]
    description: str


WEIGHTINGS: Mapping[str, Kind] = MappingProxyType(
    {
        "sum": Kind("losses", "the sum of the losses, each times its static weight where there is one"),
        "static": Kind("losses", "the sum of the losses times static weights, which must be given"),
        "initial": Kind("losses", "each loss as a share of its first value"),
        "threshold": Kind("losses", "a task whose metric stays under its target counts more and more"),
        "uncertainty": Kind("losses", "learned log-variances (Kendall 2018); a high loss gets a low weight"),
        "inverse_loss": Kind("losses", "weight 1 / loss; a high loss gets a low weight"),
        "dwa": Kind("losses", "a task whose epoch mean falls slower counts more (Liu 2019)"),
        "famo": Kind("losses", "losses fall at equal relative rates (Liu 2023)"),
        "coba": Kind("losses", "validation losses converge together, divergence is held back (Gong 2024)"),
        "gls": Kind("losses", "geometric mean of the losses (Chennupati 2019)"),
        "imtl_l": Kind("losses", "learned scales that bring the losses to one size (Liu 2021)"),
        "stch": Kind("losses", "smooth maximum of the losses (Lin 2024)"),
        "random": Kind("losses", "random weights each step, the litmus test (Lin 2022)"),
        "upgrad": Kind("gradients", "mean of the gradients, each projected so that it hurts no task (Quinton 2024)"),
        "dualproj": Kind("gradients", "the mean gradient, projected so that it hurts no task (GEM, Lopez-Paz 2017)"),
        "pcgrad": Kind("gradients", "pairwise projection of conflicting gradients, in random order (Yu 2020)"),
        "mgda": Kind("gradients", "the shortest weighted mean of the gradients (Désidéri 2012)"),
        "cagrad": Kind("gradients", "best worst case in a ball around the mean gradient (Liu 2021)"),
        "imtl_g": Kind("gradients", "equal projections on all gradients (Liu 2021)"),
        "nash_mtl": Kind("gradients", "Nash's bargaining solution, solved exactly (Navon 2022)"),
        "aligned_mtl": Kind("gradients", "principal components of the gradients at equal scale (Senushkin 2023)"),
        "graddrop": Kind("gradients", "one sign for each parameter, drawn by how pure it is (Chen 2020)"),
        "meta": Kind("gradients", "weights that lower the validation loss one step ahead"),
    }
)

_PLAIN: dict[str, Callable[..., Weighting]] = {
    "sum": Sum,
    "static": Sum,
    "initial": InitialLoss,
    "threshold": Threshold,
    "uncertainty": Uncertainty,
    "inverse_loss": InverseLoss,
    "dwa": DynamicWeightAverage,
    "famo": Famo,
    "coba": Coba,
    "meta": MetaWeighting,
}
_OPTIONS = {"stch": ("mu",), "cagrad": ("c",)}  # of those that TorchJD's adapters make


def weighting_of(
    given: str | Weighting | Any,
    tasks: Sequence[str],
    *,
    static: Mapping[str, float] | None = None,
    targets: float | Mapping[str, float] | None = None,
    seed: int = 0,
    **options: Any,
) -> Weighting:
    """The weighting of a name, or an object as a weighting.

    Args:
        given: A name from `WEIGHTINGS`, a weighting (returned as it is), or a TorchJD `Scalarizer` or `Aggregator`.
        tasks: Names of the tasks, in the order of losses and gradients.
        static: Weights by task that multiply losses or gradients before anything else.
        targets: What each task's metric should reach; read by `threshold` alone.
        seed: Seed of the weightings that draw.
        options: Options of the named weighting, as in its class; `stch` takes `mu`, `cagrad` takes `c`.

    Raises:
        InputError: If the name, an option or a task is unknown, or an object given is for other tasks.
        MissingExtraError: If the weighting needs the `mtl` extra.
    """
    if not isinstance(given, str):
        return _from_object(given, tasks, static, seed, options)
    if given not in WEIGHTINGS:
        known = ", ".join(WEIGHTINGS)
        raise InputError(f"A weighting is one of {known}. Found {given!r}.{did_you_mean(given, WEIGHTINGS)}")
    if given == "static" and not static:
        raise InputError("Weighting 'static' needs static weights. Found none. Give `static` or set `loss_weight`.")
    if given == "threshold":
        options["targets"] = targets
    _check_options(given, options)
    if given in _PLAIN:
        return _PLAIN[given](tasks, static, **options)
    made: Weighting = _adapters(f"Weighting {given!r}").named(given, tasks, static, seed, **options)
    return made


def _from_object(
    given: Any, tasks: Sequence[str], static: Mapping[str, float] | None, seed: int, options: Mapping[str, Any]
) -> Weighting:
    if options:
        raise InputError(f"Options are for a weighting by name. Found {', '.join(options)} with {given!r}.")
    if isinstance(given, Weighting):
        if given.tasks != tuple(tasks):
            raise InputError(
                f"A weighting is for the tasks {', '.join(tasks)}. Found one for {', '.join(given.tasks)}."
            )
        return given
    made: Weighting | None = _adapters("A TorchJD object").wrapped(given, tasks, static, seed)
    if made is None:
        raise InputError(f"A weighting is a name, a weighting, or a TorchJD scalarizer or aggregator. Found {given!r}.")
    return made


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    if name in _PLAIN:
        signature = inspect.signature(_PLAIN[name]).parameters.values()
        known = tuple(entry.name for entry in signature if entry.kind is entry.KEYWORD_ONLY)
    else:
        known = _OPTIONS.get(name, ())
    faults = [
        f"Weighting {name!r} has the options {', '.join(known) or '(none)'}. Found `{option}`."
        + did_you_mean(option, known)
        for option in options
        if option not in known
    ]
    if faults:
        raise InputError("\n".join(faults))


def _adapters(feature: str) -> ModuleType:
    try:
        from adapterhub.training.weighting import _torchjd
    except ImportError as error:
        raise MissingExtraError(feature, "mtl") from error
    return _torchjd
