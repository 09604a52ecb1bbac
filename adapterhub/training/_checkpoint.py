"""A run's state in one safetensors file: nothing is pickled, and the file is replaced in one step."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from adapterhub.errors import InputError, IntegrityError
from adapterhub.training._disk import remove, writing

__all__ = ["Checkpoint", "Evaluation", "Progress", "State", "Track"]


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation rows.

    Args:
        step: Steps done.
        train_loss: Mean loss of the batches since the last look; where there were none, as at the last look, and NaN
            before the first batch.
        validation_loss: Mean validation loss, or None without validation rows.
        metric: The head's metric, or None where it is not measured on the way (generation).
    """

    step: int
    train_loss: float
    validation_loss: float | None
    metric: float | None


@dataclass
class Track:
    """How far one task of a run is.

    Args:
        batches: Batches taken.
        losses: Sum of their losses since the last evaluation.
        since: Number of those losses.
        best: The best evaluation's key, less is better; empty before the first.
        misses: Evaluations since the best.
        stopped: The step at which early stopping took the task out of the run; 0 while it takes part.
        history: All evaluations.
    """

    batches: int = 0
    losses: float = 0.0
    since: int = 0
    best: tuple[float, ...] = ()
    misses: int = 0
    stopped: int = 0
    history: list[Evaluation] = field(default_factory=list)


@dataclass
class Progress:
    """How far a run is; all of it goes into the checkpoint.

    Args:
        step: Steps done.
        seconds: Time spent, earlier sessions included.
        best: Key of the best evaluation of the run as a whole, less is better; empty before the first.
        stopped: Whether early stopping ended the run, as every task has stopped.
        tracks: Each task's own part.
        weights: At each evaluation the weights that the weighting last gave the tasks, in their order.
        conflicts: Steps counted, and those whose direction and whose update hurt a task; see `ConflictMeter`.
    """

    step: int = 0
    seconds: float = 0.0
    best: tuple[float, ...] = ()
    stopped: bool = False
    tracks: dict[str, Track] = field(default_factory=dict)
    weights: list[list[float]] = field(default_factory=list)
    conflicts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Progress:
        """What `to_dict` gave."""
        tracks = {}
        for name, track in fields["tracks"].items():
            history = [Evaluation(**entry) for entry in track["history"]]
            tracks[name] = Track(**{**track, "best": tuple(track["best"]), "history": history})
        return cls(**{**fields, "best": tuple(fields["best"]), "tracks": tracks})


@dataclass(frozen=True)
class State:
    """All that a run changes as it goes, beside its progress.

    Args:
        weights: What is trained, by name.
        optimizer: The optimiser.
        scheduler: The learning rate's schedule.
        weighting: What balances the tasks, or None.
        sampler: Who draws them, or None.
    """

    weights: Mapping[str, torch.Tensor]
    optimizer: Any
    scheduler: Any
    weighting: nn.Module | None = None
    sampler: Stateful | None = None


class Stateful(Protocol):
    """Something whose state is JSON."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class Checkpoint:
    """The checkpoint of one task's run.

    Args:
        folder: Where `checkpoint.safetensors` lies.
        run: What the run depends on; a checkpoint of another run is refused.
    """

    def __init__(self, folder: Path, run: Mapping[str, object]) -> None:
        self.path = folder / "checkpoint.safetensors"
        self._run = json.loads(json.dumps(run))

    def save(self, progress: Progress, state: State, kept: Mapping[str, torch.Tensor]) -> None:
        """Write everything, durably and atomically: the file that was there is replaced once the new one is whole.

        Args:
            progress: How far the run is.
            state: What it has changed.
            kept: Weights to come back to, named `best.<name>` and `own.<name>`.

        Raises:
            IntegrityError: If the disk is full, or the folder cannot be written to; the checkpoint before is kept.
        """
        optimizer, weighting, sampler = state.optimizer, state.weighting, state.sampler
        tensors = {f"weights.{name}": tensor.detach() for name, tensor in state.weights.items()} | dict(kept)
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        balance = {} if weighting is None else weighting.state_dict()
        tensors |= {f"weighting.{n}": value for n, value in balance.items() if isinstance(value, torch.Tensor)}
        tensors["random.torch"] = torch.get_rng_state()
        rest = {
            "run": self._run,
            "progress": progress.to_dict(),
            "scheduler": state.scheduler.state_dict(),
            "weighting": {n: value for n, value in balance.items() if not isinstance(value, torch.Tensor)},
            "sampler": None if sampler is None else sampler.state_dict(),
            "random": _random_states(),
        }
        self._write({name: t.cpu().contiguous() for name, t in tensors.items()}, json.dumps(rest))

    def restore(self, state: State) -> tuple[Progress, dict[str, torch.Tensor]]:
        """Put what was saved back into all of this and into the random generators.

        Args:
            state: What the run changes.

        Returns:
            The progress, and the weights to come back to.

        Raises:
            IntegrityError: If the file is damaged.
            InputError: If it belongs to a run with other settings, data or base.
        """
        optimizer, scheduler, weighting = state.optimizer, state.scheduler, state.weighting
        rest, tensors = self._read()
        self._check(rest["run"])
        with torch.no_grad():
            for name, parameter in state.weights.items():
                parameter.copy_(tensors[f"weights.{name}"])
        saved = optimizer.state_dict()
        saved["state"] = _nested(tensors, "optimizer.")
        optimizer.load_state_dict(saved)
        scheduler.load_state_dict(rest["scheduler"])
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if weighting is not None:
            saved = {n[10:]: tensor for n, tensor in tensors.items() if n.startswith("weighting.")}
            weighting.load_state_dict(saved | rest["weighting"])
        if state.sampler is not None:
            state.sampler.load_state_dict(rest["sampler"])
        _set_random_states(rest["random"], tensors["random.torch"])
        kept = {n: tensor for n, tensor in tensors.items() if n.startswith(("best.", "own."))}
        return Progress.from_dict(rest["progress"]), kept

    def _write(self, tensors: Mapping[str, torch.Tensor], rest: str) -> None:
        aside, before = (
            self.path.with_suffix(".new"),
            "The checkpoint before it is kept. " if self.path.exists() else "",
        )
        remove(aside)  # what a process that was killed has left
        with writing(aside, f"{before}Free space or correct the rights, then train with resume=True."):
            aside.mkdir(parents=True)
            new = aside / self.path.name
            save_file(dict(tensors), new, {"state": rest})
            with new.open("rb") as written:
                os.fsync(written.fileno())
            new.replace(self.path)
            aside.rmdir()

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        try:
            with safe_open(self.path, "pt") as file:
                state = json.loads(file.metadata()["state"])
                return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{self.path}: not a whole checkpoint ({error}). Delete it, or train with resume=False."
            ) from error

    def _check(self, run: Mapping[str, object]) -> None:
        names = sorted(run.keys() | self._run.keys())
        faults = [
            f"  {name}: {run.get(name)!r} then, {self._run.get(name)!r} now."
            for name in names
            if run.get(name) != self._run.get(name)
        ]
        if faults:
            raise InputError(
                f"{self.path}: a run resumes with what it began with. Use it, or train with resume=False. Found:\n"
                + "\n".join(faults)
            )


def _nested(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[int, dict[str, torch.Tensor]]:
    """`<prefix><index>.<key>` to `{index: {key: tensor}}`."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, _, key = name[len(prefix) :].partition(".")
            found.setdefault(int(index), {})[key] = tensor
    return found


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]}


def _set_random_states(state: Mapping[str, Any], torch_state: torch.Tensor) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch_state)
