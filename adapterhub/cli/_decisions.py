"""Parts, explanations and impacts as plain values and pictures."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.tree import Tree

from adapterhub.cli._print import decision_dict

if TYPE_CHECKING:  # the rooms behind are heavy: a command loads those that it needs
    from adapterhub.router import Explanation, Impact, Parts

__all__ = ["explanation_dict", "impact_dict", "parts_dict", "parts_tree"]

SHOWN = 60  # characters of a part


def parts_dict(parts: Parts) -> dict[str, object]:
    """What the parts of a text ask for."""
    chosen = zip(parts.route.adapters, parts.route.gates, parts.evidence, strict=True)
    return {
        "input": parts.text,
        "adapters": [{"name": name, "gate": gate, "part": index} for name, gate, index in chosen],
        "parts": [{"start": part.start, **decision_dict(part.decision)} for part in parts.parts],
    }


def parts_tree(parts: Parts) -> Tree:
    """The parts in the order of the text, each with what it asks for; an arrow where that is in the union."""
    verdict = " + ".join(parts.route.adapters) or "nothing fits: the base model answers alone"
    root = Tree(f"[green]→[/] {verdict}", guide_style="dim")
    evidence = dict(zip(parts.evidence, parts.route.adapters, strict=True))
    for index, part in enumerate(parts.parts):
        asked = part.decision.route.adapters
        text = part.text if len(part.text) <= SHOWN else f"{part.text[: SHOWN - 1]}…"
        mark = "[green]→[/] " if index in evidence else "  "
        root.add(f"{mark}{asked[0] if asked else 'none'} [dim]{escape(text)}[/]")
    return root


def explanation_dict(explanation: Explanation) -> dict[str, object]:
    """A decision with its reasons."""
    following = explanation.next
    return {
        **decision_dict(explanation.decision),
        "reason": explanation.reason,
        "path": dict(explanation.path),
        "nearest": [asdict(near) for near in explanation.nearest],
        "next": None
        if following is None
        else {
            **asdict(following),
            "times": following.times if math.isfinite(following.times) else None,
            "directions": [{"direction": at, "nats": nats} for at, nats in following.directions],
        },
    }


def impact_dict(impact: Impact) -> dict[str, object]:
    """What a new or changed task would take."""
    return {
        "task": impact.task,
        "looked_at": impact.looked_at,
        "tried": impact.tried,
        "taken": impact.taken,
        "share": impact.share,
        "losses": [{**asdict(loss), "share": loss.share} for loss in impact.losses],
        "twins": [asdict(twin) for twin in impact.twins],
    }
