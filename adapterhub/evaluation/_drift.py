"""What a usage log says: calls, latency, abstentions, and whether the inputs are still those of the reference.

    PSI = Σ_b (p_b - q_b) ln(p_b / q_b)        shares of the window and of the reference in bin b

Numbers are put into tenths of the reference, tasks into one bin each. Without any change PSI · nm / (n + m) is about χ²
of bins - 1 degrees of freedom (Yurdakul 2018), so a small window has a large PSI by chance alone: a signal is flagged
where PSI is above 0.2, the usual mark, and above what chance gives in 1 of 1,000 windows; or where the mean has moved
by more than half a standard deviation and as surely.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from adapterhub.errors import InputError
from adapterhub.model import Usage

__all__ = ["AdapterUsage", "Drift", "UsageReport", "category_drift", "number_drift", "usage_report"]

NOTABLE = 0.2
MOVED = 0.5
CHANCE = 0.001
LEAST = 30
_BINS = 10
_HALF = 0.5  # added to each bin, so that an empty one has a share


@dataclass(frozen=True)
class AdapterUsage:
    """How one adapter was used; the base model, where it answered alone, has the name None.

    Args:
        name: The task whose head answered.
        calls: Texts.
        share: Of all texts.
        median_seconds: Median time of a text.
        p95_seconds: 95 % of the texts took no longer.
    """

    name: str | None
    calls: int
    share: float
    median_seconds: float
    p95_seconds: float


@dataclass(frozen=True)
class Drift:
    """How far a signal in the window is from the reference.

    Args:
        signal: `length`, `score`, `confidence` or `task`.
        adapter: The adapter whose inputs these are; empty for all.
        reference: Texts of the reference.
        window: Texts of the window.
        psi: Population stability index.
        bound: What PSI has to exceed.
        z: Difference of the means over its standard error, or None for tasks.
        moved: Difference of the means in standard deviations of the reference, or None for tasks.
        flagged: Whether the inputs have shifted.
    """

    signal: str
    adapter: str
    reference: int
    window: int
    psi: float
    bound: float
    z: float | None
    moved: float | None
    flagged: bool


@dataclass(frozen=True)
class UsageReport:
    """A log in figures.

    Args:
        calls: Texts.
        routed: Texts whose task the caller did not name.
        abstain_rate: Share of the routed texts that no adapter answered; None if none was routed.
        adapters: Most used first.
        drifts: Every signal with at least 30 texts on either side.
        first: Time of the first text, in seconds since 1970.
        last: Of the last.
    """

    calls: int
    routed: int
    abstain_rate: float | None
    adapters: tuple[AdapterUsage, ...]
    drifts: tuple[Drift, ...]
    first: float
    last: float


def usage_report(window: Sequence[Usage], reference: Sequence[Usage] = ()) -> UsageReport:
    """Count a window of usage, and hold its inputs against a reference.

    Args:
        window: What is reported.
        reference: What inputs were like when all was well; empty for no drift.

    Raises:
        InputError: If the window is empty.
    """
    if not window:
        raise InputError("A report needs at least one record. Found none. Let the model answer with a log first.")
    routed = [one for one in window if not one.told]
    times: dict[str | None, list[float]] = {}
    for one in window:
        times.setdefault(one.task, []).append(one.seconds)
    adapters = [
        AdapterUsage(
            name, len(found), len(found) / len(window), statistics.median(found), float(np.quantile(found, 0.95))
        )
        for name, found in times.items()
    ]
    return UsageReport(
        calls=len(window),
        routed=len(routed),
        abstain_rate=sum(not one.adapters for one in routed) / len(routed) if routed else None,
        adapters=tuple(sorted(adapters, key=lambda one: (-one.calls, one.name or ""))),
        drifts=tuple(_drifts(window, reference)),
        first=min(one.time for one in window),
        last=max(one.time for one in window),
    )


def number_drift(reference: Sequence[float], window: Sequence[float], signal: str, adapter: str = "") -> Drift:
    """Drift of a number, such as a score or the logarithm of a length.

    Args:
        reference: Its values in the reference.
        window: Its values now.
        signal: Its name.
        adapter: Whose inputs they are.
    """
    old, new = np.sort(np.asarray(reference, dtype=np.float64)), np.asarray(window, dtype=np.float64)
    edges = np.unique(np.quantile(old, np.arange(1, _BINS) / _BINS))
    counts = [np.bincount(np.searchsorted(edges, side, "left"), minlength=len(edges) + 1) for side in (old, new)]
    psi, bound = _stability(counts[0].tolist(), counts[1].tolist())
    difference, spread = float(new.mean() - old.mean()), float(old.std(ddof=1))
    error = math.sqrt(old.var(ddof=1) / len(old) + new.var(ddof=1) / len(new))
    z = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    moved = difference / spread if spread else math.copysign(math.inf, difference) if difference else 0.0
    sure = NormalDist().inv_cdf(1 - CHANCE / 2)
    flagged = psi > bound or (abs(z) > sure and abs(moved) > MOVED)
    return Drift(signal, adapter, len(old), len(new), psi, bound, z, moved, flagged)


def category_drift(reference: Sequence[str], window: Sequence[str], signal: str) -> Drift:
    """Drift of names, such as the tasks that answered.

    Args:
        reference: The names in the reference.
        window: The names now.
        signal: What they are.
    """
    old, new = Counter(reference), Counter(window)
    names = sorted(old | new)
    psi, bound = _stability([old[name] for name in names], [new[name] for name in names])
    return Drift(signal, "", len(reference), len(window), psi, bound, None, None, psi > bound)


def _stability(old: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
    """PSI, and the bound above which it is flagged."""
    bins = len(old)
    if bins < 2:
        return 0.0, NOTABLE
    left, right = ([(count + _HALF) / (sum(side) + _HALF * bins) for count in side] for side in (old, new))
    psi = math.fsum((q - p) * math.log(q / p) for p, q in zip(left, right, strict=True))
    by_chance = (1 / sum(old) + 1 / sum(new)) * _chi_square(bins - 1)
    return psi, max(NOTABLE, by_chance)


def _chi_square(freedom: int) -> float:
    """The quantile that chance exceeds once in a thousand (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + NormalDist().inv_cdf(1 - CHANCE) * math.sqrt(part)) ** 3)


def _drifts(window: Sequence[Usage], reference: Sequence[Usage]) -> list[Drift]:
    old, new = ([one for one in side if not one.told] for side in (reference, window))
    found = []
    if _enough(old, new):
        found.append(category_drift([one.task or "" for one in old], [one.task or "" for one in new], "task"))
    for signal in ("length", "score", "confidence"):
        for adapter in ("", *sorted({one.task for one in new if one.task})):
            before, now = _values(old, signal, adapter), _values(new, signal, adapter)
            if _enough(before, now):
                found.append(number_drift(before, now, signal, adapter))
    return found


def _enough(old: Sequence[object], new: Sequence[object]) -> bool:
    return min(len(old), len(new)) >= LEAST


def _values(side: Sequence[Usage], signal: str, adapter: str) -> list[float]:
    held = [one for one in side if not adapter or one.task == adapter]
    if signal == "length":
        return [math.log1p(one.length) for one in held]  # lengths differ by factors, not by characters
    found = [getattr(one, signal) for one in held]
    return [float(value) for value in found if value is not None]
