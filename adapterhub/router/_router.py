"""The router: closed form, calibrated, extended by adding a row."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import get_args

from adapterhub.catalog import ExactIndex
from adapterhub.encoder import Encoder, check_texts
from adapterhub.errors import InputError, TaskNotFoundError, did_you_mean
from adapterhub.route import Route
from adapterhub.router._background import Background
from adapterhub.router._decide import Rules, decide
from adapterhub.router._epoch import Epoch
from adapterhub.router._fit import fit_own
from adapterhub.router._rows import TaskRows
from adapterhub.router._types import Decision, Policy, TaskSource, VectorsOfTask

__all__ = ["Router"]


class Router:
    """Two-covariance PLDA over a frozen encoder: a task is a row, and a score is one inner product.

    The covariances are frozen in a statistics epoch. With background statistics for the encoder the first epoch is made
    of those alone, so routing does not depend on the order in which tasks were added, nor on when the router was made,
    and adding a task moves no other score. `refit` starts a new epoch with the hub's own examples in it.

    Without a background the epoch is made of the tasks that are in the registry when the router is made: PLDA where
    they have more examples than the encoder has dimensions, else equal covariances; refit after adding many.
    Calibration then holds out a quarter of the examples at a time; with fewer than 40 of them nothing is refused.

    New, changed and removed tasks of the registry are noticed at the next call. Safe to call from several threads.

    Args:
        registry: Where the tasks are; those with an adapter are routed to.
        encoder: Text to vector.
        policy: What an ambiguous text gets: the first task (`top1`), up to k tasks with their renormalised
            probabilities as gates (`mixture`), or the base model (`base`).
        alpha: Tolerated share of texts of known tasks that get `none`; larger refuses more foreign texts.
        background: Statistics for this encoder; by default those of the package, if they are for it.

    Raises:
        InputError: If the policy is unknown, alpha is not in [0, 1), or the background belongs to another encoder.
    """

    def __init__(
        self,
        registry: TaskSource,
        encoder: Encoder,
        *,
        policy: Policy = "top1",
        alpha: float = 0.05,
        background: Background | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            near = did_you_mean(str(policy), get_args(Policy))
            raise InputError(f"`policy` is one of {', '.join(get_args(Policy))}. Found {policy!r}.{near}")
        if not 0 <= alpha < 1:
            raise InputError(
                f"`alpha` is a share in [0, 1). Found {alpha}. Give 0.05 to refuse one good text in twenty."
            )
        self._registry, self._encoder = registry, encoder
        self._policy: Policy = policy
        self._alpha = alpha
        self._background = _background_for(encoder, background)
        self._lock = threading.RLock()
        self._branches: frozenset[str] = frozenset()
        self._begin(own=False)

    def route(self, texts: Sequence[str], k: int = 1, *, under: str = "") -> list[Route]:
        """Pick the adapters of each text.

        Args:
            texts: Texts, none of them empty.
            k: Most adapters in a route; more than one only for ambiguous texts under the policy `mixture`.
            under: Look only at this task or group and what is below it.

        Returns:
            One route a text; the empty route is the base model.

        Raises:
            InputError: If k is below 1 or a text is empty.
            TaskNotFoundError: If there is no such subtree.
        """
        return [decision.route for decision in self.decide(texts, k, under=under)]

    def decide(self, texts: Sequence[str], k: int = 1, *, under: str = "") -> list[Decision]:
        """Pick the adapters of each text and say why; the arguments and errors are those of `route`.

        Returns:
            One decision a text, with at least the 16 best candidates.
        """
        if k < 1:
            raise InputError(
                f"`k` is the largest number of adapters and at least 1. Found {k}. Use k=1 for the best one."
            )
        texts = check_texts(texts)
        vectors = self._encoder.encode(texts)
        with self._lock:
            self._synchronise()
            scope = self._scope(under)
            scored = self._rows.score(self._epoch.lift(vectors), scope)
            tasks = len(self._rows.names(scope)) if scope else len(self._rows)
            calibration = self._calibration
        rules = Rules(
            calibration.temperature,
            calibration.threshold(self._alpha),
            calibration.set_bound(self._alpha),
            self._policy,
            k,
        )
        return [decide(text, names, scores, tasks, rules) for text, (names, scores) in zip(texts, scored, strict=True)]

    def detect_task(self, text: str) -> str | None:
        """The task that a text belongs to.

        Args:
            text: A text, not empty.

        Returns:
            Its name, or None when no known task fits.
        """
        decision = self.decide([text])[0]
        return None if decision.kind == "none" else decision.candidates[0].task

    def detect_multiple_tasks(self, text: str, top_k: int = 3) -> list[tuple[str, float]]:
        """The likeliest tasks of a text, also when none of them fits well.

        Args:
            text: A text, not empty.
            top_k: How many; all of them when there are fewer.

        Returns:
            (task, probability), best first; what is missing to 1 belongs to the other tasks and to none.
        """
        best = self.decide([text], top_k)[0].candidates[:top_k]
        return [(candidate.task, candidate.probability) for candidate in best]

    def refit(self) -> None:
        """Start a new statistics epoch from the background and the hub's own examples, and calibrate it on them.

        All scores change, in this router only. Not for a small hub: with nine tasks that the background did not know,
        the right task was first for 97.7 % of queries worded like the examples before and 98.1 % after, but for queries
        in another wording 94.4 % before and 88.9 % after.

        Beside a background, only tasks with at least 10 examples shape the statistics. The calibration holds out a
        quarter of the examples at a time; with fewer than 40 of them the background's is kept.
        """
        self._begin(own=True)

    @property
    def threshold(self) -> float:
        """The score below which a text gets `none`."""
        return self._calibration.threshold(self._alpha)

    def _begin(self, *, own: bool) -> None:
        """Make an epoch, then its rows; swap both in at once."""
        with self._lock:
            seq = self._registry.refresh()
            known = self._routable()
            if self._background is None or own:
                epoch, calibration = fit_own(known, self._encoder.dimension, self._background)
            else:
                epoch, calibration = Epoch.fit(self._background.sums), self._background.calibration
            rows = TaskRows(epoch, ExactIndex(epoch.width))
            rows.update(known)
            self._epoch, self._calibration, self._rows, self._seq = epoch, calibration, rows, seq

    def _routable(self) -> list[VectorsOfTask]:
        vectors = self._registry.vectors(self._encoder)
        cards = self._registry.under("")
        names = [card.name.split("/") for card in cards]
        self._branches = frozenset("/".join(parts[:end]) for parts in names for end in range(1, len(parts) + 1))
        adapted = {card.name for card in cards if card.adapter is not None}
        return [task for task in vectors if task.name in adapted]

    def _synchronise(self) -> None:
        seq = self._registry.refresh()
        if seq != self._seq:
            self._rows.update(self._routable())
            self._seq = seq

    def _scope(self, under: str) -> str:
        scope = under.rstrip("/")
        if scope and scope not in self._branches:
            near = did_you_mean(scope, sorted(self._branches))
            raise TaskNotFoundError(f"No task or group '{scope}' in the registry.{near} See `adapterhub ls`.")
        return scope


def _background_for(encoder: Encoder, given: Background | None) -> Background | None:
    background = given if given is not None else Background.shipped()
    if background.fingerprint == encoder.fingerprint:
        return background
    if given is None:
        return None
    raise InputError(
        f"Background statistics belong to one encoder. Found those of {given.fingerprint} for {encoder.fingerprint}. "
        "Make them for this encoder, or leave them out."
    )
