"""The trainer's options, checked together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import InputError, did_you_mean
from adapterhub.training._rows import DataSource
from adapterhub.training._settings import Settings
from adapterhub.training.optimisers import OPTIMISERS

__all__ = ["Options", "validations"]

_CHOICES = {
    "method": ("lora", "bottleneck"),
    "decay": ("linear", "cosine"),
    "mixed_precision": ("no", "bf16"),
    "optimiser": tuple(OPTIMISERS),
    "curriculum": ("length", "loss"),
}
_OPTIONAL = (
    "alpha",
    "targets",
    "max_steps",
    "max_length",
    "evaluate_every",
    "patience",
    "lora_plus_ratio",
    "max_grad_norm",
    "per_task_clip",
    "micro_batch_size",
    "curriculum",
)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_COUNT = ("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
_POSITIVE = ("a number above 0", lambda value: _is_number(value) and value > 0)
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rank": _COUNT,
    "alpha": _POSITIVE,
    "targets": ("at least one module name", bool),
    "learning_rate": _POSITIVE,
    "warmup": ("a share in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1),
    "batch_size": _COUNT,
    "epochs": _POSITIVE,
    "max_steps": _COUNT,
    "max_length": _COUNT,
    "validation_rows": _COUNT,
    "evaluate_every": _COUNT,
    "patience": _COUNT,
    "lora_plus_ratio": ("a number of at least 1", lambda value: _is_number(value) and value >= 1),
    "max_grad_norm": _POSITIVE,
    "per_task_clip": _POSITIVE,
    "micro_batch_size": _COUNT,
    "seed": ("a whole number from 0 to 4294967295", lambda value: _is_whole(value) and 0 <= value < 2**32),
    "norms": ("True or False", lambda value: isinstance(value, bool)),
}


@dataclass(frozen=True)
class Options:
    """How adapters are shaped and trained; see `Trainer`.

    Raises:
        InputError: If an option is outside its range; the message lists every one.
    """

    method: str
    rank: int
    alpha: float | None
    targets: tuple[str, ...] | None
    learning_rate: float
    warmup: float
    decay: str
    batch_size: int
    epochs: float
    max_steps: int | None
    max_length: int | None
    validation_rows: int
    evaluate_every: int | None
    patience: int | None
    seed: int
    mixed_precision: str
    optimiser: str
    lora_plus_ratio: float | None
    max_grad_norm: float | None
    per_task_clip: float | None
    micro_batch_size: int | None
    curriculum: str | None
    gradient_checkpointing: bool
    norms: bool = False

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise InputError("\n".join(faults))

    def _faults(self) -> Iterator[str]:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known and not (value is None and name in _OPTIONAL):
                near = did_you_mean(str(value), known)
                yield f"`{name}` should be one of {', '.join(known)}. Found {value!r}.{near}"
        for name, (rule, holds) in _RULES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not holds(value):
                yield f"`{name}` should be {rule}. Found {value!r}."

    @property
    def shape(self) -> dict[str, Any]:
        """What decides the shape of any adapter of the run."""
        return {"method": self.method, "rank": self.rank, "alpha": self.alpha, "targets": self.targets}

    def settings(self, steps_per_epoch: int) -> Settings:
        """The settings of one run.

        Args:
            steps_per_epoch: Steps that take every row once.
        """
        steps = self.max_steps or max(1, round(self.epochs * steps_per_epoch))
        return Settings(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            steps=steps,
            every=self.evaluate_every or math.ceil(steps / 10),
            warmup=self.warmup,
            decay=self.decay,
            patience=self.patience,
            seed=self.seed,
            mixed_precision=self.mixed_precision,
            optimiser=self.optimiser,
            lora_plus_ratio=self.lora_plus_ratio,
            max_grad_norm=self.max_grad_norm,
            per_task_clip=self.per_task_clip,
            micro_batch_size=self.micro_batch_size,
            curriculum=self.curriculum,
        )


def validations(
    given: float | DataSource | Mapping[str, float | DataSource], names: Sequence[str], *, needed: bool = False
) -> dict[str, float | DataSource]:
    """What each task is validated on.

    Args:
        given: A share for all, data for the only task, or either by task name.
        names: The tasks.
        needed: Whether every task needs validation rows, because they decide when to stop.

    Raises:
        InputError: If a share is outside [0, 1) or 0 where rows are needed, or names and tasks do not match.
    """
    if isinstance(given, Mapping):
        faults = [f"`validation` has no entry for {name}. Add one, 0 for none." for name in names if name not in given]
        faults += [
            f"`validation` names {name}, which is not trained here.{did_you_mean(name, names)}"
            for name in given
            if name not in names
        ]
        found: dict[str, float | DataSource] = {name: given[name] for name in names if name in given}
    else:
        shared = isinstance(given, int | float)
        faults = [] if shared or len(names) == 1 else ["`validation` data of several tasks is a mapping by task name."]
        found = dict.fromkeys(names, given)
    for name, value in found.items():
        if isinstance(value, int | float) and not (_is_number(value) and 0 <= value < 1):
            faults.append(f"`validation` of {name} should be a share in [0, 1), or data. Found {value!r}.")
        elif needed and value == 0:
            faults.append(f"`patience` needs validation rows. Found validation=0 for {name}. Set a share aside.")
    if faults:
        raise InputError("\n".join(faults))
    return found
