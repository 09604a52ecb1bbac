"""What a routed model answers, in one schema for all heads."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Answer", "Entity", "Prediction", "spoken"]


@dataclass(frozen=True)
class Entity:
    """A tagged span of the input.

    Args:
        text: The span as it stands in the input.
        label: Its tag without the `B-`/`I-` prefix.
        start: Index of its first character in the input.
        end: Index behind its last character.
    """

    text: str
    label: str
    start: int
    end: int


Answer = str | float | Entity


@dataclass(frozen=True)
class Prediction:
    """The answers to one input, best first.

    Args:
        task: Name of the task whose head answered, or None where the base model answered alone.
        input: The text as it was given.
        predictions: Texts (generation), labels (classification), one number (regression) or entities (token
            classification).
        scores: One for each prediction, descending, in [0, 1]: the probability of the returned sequence, of the label,
            or the mean probability of the entity's tags. A regression head has no probabilities: its score is 1.0.
        adapters: Name and gate of each adapter that ran, the primary one first.
    """

    task: str | None
    input: str
    predictions: tuple[Answer, ...]
    scores: tuple[float, ...]
    adapters: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON: keys `task`, `input`, `predictions`, `scores`, `adapters`."""
        return {
            "task": self.task,
            "input": self.input,
            "predictions": [asdict(p) if isinstance(p, Entity) else p for p in self.predictions],
            "scores": list(self.scores),
            "adapters": [{"name": name, "gate": gate} for name, gate in self.adapters],
        }


def spoken(predictions: tuple[Answer, ...]) -> str:
    """Answers as one line: the best text, label or number, or all entities."""
    if not predictions:
        return ""
    if isinstance(predictions[0], Entity):
        return ", ".join(f"{p.text} ({p.label})" for p in predictions if isinstance(p, Entity))
    return str(predictions[0])
