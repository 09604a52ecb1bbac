"""The router: closed form, calibrated, extended by adding a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from adapterhub.catalog import Scope
from adapterhub.encoder import Encoder, check_texts
from adapterhub.errors import InputError, did_you_mean
from adapterhub.route import Route
from adapterhub.router._background import Background
from adapterhub.router._chunks import Parts, split, united
from adapterhub.router._conversation import check_decay, heard_together
from adapterhub.router._explain import Explanation, explained
from adapterhub.router._hearing import Hearing
from adapterhub.router._impact import Impact, impact_of
from adapterhub.router._listener import Listener
from adapterhub.router._scope import scope_of
from adapterhub.router._types import Decision, Policy, TaskSource
from adapterhub.task import Task

__all__ = ["Router"]


class Router:
    """Two-covariance PLDA over a frozen encoder: a task is a row, and a score is one inner product.

    The covariances are frozen in a statistics epoch. With background statistics for the encoder the first epoch is made
    of those alone, so routing does not depend on the order in which tasks were added, nor on when the router was made,
    and adding a task moves no other score; probabilities and the threshold of `none` depend on how many tasks there
    are. `refit` starts a new epoch with the hub's own examples in it.

    Without a background the epoch is made of the tasks that are in the registry when the router is made: PLDA where
    they have more examples than the encoder has dimensions, else equal covariances; refit after adding many.
    Calibration then holds out a quarter of the examples at a time; with fewer than 40 of them nothing is refused.

    New, changed and removed tasks of the registry are noticed at the next call. Equal scores are put in the order in
    which their tasks were first added. Safe to call from several threads.

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
        self._registry, self._encoder, self._policy, self._alpha = registry, encoder, policy, alpha
        self._listener = Listener(registry, encoder, background)

    def route(
        self,
        texts: Sequence[str],
        k: int = 1,
        *,
        under: str = "",
        tags: Sequence[str] = (),
        base_model: str | None = None,
    ) -> list[Route]:
        """Pick the adapters of each text.

        Args:
            texts: Texts, none of them empty.
            k: Most adapters in a route; more than one only for ambiguous texts under the policy `mixture`.
            under: Look only at this task or group and what is below it.
            tags: Look only at tasks that have all of these tags.
            base_model: Look only at tasks whose card names this base model.

        Returns:
            One route a text; the empty route is the base model.

        Raises:
            InputError: If k is below 1, a text is empty, or the tags are no list.
            TaskNotFoundError: If there is no such subtree; the message names the nearest one.
        """
        return [decision.route for decision in self.decide(texts, k, under=under, tags=tags, base_model=base_model)]

    def decide(
        self,
        texts: Sequence[str],
        k: int = 1,
        *,
        under: str = "",
        tags: Sequence[str] = (),
        base_model: str | None = None,
    ) -> list[Decision]:
        """Pick the adapters of each text and say why; the arguments and errors are those of `route`.

        Returns:
            One decision a text, with at least the 16 best candidates; a text's decision does not depend on the others.
        """
        _check_k(k)
        texts = check_texts(texts)
        vectors = self._encoder.encode(texts)

        def decide(hearing: Hearing) -> list[Decision]:
            return hearing.decide(texts, hearing.score(vectors), hearing.rules(self._alpha, self._policy, k))

        return self._listener.ask(scope_of(under, tags, base_model), decide)

    def decide_conversation(
        self,
        turns: Sequence[str],
        k: int = 1,
        *,
        decay: float = 0.8,
        under: str = "",
        tags: Sequence[str] = (),
        base_model: str | None = None,
    ) -> Decision:
        """Pick the adapters of a conversation's newest turn, with the turns before it as evidence.

        A turn that alone clearly belongs to another task begins anew, and what was said before it is forgotten.

        Args:
            turns: What the user said, oldest first; at least one turn, none of them empty.
            k: As for `route`.
            decay: Weight of a turn against the next one, in (0, 1].
            under: As for `route`.
            tags: As for `route`.
            base_model: As for `route`.

        Raises:
            InputError: If there is no turn, or an argument is outside its range.
            TaskNotFoundError: If there is no such subtree.
        """
        _check_k(k)
        check_decay(decay)
        said = check_texts(turns)
        if not said:
            raise InputError("A conversation has at least one turn. Found none. Give the newest text.")
        vectors = self._encoder.encode(said)

        return self._listener.ask(
            scope_of(under, tags, base_model),
            lambda hearing: heard_together(hearing, said, vectors, hearing.rules(self._alpha, self._policy, k), decay),
        )

    def decide_parts(
        self, text: str, k: int = 4, *, under: str = "", tags: Sequence[str] = (), base_model: str | None = None
    ) -> Parts:
        """Pick the adapters of a long or mixed text: the union of what its sentences and lines ask for.

        Args:
            text: A text, not empty.
            k: Most adapters in the union.
            under: As for `route`.
            tags: As for `route`.
            base_model: As for `route`.

        Raises:
            InputError: If k is below 1 or the text is empty.
            TaskNotFoundError: If there is no such subtree.
        """
        _check_k(k)
        (text,) = check_texts([text])
        pieces = split(text)
        texts = [piece for _, piece in pieces]
        vectors = self._encoder.encode(texts)

        def decide(hearing: Hearing) -> Parts:
            decisions = hearing.decide(texts, hearing.score(vectors), hearing.rules(self._alpha, self._policy, 1))
            return united(text, pieces, decisions, k)

        return self._listener.ask(scope_of(under, tags, base_model), decide)

    def explain(
        self, text: str, k: int = 1, *, under: str = "", tags: Sequence[str] = (), base_model: str | None = None
    ) -> Explanation:
        """Say why a text goes where it goes; the arguments and errors are those of `route`.

        Returns:
            The decision, the stored examples that the text resembles, and why not the next task.
        """
        _check_k(k)
        vectors = self._encoder.encode(check_texts([text]))

        def explain(hearing: Hearing) -> Explanation:
            scored = hearing.score(vectors)
            (decision,) = hearing.decide([text], scored, hearing.rules(self._alpha, self._policy, k))
            return explained(hearing, self._registry, decision, vectors[0], scored[0])

        return self._listener.ask(scope_of(under, tags, base_model), explain)

    def what_if(self, task: Task, prompts: Mapping[str, Sequence[str]] | None = None) -> Impact:
        """Find out what registering a new or changed task would take from the others; nothing is changed.

        The tasks near it are looked at: each of their stored examples is scored with the row that its task would have
        without it, and counts as taken if it reaches its task today and the new task would score more.

        Args:
            task: The task as it would be, with or without an adapter.
            prompts: Further texts of tasks that are there, by name, such as their validation inputs.

        Raises:
            InputError: If a prompt is empty.
            TaskNotFoundError: If the prompts are of a task that is not there.
        """
        given = prompts or {}
        for name in given.keys() - {task.name}:
            self._registry[name]  # an unknown one is told, with the nearest name
        registry, encoder = self._registry, self._encoder
        return self._listener.ask(Scope(), lambda hearing: impact_of(hearing, registry, encoder, task, given))

    def feedback(self, text: str, task: str) -> None:
        """Add a text to a task's examples, durably; the next call hears it.

        Args:
            text: A text that belongs to the task.
            task: Name of the task.

        Raises:
            InputError: If the text is empty.
            TaskNotFoundError: If there is no such task.
        """
        (text,) = check_texts([text])
        self._registry.add_example(task, text)

    def detect_task(self, text: str) -> str | None:
        """The task that a text belongs to.

        Args:
            text: A text, not empty.

        Returns:
            Its name, or None when no known task fits.
        """
        decision = self.decide([text])[0]
        if decision.kind == "none":
            return None
        return decision.route.adapters[0] if decision.kind == "branch" else decision.candidates[0].task

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

        All scores change, in this router only. It helps a hub of one narrow domain: of 150 intents the right one was
        first for 88.7 % of texts before and 90.3 % after. Of 89 tasks like the background's it was for 54.7 and 54.6 %,
        but of texts that belong to none 16 and 24 % were refused.

        Beside a background, only tasks with at least 10 examples shape the statistics. The calibration holds out a
        quarter of the examples at a time; with fewer than 40 of them the background's is kept. Memory is bounded: of
        more than 20,000 tasks an even sample is read, and of more than 1000 a sample is calibrated on.
        """
        self._listener.refit()

    @property
    def threshold(self) -> float:
        """What all tasks have to score together, in nats, lest a text get `none`, where the best one has many examples.

        It grows with the number of tasks. Every decision carries its own, and what its tasks scored together.
        """
        era = self._listener.era
        return era.bounds(self._alpha, len(era.rows))[0].threshold

    @property
    def epoch(self) -> str:
        """Fingerprint of the statistics in use; every decision carries that of its own."""
        return self._listener.era.epoch.fingerprint


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"`k` is the largest number of adapters and at least 1. Found {k}. Use k=1 for the best one.")
