"""One task after another, and none forgotten."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import InputError, IntegrityError, did_you_mean
from adapterhub.task import Task
from adapterhub.training._deliver import Delivery
from adapterhub.training._encode import Features
from adapterhub.training._options import validations
from adapterhub.training._prepare import Prepared, prepare
from adapterhub.training._result import FitResult, result
from adapterhub.training._rows import DataSource
from adapterhub.training._score import METRICS, Score
from adapterhub.training._trainer import Trainer
from adapterhub.training.continual._continued import Older, continue_adapter
from adapterhub.training.continual._keeping import check_keep
from adapterhub.training.continual._memory import Entry, entries, features, held_out
from adapterhub.training.continual._reservoir import Reservoir
from adapterhub.training.continual._unchanged import changed, fingerprints

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["ContinualLearner"]


class ContinualLearner:
    """Learns task after task into a registry.

    By default a task gets an adapter of its own: it shares no parameter with any other, so nothing can be forgotten,
    and every other adapter is held against its bytes afterwards. With `shared=` an adapter that serves other tasks is
    trained on, and rows of those, remembered in one bounded, class-balanced buffer, keep it from forgetting.

    Args:
        trainer: Its registry, base, rate, steps and seed are used.
        replay_buffer_size: Rows that are remembered at most, of all tasks together.

    Raises:
        InputError: If `replay_buffer_size` is below 1.
    """

    def __init__(self, trainer: Trainer, replay_buffer_size: int = 1000) -> None:
        self._trainer = trainer
        self._registry: Registry = trainer._registry
        self._groups: list[dict[str, str | None]] = []  # by task, the content hash of the adapter that learned it
        self.buffer: Reservoir[Entry] = Reservoir(replay_buffer_size, seed=trainer._run.options.seed)

    def learn_new_task(
        self,
        name: str,
        data: DataSource,
        card: Task | None = None,
        *,
        shared: str | None = None,
        keep: str | Collection[str] = "replay",
        strength: float | Mapping[str, float] = 1.0,
        validation: Mapping[str, DataSource] | None = None,
        check: bool = True,
    ) -> FitResult:
        """Train and register a task.

        With `shared` the trainer's checkpoints, clipping, micro-batches, early stopping and best by validation serve as
        in `Trainer.fit`; a run that was killed resumes with a learner that has the same state. Older tasks lose what
        was measured of them with the adapter as it was, unless `validation` measures them again.

        Args:
            name: The task.
            data: Its rows; see `Trainer.fit`.
            card: Its card, where the registry does not hold it.
            shared: A task whose adapter is trained on and then serves both, together with all that share it already.
                Head, labels and base are the same. By default the new task has its own adapter.
            keep: How the older tasks are kept with `shared`: `replay`, `gem`, `ewc` or `distillation`, several of them,
                or `()` to train on and forget.
            strength: How much the older tasks count beside the new one: λ of `keep`, or of each way by name. About 1
                for replay and distillation; EWC's grows with how sure the older tasks are, 1e2 to 1e6.
            validation: By task, validation rows of older tasks that share the adapter, which it was not trained on. The
                weights that are kept are then those at which the new task and these do best together, `patience`
                waits for all of them, and the card of each states what it reaches.
            check: Whether to read the adapters of all other tasks before and after, and hold them against each other.

        Returns:
            As of `Trainer.fit`.

        Raises:
            TaskNotFoundError: If the task has no card, or there is no task `shared`.
            DataError: If rows are faulty.
            InputError: If the task has an adapter already, does not fit `shared`, or rows to remember are missing; or
                if `validation` names a task that does not share the adapter.
            DivergedError: If the loss is no longer finite; nothing is registered then.
            IntegrityError: If another task's card or adapter has changed meanwhile, or the disk is full.
        """
        ways = check_keep(keep, strength)
        cards = {} if card is None else {name: card}
        one = self._prepared(name, data, cards)
        if one.task.adapter is not None and not self._interrupted(name, shared):
            raise InputError(
                f"A new task has no adapter yet. {name} has {one.task.adapter}. Train it again with `Trainer.fit`."
            )
        members = {} if shared is None else self._members(shared, name)
        _check_measured(validation or {}, members)
        before = fingerprints(self._registry, {name, *members}) if check else {}
        if shared is None:
            found = self._trainer.fit({name: data}, cards)[name]
        else:
            found = self._learn_shared(one, self._registry[shared], members, ways, validation or {})
        if check and (faults := changed(before, fingerprints(self._registry, {name, *members}))):
            raise IntegrityError(
                f"Learning {name} leaves every other task as it was. Found otherwise:\n" + "\n".join(faults)
            )
        self._keep_rows(one)
        return found

    def remember(self, name: str, data: DataSource) -> int:
        """Offer the rows of a task that was trained elsewhere to the buffer.

        Args:
            name: A task of the registry.
            data: The rows that it was trained on.

        Returns:
            How many rows of the task are in the buffer now.

        Raises:
            TaskNotFoundError: If there is no such task.
            DataError: If rows are faulty.
        """
        self._keep_rows(self._prepared(name, data, {}))
        return sum(entry["task"] == name for entry in self.buffer)

    def state_dict(self) -> dict[str, Any]:
        """The buffer, and which tasks share an adapter, with the version that learned each; JSON holds it."""
        return {"buffer": self.buffer.state_dict(), "groups": [dict(group) for group in self._groups]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: If it holds more rows than `replay_buffer_size`.
        """
        self.buffer.load_state_dict(state["buffer"])
        self._groups = [dict(group) for group in state["groups"]]

    def _prepared(self, name: str, data: DataSource, cards: Mapping[str, Task]) -> Prepared:
        trainer, options = self._trainer, self._trainer._run.options
        return prepare(
            trainer._tasks({name: data}, cards),
            {name: data},
            validations(trainer._validation, [name], needed=options.patience is not None),
            validation_rows=options.validation_rows,
            max_length=options.max_length,
        )[name]

    def _keep_rows(self, one: Prepared) -> None:
        for entry, label in entries(one):
            self.buffer.add(entry, label)

    def _interrupted(self, name: str, shared: str | None) -> bool:
        """Whether a run to go on with was killed while its adapter was given to the tasks: `shared` gets it last."""
        run = self._trainer._run
        if shared is None or not run.resume or run.checkpoints is None:
            return False
        known = (run.checkpoints / name / "checkpoint.safetensors").is_file()
        return known and self._registry[name].sha256 != self._registry[shared].sha256

    def _members(self, shared: str, new: str) -> dict[str, str | None]:
        """The tasks that the adapter of `shared` serves: those that joined it here and still have its bytes.

        Each with the content hash of the adapter as it was when the task was learned.

        Where a run was killed while its adapter was given to them, some have that of the new task already.
        """
        alone = {shared: self._registry[shared].sha256}
        group = next((group for group in self._groups if shared in group), alone)
        serving = {self._registry[shared].sha256, self._registry[new].sha256 if new in self._registry else None}
        found = {
            name: learned
            for name, learned in group.items()
            if name == shared or (name in self._registry and self._registry[name].sha256 in serving - {None})
        }
        return found if len(found) > 1 else alone  # where the others have left, it was trained again meanwhile

    def _learn_shared(
        self,
        one: Prepared,
        shared: Task,
        members: Mapping[str, str | None],
        ways: Mapping[str, float],
        validation: Mapping[str, DataSource],
    ) -> FitResult:
        self._check_shared(one, shared)
        start, run = self._registry.adapter_path(shared.name), self._trainer._run
        assert start is not None
        most = run.options.validation_rows
        measured = {name: held_out(self._registry[name], rows, one, most) for name, rows in validation.items()}
        learned = {name: self._learned(name, shared, members[name]) for name in members} if "ewc" in ways else {}
        older = Older(self._memories(one, members, ways, measured), learned, list(measured.values()), ways)
        accelerator = run.accelerator()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "adapter"
            progress, scores = continue_adapter(run, one, older, start, folder, accelerator, sha256=shared.sha256)
            delivery, stored = Delivery(self._registry, register=True, out=None), {}
            older_tasks = [self._registry[name] for name in members if name != shared.name]
            for task in (one.task, *older_tasks, shared):  # `shared` last: until then a killed run can go on
                # What was measured with the adapter as it was does not hold for this one.
                card = replace(task, metrics=_metrics(task, scores), adapter=None, sha256=None)
                stored[task.name] = delivery.deliver(card, folder, accelerator)
        task, place = stored[one.task.name]
        group = {**members, task.name: task.sha256}
        self._groups = [other for other in self._groups if shared.name not in other] + [group]
        return result(task, one, progress, scores.get(task.name), place)

    def _learned(self, name: str, shared: Task, sha256: str | None) -> tuple[Path, str | None]:
        """The adapter as it was when a task was learned: that of `shared` now, or an older version of the task's."""
        now = self._registry.adapter_path(shared.name)
        if sha256 is None or sha256 == shared.sha256:
            assert now is not None
            return now, shared.sha256
        return self._registry.pinned_path(name, sha256), sha256

    def _memories(
        self, one: Prepared, members: Collection[str], ways: Collection[str], measured: Mapping[str, Prepared]
    ) -> dict[str, list[Features]]:
        """Remembered rows of each older task, as many ways of keeping them ask for."""
        if not ways:
            return {}
        found = {}
        for name in members:
            held = [entry for entry in self.buffer if entry["task"] == name]
            others = measured[name].validation if name in measured else ()
            found[name] = features(held, self._registry[name], one, others)
        empty = [name for name, rows in found.items() if not rows]
        if empty and set(ways) != {"distillation"}:
            raise InputError(
                f"Keeping a task with {' and '.join(ways)} needs remembered rows of it. Found none of "
                f"{', '.join(empty)}. Call `remember`, or raise `replay_buffer_size`."
            )
        return {name: rows for name, rows in found.items() if rows}

    def _check_shared(self, one: Prepared, shared: Task) -> None:
        task, faults = one.task, []
        if shared.adapter is None:
            faults.append(f"{shared.name} needs an adapter to be trained on. Found none. Train it first.")
        if task.head == "regression":
            faults.append("A regression's adapter has its own scale and is not trained on. Leave `shared` out.")
        if shared.stack:
            faults.append(f"{shared.name} lies on top of {list(shared.stack)} and is not trained on. Leave it out.")
        places = [self._registry.place_of_base(base) for base in (task.base_model, shared.base_model)]
        for what, new, old in (
            ("head", task.head, shared.head),
            ("labels", list(task.labels), list(shared.labels)),
            ("base_model", *places),
        ):
            if new != old:
                faults.append(
                    f"Tasks that share an adapter have one `{what}`. Found {new!r}, and {old!r} of {shared.name}."
                )
        if faults:
            raise InputError("\n".join(faults))


def _metrics(task: Task, scores: Mapping[str, Score]) -> dict[str, float]:
    score = scores.get(task.name)
    return {} if score is None or score.metric is None else {METRICS[task.head]: score.metric}


def _check_measured(validation: Mapping[str, DataSource], members: Collection[str]) -> None:
    faults = [
        f"`validation` is of older tasks that share the adapter: {', '.join(members) or 'none without `shared`'}. "
        f"Found {name}.{did_you_mean(name, members)}"
        for name in validation
        if name not in members
    ]
    if faults:
        raise InputError("\n".join(faults))
