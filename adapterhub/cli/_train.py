"""`train`: a task's adapter from rows of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import hint, out, print_json
from adapterhub.errors import InputError

if TYPE_CHECKING:
    from adapterhub.registry import Registry
    from adapterhub.training import FitResult

__all__ = ["train"]


def train(
    name: Annotated[str, typer.Argument(help="Name of a task that has a card; with --children, of a group.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            help="JSONL, CSV or Parquet file, or a name of `datasets`. With --children NAME=FILE for each task, or a "
            "folder with <task>/train.jsonl below it.",
        ),
    ],
    validation: Annotated[
        str, typer.Option(help="Rows to validate on: a source as in --data, or a share of the data; 0 for none.")
    ] = "0.1",
    children: Annotated[
        bool, typer.Option("--children", help="Train the group's adapter, then those of its tasks on top of it.")
    ] = False,
    weighting: Annotated[
        str, typer.Option(help="With --children: how the tasks' losses or gradients are balanced.")
    ] = "sum",
    sampling: Annotated[
        str | None,
        typer.Option(help="With --children: how the task of a step is drawn. Default: a batch of each in every step."),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Begin with another task's adapter, `nearest` for the one that the router picks, or a PEFT folder, "
            "such as that of meta-init."
        ),
    ] = None,
    optimiser: Annotated[str, typer.Option(help="adamw, sgd, adaptive_momentum, muon or lora_fa.")] = "adamw",
    method: Annotated[Literal["lora", "bottleneck"], typer.Option(help="Kind of adapter.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of LoRA, width of the bottleneck.")] = 16,
    norms: Annotated[
        bool, typer.Option("--norms", help="Train the task's own copies of the base's normalisations as well.")
    ] = False,
    base_bits: Annotated[
        Literal["4", "8"] | None,
        typer.Option(help="Quantise the frozen base with bitsandbytes; the adapter fits the base in floating point."),
    ] = None,
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
    from adapterhub.training import Sharing, Trainer

    tasks = open_registry(registry)
    if children and init_from is not None:
        raise InputError("--init-from is for one task. Found it with --children. Leave it out, or train one task.")
    sources = _sources(tasks, name, data) if children else {name: _only(data)}
    trainer = Trainer(
        tasks,
        method=method,
        rank=rank,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        validation=dict.fromkeys(sources, _share_or_source(validation)),
        patience=patience,
        seed=seed,
        checkpoints=checkpoints,
        resume=resume,
        optimiser=optimiser,
        norms=norms,
        quantization_config=_quantised(base_bits),
        sharing=Sharing(weighting=weighting, sampling=sampling),
    )
    begin = None if init_from is None else {name: _nearest(tasks, name) if init_from == "nearest" else init_from}
    found = trainer.fit(sources, group=name if children else None, init_from=begin)
    _tell(list(found.values()), json=json)


def _quantised(bits: str | None) -> object:
    """How transformers is told to hold a base in so many bits."""
    if bits is None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=bits == "4", load_in_8bit=bits == "8")


def _only(data: list[str]) -> str:
    if len(data) != 1:
        raise InputError(f"A task is trained on one source. Found {len(data)} times --data. See --children.")
    return data[0]


def _sources(tasks: Registry, group: str, data: list[str]) -> dict[str, str]:
    """The source of each task of a group."""
    if len(data) == 1 and Path(data[0]).is_dir():
        below = {task.name: Path(data[0]) / task.name / "train.jsonl" for task in tasks.tasks(group)}
        found = {name: str(path) for name, path in below.items() if name != group and path.is_file()}
        if not found:
            first = next((str(path) for name, path in below.items() if name != group), f"{data[0]}/{group}/…")
            raise InputError(
                f"{data[0]}: a task's rows lie in <task>/train.jsonl. Found none, for instance no {first}."
            )
        return found
    pairs = [each.partition("=") for each in data]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise InputError(f"With --children each source is NAME=FILE. Found {wrong[0]!r}. Name its task.")
    return {name: source for name, _, source in pairs}


def _nearest(tasks: Registry, name: str) -> str:
    """The task with an adapter that the router takes the task's examples to."""
    from adapterhub.encoder import SentenceEncoder
    from adapterhub.router import Router

    task = tasks[name]
    decisions = Router(tasks, SentenceEncoder()).decide(list(task.examples) or [task.description])
    votes: dict[str, float] = {}
    for decision in decisions:
        for candidate in decision.candidates:
            if candidate.task != name:
                votes[candidate.task] = votes.get(candidate.task, 0.0) + candidate.probability
    if not votes:
        raise InputError(f"{name}: no other task has an adapter to begin with. Leave --init-from out.")
    nearest = max(votes, key=votes.__getitem__)
    hint(f"begins with the adapter of {nearest}")
    return nearest


def _tell(results: list[FitResult], *, json: bool) -> None:
    """What was measured, on stdout; what to do next, on stderr."""
    if json:
        fields = [
            {
                "task": result.task.name,
                "steps": result.steps,
                "seconds": result.seconds,
                "train_loss": result.train_loss,
                "validation_loss": result.validation_loss,
                "metrics": dict(result.task.metrics),
                "folder": str(result.folder),
            }
            for result in results
        ]
        print_json(fields[0] if len(fields) == 1 else fields)
        return
    for result in results:
        measured = "not validated" if result.metric is None else f"{result.metric_name} {result.metric:.3f}"
        name = f"{result.task.name}: " if len(results) > 1 else ""
        out.print(f"{name}{measured} after {result.steps} steps, {result.seconds:.0f} s", markup=False)
    hint(f'Next: adapterhub run -t {results[-1].task.name} "…"')


def _share_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
