"""How several tasks share one adapter: whose turn it is, and whose gradient counts how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from adapterhub.errors import InputError, did_you_mean
from adapterhub.training._balance import Balance
from adapterhub.training._prepare import Prepared
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit
from adapterhub.training.sampling import SAMPLINGS, Stage, TaskSampler, sampler_of
from adapterhub.training.weighting import WEIGHTINGS, GradientWeighting, LossWeighting, weighting_of

__all__ = ["Sharing"]


@dataclass(frozen=True)
class Sharing:
    """How the tasks of a group share its adapter.

    With `patience` a task stops that has not improved for so many validations, and the others go on. It is drawn no
    more, or left out of the sum that each step follows; any other weighting compares the tasks, and there a stopped
    task goes on giving its gradient until all have stopped.

    Args:
        weighting: A name, a weighting or a TorchJD object; `sum` adds the gradients up.
        sampling: Whose batch a step takes, by a name or a sampler; None for a batch of every task in each step.
        temperature: Of `temperature` sampling.
        targets: Metrics to reach, of `adaptive` sampling and the `threshold` weighting.
        max_repeats: How often a row may be read at most.
        stages: Parts of the run with tasks and a sampling of their own.
        rates: Learning rates by task, for what it trains alone.

    Raises:
        InputError: If a weighting that compares tasks is to see one at a time.
    """

    weighting: Any = "sum"
    sampling: str | TaskSampler | None = None
    temperature: float = 1.0
    targets: Mapping[str, float] | None = None
    max_repeats: float | None = None
    stages: Sequence[Stage] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, given, known in (("weighting", self.weighting, WEIGHTINGS), ("sampling", self.sampling, SAMPLINGS)):
            if isinstance(given, str) and given not in known:
                near = did_you_mean(given, known)
                raise InputError(f"`{name}` should be one of {', '.join(known)}. Found {given!r}.{near}")
        if self.sampling is not None and self.weighting not in ("sum", "static"):
            raise InputError(
                f"A weighting compares tasks, so each step takes a batch of every one. Found weighting="
                f"{self.weighting!r} with sampling={self.sampling!r}. Leave one of them out."
            )
        if self.sampling is None and (self.stages is not None or self.max_repeats is not None):
            raise InputError(
                "`stages` and `max_repeats` say how batches are drawn. Found no `sampling`. Choose one of "
                f"{', '.join(SAMPLINGS)}."
            )

    def steps_per_epoch(self, batches: Sequence[int]) -> int:
        """Steps that take every row at least once.

        Args:
            batches: Batches of each task.
        """
        return max(batches) if self.sampling is None else sum(batches)

    def balance(
        self, tasks: Mapping[str, Prepared], shared: Mapping[str, Tensor], units: Sequence[Unit], settings: Settings
    ) -> Balance:
        """What puts the tasks' gradients together.

        Args:
            tasks: The data of each task; the card's `loss_weight` multiplies its loss before anything else.
            shared: The weights that all of them train.
            units: The tasks in the run, in the same order.
            settings: The run's settings.

        Raises:
            InputError: If the weighting is of other tasks, or asks for validation rows that a task lacks.
        """
        static = {name: one.task.loss_weight for name, one in tasks.items()}
        weighting = None
        if self.sampling is None:
            lower = [name for name, one in tasks.items() if one.task.head == "regression"]
            options = {"less_is_better": lower} if self.weighting == "threshold" else {}
            weighting = weighting_of(
                self.weighting, list(tasks), static=static, targets=self.targets, seed=settings.seed, **options
            )
            _check_validation(weighting, units)
        own = {unit.name: list(unit.own.values()) for unit in units}
        return Balance(weighting, list(shared.values()), own, clip=settings.per_task_clip, factors=static)

    def sampler(self, tasks: Mapping[str, Prepared], settings: Settings) -> TaskSampler | None:
        """The sampler of a run, or None where each step takes a batch of every task.

        Args:
            tasks: The data of each task.
            settings: The run's settings.
        """
        if self.sampling is None:
            return None
        return sampler_of(
            self.sampling,
            {name: len(one.rows) for name, one in tasks.items()},
            temperature=self.temperature,
            targets=self.targets,
            lower_is_better=[name for name, one in tasks.items() if one.task.head == "regression"],
            max_repeats=self.max_repeats,
            batch_size=settings.batch_size,
            steps=settings.steps,
            stages=self.stages,
            seed=settings.seed,
        )

    def record(self) -> dict[str, object]:
        """What a checkpoint remembers of it."""
        known = self.weighting if self.weighting in WEIGHTINGS else type(self.weighting).__name__
        sampling = self.sampling if isinstance(self.sampling, str | None) else type(self.sampling).__name__
        return {
            "weighting": known,
            "sampling": sampling,
            "temperature": self.temperature,
            "targets": self.targets,
            "max_repeats": self.max_repeats,
            "stages": None if self.stages is None else [str(stage) for stage in self.stages],
            "rates": dict(self.rates),
        }


def _check_validation(weighting: LossWeighting | GradientWeighting, units: Sequence[Unit]) -> None:
    asks = ("needs_validation_losses", "needs_validation_gradient")
    lacking = [unit.name for unit in units if not unit.validation]
    if lacking and any(getattr(weighting, name, False) for name in asks):
        raise InputError(
            f"Weighting {type(weighting).__name__} goes by validation rows in every step. Found none of "
            f"{', '.join(lacking)}. Set `validation`."
        )
