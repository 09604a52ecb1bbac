"""The commands together, and what happens to an error."""

from __future__ import annotations

import logging
import os
import sys

import typer

from adapterhub import __version__
from adapterhub.cli import (
    _bulk,
    _cards,
    _compact,
    _convert,
    _demo,
    _evaluate,
    _grouping,
    _hub,
    _meta_init,
    _report,
    _run,
    _suggest,
    _train,
)
from adapterhub.cli._print import show_error
from adapterhub.errors import AdapterHubError

__all__ = ["app", "main"]

app = typer.Typer(
    name="adapterhub",
    help="One frozen base model, a tree of tasks, one small adapter for each, a router that picks the few that fit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _command, _panel in (
    ("demo", _demo.demo, "Start here"),
    ("run", _run.run, "Use"),
    ("route", _run.route, "Use"),
    ("eval", _evaluate.evaluate_command, "Use"),
    ("report", _report.report, "Use"),
    ("stats", _report.stats, "Use"),
    ("suggest", _suggest.suggest, "Use"),
    ("ls", _cards.ls, "Registry"),
    ("info", _cards.info, "Registry"),
    ("new", _cards.new, "Registry"),
    ("check", _cards.check, "Registry"),
    ("add", _cards.add, "Registry"),
    ("retire", _cards.retire, "Registry"),
    ("restore", _cards.restore, "Registry"),
    ("rm", _cards.rm, "Registry"),
    ("import", _bulk.import_command, "Registry as a whole"),
    ("export", _bulk.export_command, "Registry as a whole"),
    ("reindex", _bulk.reindex, "Registry as a whole"),
    ("fsck", _bulk.fsck, "Registry as a whole"),
    ("train", _train.train, "Train"),
    ("doctor", _grouping.doctor, "Train"),
    ("affinity", _grouping.affinity_command, "Train"),
    ("cluster", _grouping.cluster, "Train"),
    ("meta-init", _meta_init.meta_init_command, "Train"),
    ("prune", _compact.prune, "Train"),
    ("convert", _convert.convert, "Exchange"),
    ("mix", _convert.mix, "Exchange"),
    ("merge", _convert.merge, "Exchange"),
    ("push", _hub.push_command, "Hub"),
    ("pull", _hub.pull_command, "Hub"),
):
    app.command(_name, rich_help_panel=_panel)(_command)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours is one block on stderr and exit status 1."""
    _hush()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a reader that has gone away can still be told from other faults
    except AdapterHubError as error:
        show_error(error)
        sys.exit(1)
    except BrokenPipeError:
        # `… | head`: what is left in the buffer has nowhere to go, and Python shall not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _hush() -> None:
    """Keep the libraries' own notes and bars off stderr, which belongs to ours."""
    for name in ("transformers", "sentence_transformers", "huggingface_hub", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Read at import, so set before the heavy libraries are loaded.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
