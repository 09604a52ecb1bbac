"""Outcomes drawn at random, with known gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adapterhub.evaluation import Outcome


def plain(task: str, method: str, values: Sequence[float], metric: str = "accuracy", **more) -> list[Outcome]:
    """One outcome a seed, without rows."""
    return [Outcome(task, method, seed, metric, value, **more) for seed, value in enumerate(values)]


def drawn(
    rates: Mapping[str, Mapping[str, float]], *, rows: int = 200, seeds: int = 3, random: int = 0
) -> list[Outcome]:
    """Accuracy outcomes of the tasks' methods: rows right with these rates."""
    generator = np.random.default_rng(random)
    found = []
    for task, methods in rates.items():
        luck = generator.random(rows)  # how hard a row is: the same for everyone
        for method, rate in methods.items():
            for seed in range(seeds):
                right = (0.7 * luck + 0.3 * generator.random(rows) < _threshold(rate)).astype(float)
                found.append(Outcome(task, method, seed, "accuracy", float(right.mean()), tuple(right)))
    return found


def _threshold(rate: float) -> float:
    draw = np.random.default_rng(1)
    return float(np.quantile(0.7 * draw.random(20_000) + 0.3 * draw.random(20_000), rate))
