"""The training loop: one task, or several that share weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from adapterhub.errors import AdapterHubError
from adapterhub.training._balance import Balance, Found
from adapterhub.training._batches import collate, schedule, steps_per_epoch
from adapterhub.training._checkpoint import Checkpoint, Progress, State, Track
from adapterhub.training._encode import Features
from adapterhub.training._score import Score, evaluate
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit, losses_of, task_gradient
from adapterhub.training._watch import Watch
from adapterhub.training.optimisers import optimizer_of, parameter_groups
from adapterhub.training.sampling import ExhaustedError, Pacing, TaskSampler, curriculum
from adapterhub.training.weighting import LossWeighting

__all__ = ["DivergedError", "Loop"]


class DivergedError(AdapterHubError, ArithmeticError):
    """The loss or its gradient is no longer a finite number."""


class Loop:
    """Trains weights on the tasks that share them.

    With validation rows the weights in them afterwards are those of the best look, one task's by its metric, several
    tasks' by the mean of their losses, each over its first one. What a task trains alone comes from the task's own best
    look where it validates better with the shared weights that were kept. Without any they are the last ones.

    With `patience` a task that has not improved for so many looks is no longer drawn, and a step of all tasks takes
    those that are left; where a weighting compares the tasks it goes on giving gradients. With the last one the run
    ends. A task without training rows is measured, and one without validation rows has no say.

    Args:
        accelerator: Where the models are; its processes share each batch.
        units: The tasks.
        shared: By name, the weights that all of them train.
        balance: Puts the tasks' gradients together.
        sampler: Says whose batch a step takes; without one each step takes a batch of every task.
        settings: The run's settings.
        checkpoint: Where to save, or None.
        rates: Learning rates by task, for the weights that it trains alone.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        units: Sequence[Unit],
        shared: Mapping[str, Tensor],
        balance: Balance,
        settings: Settings,
        *,
        sampler: TaskSampler | None = None,
        checkpoint: Checkpoint | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self._accelerator, self._settings, self._checkpoint = accelerator, settings, checkpoint
        self._units = {unit.name: unit for unit in units}
        self.progress = Progress(tracks={name: Track() for name in self._units})
        self._shared = dict(shared)
        self._balance, self._sampler = balance, sampler
        # A task's own weights are named after it, by a name that no module has.
        own = {_own(unit.name, name): weight for unit in units for name, weight in unit.own.items()}
        weights = {**self._shared, **own}
        groups = parameter_groups(
            weights.items(),
            settings.learning_rate,
            lora_plus_ratio=settings.lora_plus_ratio,
            task_rates=rates,
        )
        learned = [] if balance.weighting is None else list(balance.weighting.to(accelerator.device).parameters())
        if learned:
            groups.append({"params": learned, "names": ["weighting"] * len(learned), "lr": settings.learning_rate})
        optimizer = optimizer_of(settings.optimiser, groups)
        scheduler = LambdaLR(optimizer, settings.factor)
        self._state = State(weights, optimizer, scheduler, balance.weighting, sampler)
        self._kept: dict[
            str, Tensor
        ] = {}  # `best.<name>`: all weights at the best look; `own.<name>`: at a task's best
        self._pass = max(1, *(steps_per_epoch(len(unit.rows), settings.batch_size) for unit in units))
        self._watch = Watch(units, settings, accelerator.device, narrows=balance.adds_up)

    def run(self, resume: bool, report: Callable[[int, float], None]) -> Progress:
        """Train.

        Args:
            resume: Whether to go on from the checkpoint if there is one.
            report: Called after each step with the number of steps done and a smoothed loss.

        Returns:
            What happened.

        Raises:
            DivergedError: If a loss or gradient is not finite; the last checkpoint is kept.
            IntegrityError: If a checkpoint cannot be written; the one before is kept.
        """
        orders = {name: self._order(unit) for name, unit in self._units.items() if unit.rows}
        if resume and self._checkpoint is not None and self._checkpoint.path.exists():
            self.progress, self._kept = self._checkpoint.restore(self._state)
            self._balance.conflicts = self.progress.conflicts
        progress, settings = self.progress, self._settings
        batches = {name: order(progress.tracks[name].batches) for name, order in orders.items()}
        begin, smooth = time.monotonic() - progress.seconds, math.nan
        while progress.step < settings.steps and not progress.stopped:
            if names := self._next():
                loss = self._step(names, batches)
                progress.step += 1
                smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
                report(progress.step, smooth)
            progress.stopped = not names
            if progress.step % settings.every == 0 or progress.step == settings.steps or progress.stopped:
                progress.seconds = time.monotonic() - begin
                self._look()
        self._settle()
        return progress

    def step(self, batches: Mapping[str, Sequence[Features]]) -> dict[str, float]:
        """One step of the optimiser on a batch of each of some tasks.

        Args:
            batches: Rows by task.

        Returns:
            The loss of each task before the step.

        Raises:
            DivergedError: If a loss or gradient is not finite; no weight has changed.
        """
        found = {
            name: task_gradient(
                self._accelerator,
                self._units[name],
                rows,
                [*self._shared.values(), *self._units[name].own.values()],
                self._settings.micro_batch_size,
            )
            for name, rows in batches.items()
        }
        self._balance.apply(found, self._validation_gradient())
        bound, optimizer = self._settings.max_grad_norm, self._state.optimizer
        touched = [weight for weight in self._state.weights.values() if weight.grad is not None]
        norm = get_total_norm([weight.grad for weight in touched if weight.grad is not None])
        losses = {name: loss for name, (loss, _) in found.items()}
        if not all(math.isfinite(number) for number in (float(norm), *losses.values())):
            optimizer.zero_grad()
            raise DivergedError(self._diverged(batches, found))
        if bound is not None:
            clip_grads_with_norm_(touched, bound, norm)
        optimizer.step()
        self._balance.measure()
        self._state.scheduler.step()
        optimizer.zero_grad()
        self._tell_weighting(batches)
        return losses

    def _left(self) -> list[str]:
        """The tasks that take part in the steps."""
        return [n for n, unit in self._units.items() if unit.rows and not self.progress.tracks[n].stopped]

    def _next(self) -> list[str]:
        """Whose batches the next step takes; none where no task that is left may be drawn again."""
        left = self._left()
        if self._sampler is None:
            return left
        try:
            return [self._sampler.next(left)]
        except ExhaustedError:
            if len(left) == len(self._units):
                raise
            return []

    def _step(self, names: Sequence[str], batches: Mapping[str, Iterator[list[int]]]) -> float:
        rows = {name: [self._units[name].rows[place] for place in next(batches[name])] for name in names}
        losses = self.step(rows)
        for name, loss in losses.items():
            track = self.progress.tracks[name]
            track.batches, track.losses, track.since = track.batches + 1, track.losses + loss, track.since + 1
        return math.fsum(losses.values()) / len(losses)

    def _order(self, unit: Unit) -> Callable[[int], Iterator[list[int]]]:
        """From the number of batches taken to the batches to come."""
        settings, lengths = self._settings, [len(row.ids) for row in unit.rows]
        size, seed = settings.batch_size, settings.seed + unit.stream
        if settings.curriculum is None or unit.stream:
            return lambda start: schedule(lengths, size, seed, start)
        easy = [float(n) for n in lengths]
        if settings.curriculum == "loss":
            easy = losses_of(self._accelerator, unit, unit.rows)
        pacing = Pacing(max(1, settings.steps // 2))
        return lambda start: curriculum(easy, lengths, size, seed, start, pacing=pacing)

    def _validation_gradient(self) -> Tensor | None:
        if not getattr(self._balance.weighting, "needs_validation_gradient", False):
            return None
        total: Tensor | None = None
        for name, unit in self._units.items():
            rows = self._watch.batch(name, self.progress.step).rows
            _, parts = task_gradient(self._accelerator, unit, rows, list(self._shared.values()), None)
            flat = torch.cat([part.flatten() for part in parts])
            total = flat if total is None else total + flat
        return total

    def _tell_weighting(self, batches: Mapping[str, Sequence[Features]]) -> None:
        weighting, step = self._balance.weighting, self.progress.step
        if weighting is None:
            return
        if (step + 1) % self._pass == 0:
            weighting.epoch()
        if not isinstance(weighting, LossWeighting):
            return
        if weighting.needs_validation_losses:
            scores = [evaluate(u.model, [self._watch.batch(name, step)], u.head) for name, u in self._units.items()]
            weighting.observe_validation(torch.tensor([score.loss for score in scores]))
        if weighting.needs_losses_after_step and len(batches) == len(self._units):
            units = [(self._units[name], rows) for name, rows in batches.items()]
            placed = [(u, collate(rows, u.head, u.pad).to(self._accelerator.device)) for u, rows in units]
            weighting.observe_after_step(torch.tensor([evaluate(u.model, [b], u.head).loss for u, b in placed]))

    def _diverged(self, batches: Mapping[str, Sequence[Features]], found: Found) -> str:
        wrong = [name for name, (loss, parts) in found.items() if not _finite(loss, parts)]
        name = next(iter(wrong or batches))  # where each is finite by itself, their sum is not
        rows = batches[name]
        names = ", ".join(row.example.where for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
        kept = f" The checkpoint before it is kept in {self._checkpoint.path.parent}." if self._checkpoint else ""
        return (
            f"Step {self.progress.step + 1}: loss and gradient are finite numbers. Found loss {found[name][0]} in the "
            f"batch of {names}. Lower the learning rate (now {self._settings.learning_rate}) or look at these "
            f"rows.{kept}"
        )

    def _look(self) -> None:
        """Evaluate, remember the best weights, decide on stopping, and save."""
        progress, left = self.progress, self._left()
        if any(track.history and track.history[-1].step == progress.step for track in progress.tracks.values()):
            return
        look = self._watch.look(progress)
        weights = self._state.weights
        if look.best:
            self._kept |= {f"best.{name}": weight.detach().clone() for name, weight in weights.items()}
        for name in look.improved:
            owned = [_own(name, weight) for weight in self._units[name].own]
            self._kept |= {f"own.{key}": weights[key].detach().clone() for key in owned}
        self._observe(look.scores, left)
        if self._checkpoint is not None and self._accelerator.is_main_process:
            self._checkpoint.save(progress, self._state, self._kept)

    @torch.no_grad()
    def _settle(self) -> None:
        """Put the weights of the best look in, and of each task's own those that validate better with them."""
        for key, weight in self._state.weights.items():
            weight.copy_(self._kept.get(f"best.{key}", weight))
        for name, unit in self._units.items():
            own = {weight: self._kept.get(f"own.{_own(name, key)}", weight) for key, weight in unit.own.items()}
            if all(torch.equal(weight, other.to(weight.device)) for weight, other in own.items()):
                continue
            now, before = self._watch.score(name).key(unit.head), [weight.clone() for weight in own]
            for weight, other in own.items():
                weight.copy_(other)
            if not self._watch.score(name).key(unit.head) < now:
                for weight, old in zip(own, before, strict=True):
                    weight.copy_(old)

    def _observe(self, scores: Mapping[str, Score], left: Sequence[str]) -> None:
        """Tell the sampler and the weighting how far each task is; a generating one by its likelihood a token."""
        metrics = {n: math.exp(-s.loss) if s.metric is None else s.metric for n, s in scores.items()}
        if self._sampler is not None and metrics:
            self._sampler.observe(metrics)
        weighting = self._balance.weighting
        self.progress.conflicts = self._balance.conflicts
        if weighting is not None:
            weighting.observe(metrics)
            self.progress.weights.append(self._balance.weights(left))


def _own(task: str, name: str) -> str:
    return f"{task}.{name}"


def _finite(loss: float, parts: Sequence[Tensor]) -> bool:
    return math.isfinite(loss) and all(bool(part.isfinite().all()) for part in parts)
