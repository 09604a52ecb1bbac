"""`run` and `route`: answer a text; say who would."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import decision_dict, decision_tree, hint, out, print_json, spoken
from adapterhub.errors import InputError
from adapterhub.route import Route

__all__ = ["route", "run"]


def _texts(texts: list[str] | None) -> list[str]:
    """The arguments, or the lines of standard input; none of them empty."""
    from adapterhub.encoder import check_texts

    found = texts or ([] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()])
    if not found:
        raise InputError('There is at least one text. Found none. Give it in quotes: adapterhub run "What is 2 + 3?"')
    return check_texts(found)


class _Told:
    """The policy of `--task`: nothing is routed, so no encoder is loaded."""

    def __init__(self, name: str) -> None:
        self.name = name

    def route(self, texts: Sequence[str], k: int = 1) -> list[Route]:
        """The one task for every text."""
        del k
        return [Route.to(self.name)] * len(texts)


def run(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Inputs; without any, one a line from standard input.")
    ] = None,
    registry: RegistryOption = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hub id. Default: what the cards name.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="Answer with this task instead of routing.")] = None,
    num_predictions: Annotated[int, typer.Option("--num-predictions", "-n", help="At most so many answers.")] = 5,
    k: Annotated[int, typer.Option("-k", help="At most so many adapters for an input.")] = 1,
    json: JsonOption = False,
) -> None:
    """Answer texts, each through the adapters that the router picks for it."""
    from adapterhub.model import RoutedModel

    inputs, tasks = _texts(texts), open_registry(registry)
    if task is not None:
        tasks[task]  # an unknown name is told before the seconds that loading takes
    model = RoutedModel.from_pretrained(base, tasks, k=k, router=None if task is None else _Told(task))
    found = model.predictions(inputs, [task] * len(inputs), num_predictions if json else 1)
    if json:
        print_json(found[0].to_dict() if len(found) == 1 else [p.to_dict() for p in found])
        return
    for prediction in found:
        out.print(spoken(prediction), markup=False, soft_wrap=True)
        hint(prediction.task or "base model")


def route(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Inputs; without any, one a line from standard input.")
    ] = None,
    registry: RegistryOption = None,
    k: Annotated[int, typer.Option("-k", help="At most so many adapters for an input.")] = 1,
    under: Annotated[str, typer.Option(help="Only tasks below this group.")] = "",
    json: JsonOption = False,
) -> None:
    """Say which adapters would answer, and why: the tree with probabilities."""
    from adapterhub.encoder import SentenceEncoder
    from adapterhub.router import Router

    inputs, tasks = _texts(texts), open_registry(registry)
    decisions = Router(tasks, SentenceEncoder(), policy="mixture" if k > 1 else "top1").decide(inputs, k, under=under)
    if json:
        print_json(decision_dict(decisions[0]) if len(decisions) == 1 else [decision_dict(d) for d in decisions])
        return
    for decision in decisions:
        out.print(decision.text, style="bold", markup=False, soft_wrap=True)
        out.print(decision_tree(decision))
