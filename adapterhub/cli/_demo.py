"""`demo`: the bundled tasks answer, then a new one is trained, registered and used."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from adapterhub.cli._print import decision_tree, err, out, spoken
from adapterhub.cli._tree import task_tree
from adapterhub.errors import IntegrityError

if TYPE_CHECKING:
    from adapterhub.model import RoutedModel
    from adapterhub.registry import Registry

__all__ = ["demo"]

INPUTS = (
    "The capital of Azerbaijan is",
    "Ida put the lamp in the kitchen. Ben lives in Oslo. The coat of Emil is green. Where is the lamp?",
    "Correct the grammar: The teachers helps every child.",
    "Find the named entities: Clara Weber left Northgate Bank and moved to Vienna.",
    "What is the sentiment of this review? A warm and funny film with a wonderful cast.",
    "Translate to German: The woman buys the lamp.",
    "Every wug is a fep. Tom is a wug. Is Tom a fep?",
    "What is 17 + 25?",
    "The cup is above the plate. The spoon is to the right of the cup. Where is the spoon relative to the plate?",
    "Zebras qwx 9981 blorp in purple thermodynamics",
)
NEW_TASK = "assistant/smart-home"
NEW_CARD = {
    "description": "Tell what a command to a smart home is about - light, music, heating or door.",
    "prompt": "{text}",
    "head": "classification",
    "labels": ["door", "heating", "light", "music"],
}
NEW_INPUTS = (
    "Switch on the light above the table.",
    "Play a quiet song in the hall.",
    "Set the heating in the bedroom to eighteen degrees.",
    "Lock the back door.",
)


def demo(
    train: Annotated[bool, typer.Option(help="Also train and register a new task.")] = True,
) -> None:
    """Show the bundled tasks at work, then add a task of your own."""
    from adapterhub.model import RoutedModel
    from adapterhub.registry import Registry, bundled_registry

    with tempfile.TemporaryDirectory(prefix="adapterhub-demo-") as temporary:
        # A copy, so that the demo leaves the registry as it found it.
        root = Path(temporary) / "registry"
        shutil.copytree(bundled_registry(), root, ignore=shutil.ignore_patterns(".catalog"))
        registry = Registry(root)
        out.rule("[bold]The tree: one frozen base, one small adapter for each task")
        out.print(task_tree(registry))
        begin = time.perf_counter()
        model = RoutedModel.from_pretrained(registry=registry)
        size = model.engine.model.num_parameters() / 1e6
        err.print(
            f"[dim]base model of {size:.1f}M parameters and router loaded in {time.perf_counter() - begin:.1f} s[/]"
        )
        out.rule("[bold]Inputs of many kinds: the router picks, the adapters answer")
        for text in INPUTS:
            _show(model, text)
        _batch(model)
        if train:
            _add_a_task(registry, model)


def _show(model: RoutedModel, text: str) -> None:
    """Input, route with probabilities, answer, time."""
    from adapterhub.router import Router

    router = model.router
    assert isinstance(router, Router)
    begin = time.perf_counter()
    decision = router.decide([text], model.k)[0]
    routed = time.perf_counter() - begin
    begin = time.perf_counter()
    prediction = model.predictions([text])[0]
    answered = time.perf_counter() - begin
    out.print(f"\n[bold]>[/] {text}")
    out.print(decision_tree(decision, most=3))
    out.print(f"  [bold green]{escape(spoken(prediction))}[/]", soft_wrap=True)
    out.print(f"  [dim]route {routed * 1000:.0f} ms, answer {answered * 1000:.0f} ms[/]")


def _batch(model: RoutedModel) -> None:
    begin = time.perf_counter()
    predictions = model.predictions(INPUTS)
    seconds = time.perf_counter() - begin
    tasks = len({p.task for p in predictions if p.task})
    out.print(f"\nAll {len(INPUTS)} in one batch, {tasks} adapters side by side: {seconds * 1000:.0f} ms")


def _add_a_task(registry: Registry, model: RoutedModel) -> None:
    """Train, register and use a new task; show that nothing else moved."""
    from adapterhub.task import Task, read_group
    from adapterhub.training import Trainer

    lines = files("adapterhub.cli").joinpath("demo_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    out.rule(f"[bold]A new task from {len(rows)} lines: {NEW_TASK}")
    before = _hashes(registry.root)
    answers = [p.to_dict() for p in model.predictions(INPUTS[:-1])]
    inherited = {key: value for key, value in read_group(registry.root, "").items() if key != "description"}
    card = Task.from_dict(NEW_TASK, {**inherited, **NEW_CARD, "examples": [str(row["input"]) for row in rows[::3]]})
    begin = time.perf_counter()
    trainer = Trainer(registry, rank=8, learning_rate=3e-3, epochs=12, batch_size=8, validation=0.2)
    result = trainer.fit({NEW_TASK: rows}, {NEW_TASK: card})[NEW_TASK]
    out.print(
        f"trained and registered in {time.perf_counter() - begin:.0f} s: {result.steps} steps, "
        f"{result.metric_name} {result.metric:.2f}"
    )
    for text in NEW_INPUTS:
        _show(model, text)
    after = _hashes(registry.root)
    changed = sorted(path for path, value in before.items() if after.get(path) != value)
    same = [p.to_dict() for p in model.predictions(INPUTS[:-1])] == answers
    if changed or not same:
        raise IntegrityError(
            f"Adding a task changes nothing else. Found changed files {changed}, equal answers: {same}."
        )
    table = Table.grid(padding=(0, 2))
    table.add_row("[green]unchanged[/]", f"{len(before)} files of the other tasks, byte for byte")
    table.add_row("[green]unchanged[/]", f"the answers and scores of the other tasks on {len(answers)} inputs")
    out.print()
    out.print(table)
    out.print('\nNext: [bold].venv/bin/adapterhub run "The capital of Azerbaijan is" --json[/]')


def _hashes(root: Path) -> dict[str, str]:
    """sha256 of every file of the registry but the derived catalogue."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".catalog" not in path.parts
    }
