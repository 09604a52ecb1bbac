"""Samplers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from adapterhub.errors import InputError, did_you_mean
from adapterhub.training.sampling._adaptive import Adaptive
from adapterhub.training.sampling._balanced import Balanced
from adapterhub.training.sampling._capped import Capped
from adapterhub.training.sampling._proportional import Proportional
from adapterhub.training.sampling._sampler import TaskSampler, check_names, check_sizes
from adapterhub.training.sampling._staged import Stage, Staged

__all__ = ["SAMPLINGS", "sampler_of"]

SAMPLINGS: Mapping[str, str] = MappingProxyType(
    {
        "proportional": "By the number of rows: every row of every task has the same chance.",
        "temperature": "By the number of rows to the power 1/temperature (Raffel et al. 2020): above 1 the small gain.",
        "balanced": "Round-robin: every task once a cycle, each cycle in a fresh order.",
        "adaptive": "By the gap between a task's metric and its target: what lags is asked more often.",
    }
)
"""Name and one line about each sampling."""


def sampler_of(
    given: str | TaskSampler,
    sizes: Mapping[str, int],
    *,
    temperature: float = 1.0,
    targets: Mapping[str, float] | None = None,
    lower_is_better: Collection[str] = (),
    max_repeats: float | None = None,
    batch_size: int,
    steps: int,
    stages: Sequence[Stage] | None = None,
    seed: int = 0,
) -> TaskSampler:
    """The sampler of a run.

    Args:
        given: One of `SAMPLINGS`, or a sampler, which is handed back.
        sizes: Training rows of each task.
        temperature: T of `temperature`.
        targets: Metrics to reach, of `adaptive`.
        lower_is_better: Tasks whose metric falls as they get better, of `adaptive`.
        max_repeats: How often a row may be read over the run at most; see `Capped`. None for no bound.
        batch_size: Rows of a batch.
        steps: Steps of the run, one batch each.
        stages: Parts of the run with tasks and a sampling of their own; see `Stage`.
        seed: Seed of every draw.

    Raises:
        InputError: If a name is unknown, or an argument is outside its range or does not belong to the sampling.
    """
    if not isinstance(given, str):
        alone = temperature == 1.0 and targets is None and max_repeats is None and stages is None
        if not alone:
            raise InputError(
                "A sampler of your own comes without `temperature`, `targets`, `max_repeats` and `stages`. Found some "
                "of them. Leave them out or name a sampling."
            )
        if "among" not in inspect.signature(given.next).parameters:
            raise InputError(
                "A sampler's `next` takes `among`, the tasks that early stopping has left. Found "
                f"{type(given).__name__} without it. Add it; None is for all tasks."
            )
        return given
    sizes = check_sizes(sizes)
    samplings = {given, *(stage.sampling for stage in stages or () if isinstance(stage.sampling, str))}
    _check_options(samplings, temperature, targets)
    check_names(targets or {}, sizes, "`targets`")
    check_names(lower_is_better, sizes, "`lower_is_better`")
    makers: dict[str, Callable[[dict[str, int], int], TaskSampler]] = {
        "proportional": lambda sizes, seed: Proportional(sizes, seed=seed),
        "temperature": lambda sizes, seed: Proportional(sizes, temperature=temperature, seed=seed),
        "balanced": lambda sizes, seed: Balanced(sizes, seed=seed),
        "adaptive": lambda sizes, seed: Adaptive(
            sizes,
            targets={name: target for name, target in (targets or {}).items() if name in sizes},
            lower_is_better=[name for name in lower_is_better if name in sizes],
            seed=seed,
        ),
    }
    sampler = makers[given](sizes, seed) if stages is None else _staged(stages, given, makers, sizes, steps, seed)
    if max_repeats is None:
        return sampler
    return Capped(sampler, sizes, max_repeats=max_repeats, batch_size=batch_size, steps=steps)


def _check_options(samplings: Collection[str], temperature: float, targets: Mapping[str, float] | None) -> None:
    faults = [
        f"`sampling` should be one of {', '.join(SAMPLINGS)}. Found {name!r}.{did_you_mean(name, SAMPLINGS)}"
        for name in samplings
        if name not in SAMPLINGS
    ]
    if temperature != 1.0 and "temperature" not in samplings:
        faults.append(f"`temperature` belongs to sampling='temperature'. Found {temperature!r} without it.")
    if targets is not None and "adaptive" not in samplings:
        faults.append("`targets` belong to sampling='adaptive'. Found them without it. Leave them out.")
    if faults:
        raise InputError("\n".join(faults))


def _staged(
    stages: Sequence[Stage],
    given: str,
    makers: Mapping[str, Callable[[dict[str, int], int], TaskSampler]],
    sizes: dict[str, int],
    steps: int,
    seed: int,
) -> Staged:
    parts = []
    for place, stage in enumerate(stages):
        check_names(stage.tasks, sizes, f"Stage {place + 1}")
        here = {name: size for name, size in sizes.items() if name in stage.tasks or not stage.tasks}
        sampling = given if stage.sampling is None else stage.sampling
        # Stages of the same tasks draw different sequences.
        sampler = makers[sampling](here, seed + place) if isinstance(sampling, str) else sampling
        parts.append((stage.share, tuple(here), sampler))
    return Staged(parts, sizes, steps=steps, seed=seed + len(stages))
