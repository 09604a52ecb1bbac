"""`run` and `route`: answer a text; say who would."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from adapterhub.cli._decisions import explanation_dict, impact_dict, parts_dict, parts_tree
from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import decision_dict, decision_tree, hint, out, print_json, spoken
from adapterhub.errors import InputError
from adapterhub.route import Route

if TYPE_CHECKING:
    from adapterhub.registry import Registry
    from adapterhub.router import Policy, Router

__all__ = ["Told", "route", "run"]

_BATCH = 64  # texts that are answered together: a file on standard input may have any number


def _texts(texts: list[str] | None) -> list[str]:
    """The arguments, or the lines of standard input; none of them empty."""
    from adapterhub.encoder import check_texts

    found = texts or ([] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()])
    if not found:
        raise InputError('There is at least one text. Found none. Give it in quotes: adapterhub run "What is 2 + 3?"')
    return check_texts(found)


class Told:
    """The policy of `--task`: nothing is routed, so no encoder is loaded.

    Args:
        name: The task that answers every text.
    """

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
    log: Annotated[Path | None, typer.Option(help="Usage log to append to, for adapterhub stats.")] = None,
    keep_unfit: Annotated[
        bool, typer.Option("--keep-unfit", help="With --log: keep texts that no task fits, for adapterhub suggest.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Answer texts, each through the adapters that the router picks for it."""
    from adapterhub.model import RoutedModel, UsageLog

    if keep_unfit and log is None:
        raise InputError("Texts are kept in a usage log. Found --keep-unfit without --log. Give --log FILE.")
    inputs, tasks = _texts(texts), open_registry(registry)
    if task is not None:
        tasks[task]  # an unknown name is told before the seconds that loading takes
    model = RoutedModel.from_pretrained(base, tasks, k=k, router=None if task is None else Told(task))
    model.usage = None if log is None else UsageLog(log, keep_abstained=keep_unfit)
    batches = [inputs[first : first + _BATCH] for first in range(0, len(inputs), _BATCH)]
    count = num_predictions if json else 1
    found = [p for batch in batches for p in model.predictions(batch, [task] * len(batch), count)]
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
    k: Annotated[
        int | None, typer.Option("-k", help="At most so many adapters for an input. Default: 1, with --parts 4.")
    ] = None,
    under: Annotated[str, typer.Option(help="Only tasks below this group.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Only tasks with this tag; repeat it.")] = None,
    base: Annotated[str | None, typer.Option(help="Only tasks whose card names this base model.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why: nearest examples, why not the next.")] = False,
    conversation: Annotated[
        bool, typer.Option("--conversation", help="The inputs are the turns of one conversation, oldest first.")
    ] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Route each sentence; answer with the union.")] = False,
    what_if: Annotated[
        Path | None, typer.Option("--what-if", help="Say what registering this card would take from other tasks.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="With --what-if: name of the task. Default: the card's folder.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say which adapters would answer, and why: the tree with probabilities."""
    if explain + conversation + parts + (what_if is not None) > 1:
        raise InputError("--explain, --conversation, --parts and --what-if are asked one at a time. Found several.")
    tasks = open_registry(registry)
    if what_if is not None:
        _show_impact(tasks, what_if, name, json=json)
        return
    inputs = _texts(texts)
    router = _router(tasks, "mixture" if k is not None and k > 1 else "top1")
    most, tags = 1 if k is None else k, tag or []
    if parts:
        most = 4 if k is None else k
        asked = [router.decide_parts(text, most, under=under, tags=tags, base_model=base) for text in inputs]
        _show([(parts_dict(each), parts_tree(each)) for each in asked], json=json)
    elif explain:
        reasons = [router.explain(text, most, under=under, tags=tags, base_model=base) for text in inputs]
        _show(
            [(explanation_dict(each), Text(str(each).removeprefix(f"{each.decision.text}\n"))) for each in reasons],
            json=json,
        )
    else:
        if conversation:
            decided = [router.decide_conversation(inputs, most, under=under, tags=tags, base_model=base)]
        else:
            decided = router.decide(inputs, most, under=under, tags=tags, base_model=base)
        if not decided[0].candidates:
            hint("No task with an adapter is in this scope.")
        _show([(decision_dict(each), decision_tree(each)) for each in decided], json=json)


def _router(registry: Registry, policy: Policy) -> Router:
    from adapterhub.encoder import SentenceEncoder
    from adapterhub.router import Router

    return Router(registry, SentenceEncoder(), policy=policy)


def _show(found: Sequence[tuple[dict[str, object], Tree | Text]], *, json: bool) -> None:
    """JSON of one answer, or of a list of several; or the pictures below one another."""
    if json:
        print_json(found[0][0] if len(found) == 1 else [fields for fields, _ in found])
        return
    for fields, picture in found:
        out.print(fields["input"], style="bold", markup=False, soft_wrap=True)
        out.print(picture, soft_wrap=isinstance(picture, Text))


def _show_impact(registry: Registry, card: Path, name: str | None, *, json: bool) -> None:
    """What a card would take; nothing is registered."""
    from adapterhub.cli._adopt import read_loose_card

    folder = card if card.is_dir() else card.parent
    inside = folder.resolve().is_relative_to(registry.root.resolve())
    called = folder.resolve().relative_to(registry.root.resolve()).as_posix() if inside else folder.resolve().name
    task = read_loose_card(registry, card, name or called)
    impact = _router(registry, "top1").what_if(task)
    if json:
        print_json(impact_dict(impact))
        return
    out.print(Text(str(impact)), soft_wrap=True)
    if impact.losses:
        hint("A task that takes too much is refused: see --max-steal of adapterhub add.")
