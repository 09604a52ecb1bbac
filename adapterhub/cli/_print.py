"""Consoles, JSON, and the pictures that several commands draw."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:  # the rooms behind are heavy: a command loads those that it needs
    from adapterhub.model import Prediction
    from adapterhub.router import Decision

__all__ = ["decision_dict", "decision_tree", "err", "hint", "out", "print_json", "print_rows", "show_error", "spoken"]

WIDE = 160

# Where no one looks at a terminal, lines are for other programs: eighty columns would cut them.
out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """One JSON document on stdout, not wrapped and not coloured."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_rows(rows: Iterable[object]) -> None:
    """A JSON list on stdout, one row a line, however many there are."""
    before = "[\n"
    for row in rows:
        sys.stdout.write(before + json.dumps(row, ensure_ascii=False))
        before = ",\n"
    sys.stdout.write("[]\n" if before == "[\n" else "\n]\n")


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
        "together": decision.together,
        "threshold": decision.threshold,
        "branches": dict(decision.branches),
        "candidates": [{"task": c.task, "score": c.score, "probability": c.probability} for c in decision.candidates],
        "margin": decision.margin if math.isfinite(decision.margin) else None,
        "ambiguous_with": list(decision.ambiguous_with),
        "cold": list(decision.cold),
        "turns": decision.turns,
        "epoch": decision.epoch,
    }


def decision_tree(decision: Decision, most: int = 5) -> Tree:
    """The tree that a decision saw: branches with their summed probability, the best tasks below them."""
    chosen = set(decision.route.adapters)
    verdict = {
        "sure": "one task is clearly first",
        "branch": "no task is sure, their branch is: its own adapter answers",
        "ambiguous": "several tasks fit",
        "none": "nothing fits: the base model answers alone",
    }[decision.kind]
    if decision.ambiguous_with:
        verdict = verdict.replace("clearly first", "first")
        verdict += f"; only {decision.margin:.1f} times likelier than {decision.ambiguous_with[0]}"
    root = Tree(f"[dim]{verdict}[/]", guide_style="dim")
    shown = [c for c in decision.candidates[:most] if c.probability >= 0.005 or c.task in chosen]
    branches: dict[str, Tree] = {"": root}
    mass = dict(decision.branches)
    for candidate in shown:
        parts = candidate.task.split("/")
        for depth in range(1, len(parts)):
            group = "/".join(parts[:depth])
            if group not in branches:
                arrow = "[green]→[/] " if decision.kind == "branch" and group in chosen else ""
                label = f"{arrow}[bold]{parts[depth - 1]}[/] {mass.get(group, 0.0):.1%}"
                branches[group] = branches["/".join(parts[: depth - 1])].add(label)
        mark = "[green]→[/] " if candidate.task in chosen else "  "
        line = f"{mark}{parts[-1]} {candidate.probability:.1%} [dim]score {candidate.score:.1f}[/]"
        branches["/".join(parts[:-1])].add(line)
    mark = "[green]→[/] " if not chosen else "  "
    said = f"all together {decision.together:.1f}, threshold {decision.threshold:.1f}"
    root.add(f"{mark}none {decision.none_probability:.1%} [dim]{said}[/]")
    for task in decision.cold:
        root.add(f"[yellow]{task} has no example yet[/] [dim]add one to its card[/]")
    return root
