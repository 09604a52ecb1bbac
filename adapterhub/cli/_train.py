"""`train`: a task's adapter from rows of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import hint, out, print_json

if TYPE_CHECKING:
    from adapterhub.training import FitResult

__all__ = ["train"]


def train(
    name: Annotated[str, typer.Argument(help="Name of a task that has a card.")],
    data: Annotated[str, typer.Option("--data", "-d", help="JSONL, CSV or Parquet file, or a name of `datasets`.")],
    validation: Annotated[
        str, typer.Option(help="Rows to validate on: a source as in --data, or a share of the data; 0 for none.")
    ] = "0.1",
    method: Annotated[Literal["lora", "bottleneck"], typer.Option(help="Kind of adapter.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of LoRA, width of the bottleneck.")] = 16,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 16,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without gain.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of order, dropout and initial weights.")] = 0,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder for checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Train the adapter of a task and register it as a new version."""
    from adapterhub.training import Trainer

    trainer = Trainer(
        open_registry(registry),
        method=method,
        rank=rank,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        validation={name: _share_or_source(validation)},
        patience=patience,
        seed=seed,
        checkpoints=checkpoints,
        resume=resume,
    )
    result = trainer.fit({name: data})[name]
    _tell(result, json=json)


def _tell(result: FitResult, *, json: bool) -> None:
    """What was measured, on stdout; what to do next, on stderr."""
    if json:
        print_json(
            {
                "task": result.task.name,
                "steps": result.steps,
                "seconds": result.seconds,
                "train_loss": result.train_loss,
                "validation_loss": result.validation_loss,
                "metrics": dict(result.task.metrics),
                "folder": str(result.folder),
            }
        )
        return
    measured = "not validated" if result.metric is None else f"{result.metric_name} {result.metric:.3f}"
    out.print(f"{measured} after {result.steps} steps, {result.seconds:.0f} s", markup=False)
    hint(f'Next: adapterhub run -t {result.task.name} "…"')


def _share_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
