"""Consoles, JSON, and the pictures that several commands draw."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:  # the rooms behind are heavy: a command loads those that it needs
    from adapterhub.model import Prediction
    from adapterhub.registry import Registry
    from adapterhub.router import Decision
    from adapterhub.task import Task

__all__ = ["decision_dict", "decision_tree", "err", "hint", "out", "print_json", "show_error", "spoken", "task_tree"]

WIDE = 160

# Where no one looks at a terminal, lines are for other programs: eighty columns would cut them.
out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """One JSON document on stdout, not wrapped and not coloured."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def hint(text: str) -> None:
    """What to do next, or how it went; on stderr, in one line however long."""
    err.print(Text(text, style="dim"), soft_wrap=True)


def show_error(error: Exception) -> None:
    """An error of ours as one block on stderr."""
    err.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)


def spoken(prediction: Prediction) -> str:
    """A prediction as one line of text."""
    from adapterhub.model import spoken as spoken_answers

    return spoken_answers(prediction.predictions) or "-"


def task_tree(registry: Registry, prefix: str = "") -> Tree:
    """The tree of tasks, each with its head and its first metric."""
    root = Tree(f"[bold]{escape(registry.root.resolve().name)}[/] [dim]{len(registry)} tasks[/]", guide_style="dim")
    branches: dict[str, Tree] = {"": root}
    for task in registry.under(prefix):
        parts = task.name.split("/")
        for depth in range(1, len(parts)):
            group = "/".join(parts[:depth])
            if group not in branches:
                branches[group] = branches["/".join(parts[: depth - 1])].add(f"[bold]{parts[depth - 1]}[/]")
        branches[task.group].add(_leaf(task, parts[-1]))
    return root


def _leaf(task: Task, name: str) -> str:
    metric = next((f"{key} {value:.3g}" for key, value in task.metrics.items()), "not measured")
    state = task.adapter or "[yellow]no adapter[/]"
    return f"{name} [dim]{task.head} · {state} · {escape(metric)}[/]"


def decision_dict(decision: Decision) -> dict[str, object]:
    """A routing decision as plain values."""
    return {
        "input": decision.text,
        "kind": decision.kind,
        "adapters": [
            {"name": name, "gate": gate}
            for name, gate in zip(decision.route.adapters, decision.route.gates, strict=True)
        ],
        "none_probability": decision.none_probability,
        "threshold": decision.threshold,
        "branches": dict(decision.branches),
        "candidates": [{"task": c.task, "score": c.score, "probability": c.probability} for c in decision.candidates],
    }


def decision_tree(decision: Decision, most: int = 5) -> Tree:
    """The tree that a decision saw: branches with their summed probability, the best tasks below them."""
    chosen = set(decision.route.adapters)
    verdict = {
        "sure": "one task is clearly first",
        "ambiguous": "several tasks fit",
        "none": "nothing fits: the base model answers alone",
    }[decision.kind]
    root = Tree(f"[dim]{verdict}[/]", guide_style="dim")
    shown = [c for c in decision.candidates[:most] if c.probability >= 0.005 or c.task in chosen]
    branches: dict[str, Tree] = {"": root}
    mass = dict(decision.branches)
    for candidate in shown:
        parts = candidate.task.split("/")
        for depth in range(1, len(parts)):
            group = "/".join(parts[:depth])
            if group not in branches:
                label = f"[bold]{parts[depth - 1]}[/] {mass.get(group, 0.0):.1%}"
                branches[group] = branches["/".join(parts[: depth - 1])].add(label)
        mark = "[green]→[/] " if candidate.task in chosen else "  "
        line = f"{mark}{parts[-1]} {candidate.probability:.1%} [dim]score {candidate.score:.1f}[/]"
        branches["/".join(parts[:-1])].add(line)
    mark = "[green]→[/] " if not chosen else "  "
    root.add(f"{mark}none {decision.none_probability:.1%} [dim]threshold {decision.threshold:.1f}[/]")
    return root
