"""A router in front of an engine: texts in, answers out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterhub.encoder import Encoder, SentenceEncoder
from adapterhub.engine import Engine
from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.model._answers import classified, entities, number, sequences
from adapterhub.model._base import load_base, only_base
from adapterhub.model._passes import passes
from adapterhub.model._placement import Placement
from adapterhub.model._prediction import Answer, Prediction, spoken
from adapterhub.model._usage import UsageLog
from adapterhub.registry import Registry, bundled_registry
from adapterhub.route import Route
from adapterhub.router import Policy, Router, RoutingPolicy
from adapterhub.task import Task
from adapterhub.training import base_id, describe_float, encode_prompt, is_decoder

__all__ = ["RoutedModel"]

_BASE_TASK = Task(name="base", description="The base model alone.")


class RoutedModel:
    """One frozen base model that answers each input through the adapters that the router picks for it.

    Args:
        engine: Runs batches whose rows have their own routes.
        tokenizer: The base model's tokenizer.
        registry: The tasks.
        router: Picks adapters for texts.
        k: At most so many adapters for an input.

    Attributes:
        usage: Where each answer is noted, for `adapterhub stats`; None, unless it is set, for nowhere.

    Raises:
        InputError: If `k` is below 1.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        registry: Registry,
        router: RoutingPolicy,
        *,
        k: int = 1,
    ) -> None:
        _check_k(k)
        self.engine, self.tokenizer, self.registry, self.router, self.k = engine, tokenizer, registry, router, k
        self._placement = Placement(engine, registry)
        self.usage: UsageLog | None = None
        self._last = is_decoder(engine.model.config)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | None = None,
        registry: Registry | str | Path | None = None,
        *,
        k: int = 1,
        encoder: Encoder | None = None,
        policy: Policy | None = None,
        router: RoutingPolicy | None = None,
        dtype: torch.dtype = torch.float32,
        quantization_config: Any = None,
    ) -> RoutedModel:
        """Load a base model and put a router over a registry in front of it.

        Args:
            base: Folder or Hub id of the base; by default the one that the registry's cards name.
            registry: A registry or its folder; by default the bundled one.
            k: At most so many adapters for an input.
            encoder: Text encoder of the router; by default all-MiniLM-L6-v2.
            policy: What an ambiguous text gets; by default the best task, with `k` above 1 a mixture of the best.
            router: Who picks the adapters; by default a `Router` over the registry with encoder and policy.
            dtype: Type of the base's weights in memory.
            quantization_config: A configuration of transformers' quantisers (`BitsAndBytesConfig`, `TorchAoConfig`), by
                which the base is quantised while it is loaded; adapters stay in floating point on top.

        Raises:
            InputError: If the base cannot be loaded or quantised, or none is given and the registry's tasks name none
                or several, or `k` is below 1.
            MissingExtraError: If what quantises the base is not installed.
        """
        _check_k(k)  # before the seconds that loading takes
        tasks = registry if isinstance(registry, Registry) else Registry(registry or bundled_registry())
        folder = str(base) if base is not None else only_base(tasks)
        model, tokenizer = load_base(folder, dtype, quantization_config)
        plain = quantization_config is None
        signature = None if plain else describe_float(folder, type(model), base_id(folder))
        engine = Engine(model, model_id=base_id(folder), base=signature)
        if router is None:
            chosen = policy or ("mixture" if k > 1 else "top1")
            router = Router(tasks, encoder or SentenceEncoder(), policy=chosen)
        return cls(engine, tokenizer, tasks, router, k=k)

    def generate(self, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> list[str]:
        """The best answer to each text, as text.

        Args:
            texts: Inputs of any kind, mixed freely.
            tasks: The task of each text, or None to let the router decide.

        Raises:
            InputError: If a text is empty or too long for the base, or the lengths differ.
            TaskNotFoundError: If a task is unknown, or has no adapter.
        """
        return [spoken(p.predictions) for p in self.predictions(texts, tasks)]

    def predict(self, text: str, task: str | None = None, num_predictions: int = 5) -> dict[str, object]:
        """The best answers to a text with their scores.

        Args:
            text: The input.
            task: Name of the task, or None to let the router decide.
            num_predictions: At most so many answers. Entities are all returned.

        Returns:
            The keys `task`, `input`, `predictions`, `scores` (descending, in [0, 1]) and `adapters` (name, gate), for
            every head; see `Prediction`.

        Raises:
            InputError: If the text is empty or too long for the base, or `num_predictions` is below 1.
            TaskNotFoundError: If the task is unknown, or has no adapter.
        """
        return self.predictions([text], [task], num_predictions)[0].to_dict()

    def predictions(
        self, texts: Sequence[str], tasks: Sequence[str | None] | None = None, num_predictions: int = 1
    ) -> list[Prediction]:
        """The answers to a batch of texts, each through its own route.

        Args:
            texts: Inputs of any kind, mixed freely.
            tasks: The task of each text, or None to let the router decide.
            num_predictions: At most so many answers to each text.

        Raises:
            InputError: If a text is empty or too long for the base, a number is below 1, or the lengths differ.
            TaskNotFoundError: If a task is unknown, or has no adapter.
        """
        if num_predictions < 1:
            raise InputError(
                f"num_predictions is at least 1. Found {num_predictions}. Give 1 for the best answer only."
            )
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"`texts` is a list of texts. Found {str(texts)[:80]!r}. Put the text into a list.")
        if not texts:
            return []
        begin = time.perf_counter()
        routes = self._routes(texts, tasks)
        heads = [self.registry[r.adapters[0]] if r.adapters else _BASE_TASK for r in routes]
        self._placement.prefetch(routes)
        placed = [self._placement.place(route) for route in routes]
        answers: list[tuple[list[Answer], list[float]]] = [([], [])] * len(texts)
        for rows in passes(heads, num_predictions):
            run = self._generate if heads[rows[0]].head == "generation" else self._read
            found = run([texts[i] for i in rows], [heads[i] for i in rows], [placed[i] for i in rows], num_predictions)
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
        answered = [
            Prediction(
                task=route.adapters[0] if route.adapters else None,
                input=text,
                predictions=tuple(predictions),
                scores=tuple(scores),
                adapters=self._placement.spelled(ran),
            )
            for text, route, ran, (predictions, scores) in zip(texts, routes, placed, answers, strict=True)
        ]
        if self.usage is not None:
            self.usage.record(answered, time.perf_counter() - begin, tasks)
        return answered

    def base_predictions(self, texts: Sequence[str], task: Task) -> list[Prediction]:
        """What the bare base writes for a task's prompts: the point of comparison.

        Args:
            texts: Inputs.
            task: A generating task, for its template and its length.
        """
        found = self._generate(list(texts), [task] * len(texts), [Route()] * len(texts), 1)
        return [Prediction(None, text, tuple(a), tuple(s), ()) for text, (a, s) in zip(texts, found, strict=True)]

    def merge(self, route: Route) -> PreTrainedModel:
        """A plain model of transformers with a route of tasks in its weights, for work that knows one route only.

        What the tasks' adapters stand on is in it too; see `Engine.merge`.

        Args:
            route: Generating tasks and their gates.

        Raises:
            InputError: If one of the tasks has a head of its own, or a part of the route is not linear.
            TaskNotFoundError: If a task is unknown, or has no adapter.
        """
        for name in route.adapters:
            self._named(name)
        heads = [f"{n}: {self.registry[n].head}" for n in route.adapters if self.registry[n].head != "generation"]
        if heads:
            raise InputError(f"Tasks that generate merge into a plain model. Found {', '.join(heads)}. Leave them out.")
        return self.engine.merge(self._placement.place(route))

    def _routes(self, texts: Sequence[str], tasks: Sequence[str | None] | None) -> list[Route]:
        """The route of each text: the given task, or the router's choice."""
        given = list(tasks) if tasks is not None else [None] * len(texts)
        if len(given) != len(texts):
            raise InputError(
                f"There is one task for each text. Found {len(given)} for {len(texts)}. Use None to route."
            )
        for position, text in enumerate(texts):
            if not text.strip():
                raise InputError(
                    f"A text has at least one visible character. Found {text!r} at {position}. Leave it out."
                )
        open_rows = [i for i, name in enumerate(given) if name is None]
        chosen = iter(self.router.route([texts[i] for i in open_rows], self.k)) if open_rows else iter(())
        return [next(chosen) if name is None else self._named(name) for name in given]

    def _named(self, name: str) -> Route:
        if self.registry[name].adapter is None:
            raise TaskNotFoundError(
                f"A task needs an adapter to answer. {name!r} has none. Train it: adapterhub train {name}"
            )
        return Route.to(name)

    def encode(self, prompts: list[str], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenise prompts.

        Args:
            prompts: Texts in their card's template.
            side: Where the padding goes: `left` to generate, with the end of the prompt left open for the answer as in
                training, `right` to read.

        Returns:
            Token ids and attention mask, (rows, tokens) int64 each.
        """
        if side == "left":
            found = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        else:
            found = self.tokenizer(prompts, verbose=False)["input_ids"]
        rows = [torch.tensor(ids, dtype=torch.int64) for ids in found]
        masks = [torch.ones_like(ids) for ids in rows]
        pad = self.tokenizer.pad_token_id or 0
        ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=side)
        mask = pad_sequence(masks, batch_first=True, padding_side=side)
        return ids.to(self.engine.model.device), mask.to(self.engine.model.device)

    def _generate(
        self, texts: list[str], tasks: list[Task], routes: list[Route], count: int
    ) -> list[tuple[list[Answer], list[float]]]:
        """Greedy for one answer, beams for several; the score is the probability of the whole sequence."""
        ids, mask = self.encode([task.format(text) for task, text in zip(tasks, texts, strict=True)], "left")
        # Beams are compared by their whole probability, not by its mean over their tokens.
        beams = {"num_beams": count, "num_return_sequences": count, "length_penalty": 0.0} if count > 1 else {}
        result = self.engine.generate(
            ids,
            mask,
            routes,
            max_new_tokens=max(task.max_new_tokens for task in tasks),
            do_sample=False,
            output_scores=True,
            **beams,
        )
        return sequences(result, self.tokenizer, ids.shape[1], [task.max_new_tokens for task in tasks], count)

    def _read(
        self, texts: list[str], tasks: list[Task], routes: list[Route], count: int
    ) -> list[tuple[list[Answer], list[float]]]:
        """One pass over the backbone, each row's own head on top."""
        prompts = [task.format(text) for task, text in zip(tasks, texts, strict=True)]
        ids, mask = self.encode(prompts, "right")
        outputs = self.engine.forward(ids, mask, routes)
        found = []
        for text, task, prompt, logits in zip(texts, tasks, prompts, outputs, strict=True):
            if task.head == "classification":
                found.append(classified(logits, task.labels, count))
            elif task.head == "regression":
                found.append(number(logits))
            else:
                found.append(entities(logits, task, text, prompt, self.tokenizer, last=self._last))
        return found


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k is at least 1. Found {k}. Give k=1 for the single best adapter.")
