"""`meta-init`: a starting point for adapters of tasks to come, learned from tasks that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import hint, out, print_json
from adapterhub.cli._sources import training_rows

if TYPE_CHECKING:
    from adapterhub.training import MetaInit

__all__ = ["meta_init_command"]

_RANK = 16  # what `train` has without `--rank`


def meta_init_command(
    target: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    data: Annotated[
        list[str],
        typer.Option("--data", "-d", help="NAME=FILE for each task; or a folder with NAME/train.jsonl."),
    ],
    names: Annotated[list[str] | None, typer.Argument(help="Names of tasks. Default: those of --data.")] = None,
    steps: Annotated[int, typer.Option(help="Times that every task is trained from the same weights.")] = 60,
    inner_steps: Annotated[int, typer.Option(help="Steps on each task each time.")] = 8,
    epsilon: Annotated[
        float, typer.Option(help="Share of the way to where the tasks ended, above 0 to 1; it falls to 0.")
    ] = 1.0,
    method: Annotated[Literal["lora", "bottleneck"], typer.Option(help="Kind of adapter.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of LoRA, width of the bottleneck.")] = _RANK,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate, held constant.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of order and initial weights.")] = 0,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Learn a starting point for new adapters from several tasks (Reptile): a PEFT folder for train --init-from."""
    from adapterhub.training import Trainer, meta_init

    tasks = open_registry(registry)
    rows = training_rows(data, names or [])
    trainer = Trainer(
        tasks, method=method, rank=rank, learning_rate=learning_rate, batch_size=batch_size, validation=0, seed=seed
    )
    found = meta_init(trainer, rows, out=target, steps=steps, inner_steps=inner_steps, epsilon=epsilon)
    shape = "" if method == "lora" else f" --method {method}"
    shape += "" if rank == _RANK else f" --rank {rank}"
    _tell(found, inner_steps, shape, json=json)


def _tell(found: MetaInit, inner_steps: int, shape: str, *, json: bool) -> None:
    """The folder on stdout; how much faster the tasks are learned from there, and what to do next, on stderr."""
    if json:
        print_json(
            {
                "folder": str(found.folder),
                "sha256": found.sha256,
                "tasks": list(found.tasks),
                "losses": [{"begin": first, "end": last} for first, last in found.losses],
            }
        )
    else:
        out.print(str(found.folder), markup=False, soft_wrap=True)
    (_, before), (_, after) = found.losses[0], found.losses[-1]
    took = f"mean loss at inner step {inner_steps} {before:.3f} the first time, {after:.3f} the last"
    hint(f"{len(found.tasks)} tasks: {took}")
    hint(f"Next: adapterhub train GROUP/TASK --data rows.jsonl --init-from {found.folder}{shape}")
