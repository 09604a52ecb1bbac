"""The training loop: one task, or several that share weights."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from adapterhub.errors import AdapterHubError
from adapterhub.training._balance import Balance
from adapterhub.training._batches import Batch, by_length, collate, schedule, steps_per_epoch
from adapterhub.training._checkpoint import Checkpoint, Evaluation, Progress, Track
from adapterhub.training._encode import Features
from adapterhub.training._score import Score, evaluate
from adapterhub.training._settings import Settings
from adapterhub.training._unit import Unit, losses_of, task_gradient
from adapterhub.training.optimisers import optimizer_of, parameter_groups
from adapterhub.training.sampling import Pacing, TaskSampler, curriculum
from adapterhub.training.weighting import LossWeighting

__all__ = ["DivergedError", "Loop"]


class DivergedError(AdapterHubError, ArithmeticError):
    """The loss or its gradient is no longer a finite number."""


class Loop:
    """Trains weights on the tasks that share them; the best by validation, else the last, are in them afterwards.

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
        own = {f"{unit.name}.{name}": weight for unit in units for name, weight in unit.own.items()}
        self._weights = {**self._shared, **own}
        groups = parameter_groups(
            self._weights.items(),
            settings.learning_rate,
            lora_plus_ratio=settings.lora_plus_ratio,
            task_rates=rates,
        )
        learned = [] if balance.weighting is None else list(balance.weighting.to(accelerator.device).parameters())
        if learned:
            groups.append({"params": learned, "names": ["weighting"] * len(learned), "lr": settings.learning_rate})
        self._optimizer = optimizer_of(settings.optimiser, groups)
        self._scheduler = LambdaLR(self._optimizer, settings.factor)
        self._best: dict[str, Tensor] = {}
        self._pass = max(1, *(steps_per_epoch(len(unit.rows), settings.batch_size) for unit in units))
        self._validation = {unit.name: self._placed(unit) for unit in units}
        self._asked = {name: itertools.cycle(batches) for name, batches in self._validation.items()}

    def run(self, resume: bool, report: Callable[[int, float], None]) -> Progress:
        """Train.

        Args:
            resume: Whether to go on from the checkpoint if there is one.
            report: Called after each step with the number of steps done and a smoothed loss.

        Returns:
            What happened.

        Raises:
            DivergedError: If a loss or gradient is not finite; the last checkpoint is kept.
        """
        orders = {name: self._order(unit) for name, unit in self._units.items()}
        if resume and self._checkpoint is not None and self._checkpoint.path.exists():
            self.progress, self._best = self._checkpoint.restore(
                self._weights, self._optimizer, self._scheduler, self._balance.weighting, self._sampler
            )
            self._balance.conflicts = self.progress.conflicts
        progress, settings = self.progress, self._settings
        batches = {name: order(progress.tracks[name].batches) for name, order in orders.items()}
        begin, smooth = time.monotonic() - progress.seconds, math.nan
        while progress.step < settings.steps and not progress.stopped:
            loss = self._step(self._next(), batches)
            progress.step += 1
            smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
            report(progress.step, smooth)
            if progress.step % settings.every == 0 or progress.step == settings.steps:
                progress.seconds = time.monotonic() - begin
                self._look()
        with torch.no_grad():
            for name, tensor in self._best.items():
                self._weights[name].copy_(tensor)
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
        bound = self._settings.max_grad_norm
        touched = [weight for weight in self._weights.values() if weight.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(touched, math.inf if bound is None else bound))
        losses = {name: loss for name, (loss, _) in found.items()}
        for name, loss in losses.items():
            if not math.isfinite(loss) or not math.isfinite(norm):
                self._optimizer.zero_grad()
                raise DivergedError(self._diverged(batches[name], loss))
        self._optimizer.step()
        self._balance.measure()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self._tell_weighting(batches)
        return losses

    def _next(self) -> list[str]:
        return list(self._units) if self._sampler is None else [self._sampler.next()]

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
        if settings.curriculum is None:
            return lambda start: schedule(lengths, settings.batch_size, settings.seed, start)
        easy = [float(n) for n in lengths]
        if settings.curriculum == "loss":
            easy = losses_of(self._accelerator, unit, unit.rows)
        pacing = Pacing(max(1, settings.steps // 2))
        return lambda start: curriculum(easy, lengths, settings.batch_size, settings.seed, start, pacing=pacing)

    def _placed(self, unit: Unit) -> list[Batch]:
        batches = by_length(unit.validation, 2 * self._settings.batch_size)
        return [collate(rows, unit.head, unit.pad).to(self._accelerator.device) for rows in batches]

    def _validation_gradient(self) -> Tensor | None:
        if not getattr(self._balance.weighting, "needs_validation_gradient", False):
            return None
        total: Tensor | None = None
        for name, unit in self._units.items():
            _, parts = task_gradient(
                self._accelerator, unit, next(self._asked[name]).rows, list(self._shared.values()), None
            )
            flat = torch.cat([part.flatten() for part in parts])
            total = flat if total is None else total + flat
        return total

    def _tell_weighting(self, batches: Mapping[str, Sequence[Features]]) -> None:
        weighting = self._balance.weighting
        if weighting is None:
            return
        if (self.progress.step + 1) % self._pass == 0:
            weighting.epoch()
        if not isinstance(weighting, LossWeighting):
            return
        if weighting.needs_validation_losses:
            scores = [evaluate(u.model, [next(self._asked[name])], u.head) for name, u in self._units.items()]
            weighting.observe_validation(torch.tensor([score.loss for score in scores]))
        if weighting.needs_losses_after_step and len(batches) == len(self._units):
            units = [(self._units[name], rows) for name, rows in batches.items()]
            placed = [(u, collate(rows, u.head, u.pad).to(self._accelerator.device)) for u, rows in units]
            weighting.observe_after_step(torch.tensor([evaluate(u.model, [b], u.head).loss for u, b in placed]))

    def _diverged(self, rows: Sequence[Features], loss: float) -> str:
        names = ", ".join(row.example.where for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
        kept = f" The checkpoint before it is kept in {self._checkpoint.path.parent}." if self._checkpoint else ""
        return (
            f"Step {self.progress.step + 1}: loss and gradient are finite numbers. Found loss {loss} in the batch of "
            f"{names}. Lower the learning rate (now {self._settings.learning_rate}) or look at these rows.{kept}"
        )

    def _look(self) -> None:
        """Evaluate, remember the best weights, decide on stopping, and save."""
        progress, patience = self.progress, self._settings.patience
        scores = {name: self._score(unit) for name, unit in self._units.items()}
        for name, score in scores.items():
            self._track(progress.tracks[name], score, self._units[name].head)
        if all(scores.values()):
            key = self._key({name: score for name, score in scores.items() if score is not None})
            if math.isfinite(sum(key)) and (not progress.best or key < progress.best):
                progress.best = key
                self._best = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        progress.stopped = patience is not None and all(t.misses >= patience for t in progress.tracks.values())
        self._observe({name: score for name, score in scores.items() if score is not None})
        if self._checkpoint is not None and self._accelerator.is_main_process:
            self._checkpoint.save(
                progress, self._weights, self._best, self._optimizer, self._scheduler,
                self._balance.weighting, self._sampler,
            )  # fmt: skip

    def _score(self, unit: Unit) -> Score | None:
        batches = self._validation[unit.name]
        return evaluate(unit.model, batches, unit.head) if batches else None

    def _track(self, track: Track, score: Score | None, head: str) -> None:
        found = (score.loss, score.metric) if score else (None, None)
        track.history.append(Evaluation(self.progress.step, track.losses / max(track.since, 1), *found))
        track.losses, track.since = 0.0, 0
        if score is not None:
            key = score.key(head)
            better = math.isfinite(sum(key)) and (not track.best or key < track.best)
            track.best, track.misses = (key, 0) if better else (track.best, track.misses + 1)

    def _key(self, scores: Mapping[str, Score]) -> tuple[float, ...]:
        """Less is better: one task's own key; of several the mean of their losses, each over its first one."""
        if len(scores) == 1:
            (name, score), *_ = scores.items()
            return score.key(self._units[name].head)
        first = {name: track.history[0].validation_loss or 1.0 for name, track in self.progress.tracks.items()}
        return (math.fsum(score.loss / first[name] for name, score in scores.items()) / len(scores),)

    def _observe(self, scores: Mapping[str, Score]) -> None:
        """Tell the sampler and the weighting how far each task is; a generating one by its likelihood a token."""
        metrics = {n: math.exp(-s.loss) if s.metric is None else s.metric for n, s in scores.items()}
        if self._sampler is not None and metrics:
            self._sampler.observe(metrics)
        weighting = self._balance.weighting
        self.progress.conflicts = self._balance.conflicts
        if weighting is not None:
            weighting.observe(metrics)
            last = weighting.weights()
            self.progress.weights.append([] if last is None else last.tolist())
