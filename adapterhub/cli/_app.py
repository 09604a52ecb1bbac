"""The commands together, and what happens to an error."""

from __future__ import annotations

import logging
import os
import sys

import typer

from adapterhub import __version__
from adapterhub.cli import _cards, _demo, _evaluate, _hub, _run, _train
from adapterhub.cli._print import err
from adapterhub.errors import AdapterHubError

__all__ = ["app", "main"]

app = typer.Typer(
    name="adapterhub",
    help="One frozen base model, a tree of tasks, one small adapter for each, a router that picks the few that fit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command, _panel in (
    (_demo.demo, "Start here"),
    (_run.run, "Use"),
    (_run.route, "Use"),
    (_evaluate.evaluate_command, "Use"),
    (_cards.ls, "Registry"),
    (_cards.info, "Registry"),
    (_cards.new, "Registry"),
    (_cards.check, "Registry"),
    (_cards.add, "Registry"),
    (_cards.rm, "Registry"),
    (_train.train, "Train"),
    (_hub.push_command, "Hub"),
    (_hub.pull_command, "Hub"),
):
    app.command(_command.__name__.removesuffix("_command").replace("evaluate", "eval"), rich_help_panel=_panel)(
        _command
    )


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit status 1."""
    _hush()
    try:
        app()
    except AdapterHubError as error:
        err.print(f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)


def _hush() -> None:
    """Keep the libraries' own notes and bars off stderr, which belongs to ours."""
    for name in ("transformers", "sentence_transformers", "huggingface_hub", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Read at import, so set before the heavy libraries are loaded.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _plain(message: str) -> str:
    """The message with brackets that rich must not read as markup."""
    return message.replace("[", r"\[")
