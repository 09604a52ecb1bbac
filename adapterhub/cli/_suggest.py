"""`suggest`: tasks that seem to be missing, from the texts that no task fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adapterhub.cli._options import JsonOption
from adapterhub.cli._print import hint, out, print_json
from adapterhub.errors import InputError

__all__ = ["suggest"]


def suggest(
    log: Annotated[Path, typer.Argument(help="A usage log with texts: adapterhub run --log FILE --keep-unfit.")],
    group: Annotated[str, typer.Option(help="Where the proposals go in the tree.")] = "new",
    least: Annotated[int, typer.Option(help="A topic has at least so many different texts.")] = 5,
    similarity: Annotated[float, typer.Option(help="Mean cosine that makes texts one topic.")] = 0.25,
    json: JsonOption = False,
) -> None:
    """Propose new tasks from the texts that no task fitted."""
    from adapterhub.encoder import SentenceEncoder
    from adapterhub.evaluation import suggest_tasks
    from adapterhub.model import read_usage

    texts = [one.text for one in read_usage(log)[0] if one.text]
    if not texts:
        raise InputError(
            f"Tasks are suggested from texts that no task fitted. Found none in {log}. Log them: "
            "adapterhub run --log FILE --keep-unfit, or in Python "
            "UsageLog(path, keep_abstained=True)."
        )
    found = suggest_tasks(texts, SentenceEncoder(), group=group, least=least, similarity=similarity)
    if json:
        print_json([
            {"name": one.task.name, "description": one.task.description, "examples": list(one.task.examples),
             "texts": one.texts, "share": one.share, "cohesion": one.cohesion}
            for one in found
        ])  # fmt: skip
        return
    if not found:
        hint(f"No topic has {least} of the {len(texts)} texts that no task fitted.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "texts", "share", "cohesion", "nearest to the middle"):
        table.add_column(heading, justify="left" if heading in ("task", "nearest to the middle") else "right")
    for one in found:
        table.add_row(one.task.name, str(one.texts), f"{one.share:.0%}", f"{one.cohesion:.2f}",
                      one.task.examples[0].replace("[", r"\["))  # fmt: skip
    out.print(table)
    hint(f'Next: adapterhub new {found[0].task.name} -d "…" -e "…"; --json prints the examples')
