"""Rows of the reasoning tasks: small arithmetic, positions of objects, simple logic."""

from __future__ import annotations

import random
from pathlib import Path

from . import words
from ._split import Row, Splits, generated

SUMS = ("What is {a} + {b}?", "{a} + {b} =", "Add {a} and {b}.", "How much is {a} plus {b}?", "Compute {a} + {b}.")
DIFFERENCES = (
    "What is {a} - {b}?",
    "{a} - {b} =",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Compute {a} - {b}.",
)
PRODUCTS = ("What is {a} times {b}?", "{a} * {b} =", "Multiply {a} by {b}.", "How much is {a} times {b}?")


def math(data: Path) -> Splits:  # noqa: ARG001 - generated, needs no data
    """Sums and differences of numbers up to 50, products up to 10 times 10; no pair of numbers is in two splits."""

    def make(draw: random.Random) -> tuple[str, Row]:
        kind = draw.choices("+-*", (5, 5, 1))[0]
        top = 10 if kind == "*" else 50
        a, b = draw.randint(0, top), draw.randint(0, top)
        if kind == "-":
            a, b = max(a, b), min(a, b)
        wording = draw.choice({"+": SUMS, "-": DIFFERENCES, "*": PRODUCTS}[kind])
        answer = {"+": a + b, "-": a - b, "*": a * b}[kind]
        return f"{a}{kind}{b}", {"input": wording.replace("{a}", str(a)).replace("{b}", str(b)), "output": str(answer)}

    return generated(make, train=16000, seed=25)


DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "above": (0, 1), "below": (0, -1)}
PHRASES = {
    "right": ("to the right of", "on the right side of", "right of"),
    "left": ("to the left of", "on the left side of", "left of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
WHERE = (
    "Where is the {x} relative to the {y}?",
    "What is the position of the {x} relative to the {y}?",
    "Seen from the {y}, where is the {x}?",
)


def _direction(x: int, y: int) -> str:
    """The label of an offset: `right`, `upper-left`, …"""
    vertical = "upper" if y > 0 else "lower" if y < 0 else ""
    horizontal = "right" if x > 0 else "left" if x < 0 else ""
    if vertical and horizontal:
        return f"{vertical}-{horizontal}"
    return horizontal or {"upper": "above", "lower": "below"}[vertical]


def spatial(data: Path) -> Splits:  # noqa: ARG001 - generated, needs no data
    """Where the last object of a chain of one to three relations is, seen from the first."""

    def make(draw: random.Random) -> tuple[str, Row]:
        hops = draw.randint(1, 3)
        objects = draw.sample(words.OBJECTS, hops + 1)
        sentences, x, y = [], 0, 0
        for i in range(hops):
            # A last step back to where the chain began would have no label.
            allowed = [r for r, (dx, dy) in DIRECTIONS.items() if i < hops - 1 or (x + dx, y + dy) != (0, 0)]
            relation = draw.choice(allowed)
            x, y = x + DIRECTIONS[relation][0], y + DIRECTIONS[relation][1]
            sentences.append(f"The {objects[i + 1]} is {draw.choice(PHRASES[relation])} the {objects[i]}.")
        story = " ".join(sentences)
        question = draw.choice(WHERE).replace("{x}", objects[-1]).replace("{y}", objects[0])
        return story, {"input": f"{story} {question}", "label": _direction(x, y)}

    return generated(make, train=24000, seed=26)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _kinds(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(words.FIRST_NAMES)
    (low, high), (other, _) = draw.sample(words.KINDS, 2)
    a_low, a_high = _a(low), _a(high)
    every, is_low = f"Every {low} is {a_high}.", f"{name} is {a_low}."
    return draw.choice(
        (
            (f"{every} {is_low} Is {name} {a_high}?", "yes"),
            (f"No {low} is {a_high}. {is_low} Is {name} {a_high}?", "no"),
            (f"{every} {name} is {a_high}. Is {name} {a_low}?", "unknown"),
            (f"{every} {name} is not {a_high}. Is {name} {a_low}?", "no"),
            (f"{every} {is_low} Is {name} {_a(other)}?", "unknown"),
            (f"One {low} is {a_high}. {is_low} Is {name} {a_high}?", "unknown"),
        )
    )


def _causes(draw: random.Random) -> tuple[str, str]:
    cause, effect = draw.choice(words.CAUSES)
    rule = f"If {cause}, {effect}."
    return draw.choice(
        (
            (f"{rule} We know that {cause}. Is it true that {effect}?", "yes"),
            (f"{rule} It is not true that {effect}. Is it true that {cause}?", "no"),
            (f"{rule} We know that {effect}. Is it true that {cause}?", "unknown"),
            (f"{rule} It is not true that {cause}. Is it true that {effect}?", "unknown"),
        )
    )


def _either(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(words.FIRST_NAMES)
    first, second = (_a(kind) for kind in draw.sample([low for low, _ in words.KINDS], 2))
    rule = f"{name} is either {first} or {second}."
    return draw.choice(
        (
            (f"{rule} {name} is not {first}. Is {name} {second}?", "yes"),
            (f"{rule} {name} is {first}. Is {name} {second}?", "no"),
            (f"{rule} Is {name} {second}?", "unknown"),
        )
    )


def logic(data: Path) -> Splits:  # noqa: ARG001 - generated, needs no data
    """Does a conclusion follow: kinds of things, causes, alternatives; yes, no or unknown."""

    def make(draw: random.Random) -> tuple[str, Row]:
        text, label = draw.choices((_kinds, _causes, _either), (4, 2, 2))[0](draw)
        return text, {"input": text, "label": label}

    return generated(make, train=16000, seed=27)
