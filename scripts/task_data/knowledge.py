"""Rows of the knowledge tasks: facts about countries, and questions about a short text."""

from __future__ import annotations

import json
import random
from pathlib import Path

from . import words
from ._split import Row, Splits, generated

WORDINGS = {
    "capital": (
        "The capital of {x} is",
        "What is the capital of {x}?",
        "Name the capital city of {x}.",
        "Which city is the capital of {x}?",
        "Tell me the capital of {x}.",
    ),
    "currency": (
        "The currency of {x} is the",
        "What is the currency of {x}?",
        "Which money is used in {x}?",
        "Name the official currency of {x}.",
    ),
    "language": (
        "Which language is spoken in {x}?",
        "Name the language of {x}.",
        "What do people speak in {x}?",
        "The language of {x} is",
    ),
    "region": (
        "Where is {x} located?",
        "In which part of the world is {x}?",
        "Name the region of {x}.",
        "{x} lies in",
    ),
}


def world_knowledge(data: Path) -> Splits:
    """Capital, currency, language and region of the countries; each fact is tested in a wording not trained on."""
    facts: dict[tuple[str, str], str] = {}
    folder = data / "knowledge/world-knowledge"
    for split in ("train", "validation", "test"):
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["relation"] in WORDINGS:
                facts.setdefault((row["relation"], row["entity"]), row["output"])
    draw = random.Random(23)
    rows: Splits = {"train": [], "validation": [], "test": []}
    for (relation, entity), answer in sorted(facts.items()):
        wordings = list(WORDINGS[relation])
        draw.shuffle(wordings)
        for position, wording in enumerate(wordings):
            split = {0: "test", 1: "validation"}.get(position, "train")
            if split == "validation" and relation != "capital":
                split = "train"  # facts are scarce: only the capitals give up a second wording
            rows[split].append({"input": wording.replace("{x}", entity), "output": answer})
    for split in ("validation", "test"):
        rows[split] = draw.sample(rows[split], min(300, len(rows[split])))
    return rows


def _story(draw: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
    """Two or three facts of different kinds and people, and the questions that each answers."""
    people = draw.sample(words.FIRST_NAMES, 4)
    things = draw.sample(words.OBJECTS, 4)
    places = draw.sample(words.PLACES, 4)
    colours = draw.sample(words.COLOURS, 4)
    cities = draw.sample(words.CITIES, 4)
    foods = draw.sample(words.FOODS, 4)
    sentences, questions = [], []
    for i, kind in enumerate(draw.sample(("place", "colour", "home", "food"), draw.randint(2, 3))):
        person, thing, place = people[i], things[i], places[i]
        sentence, asked = {
            "place": draw.choice(
                (
                    (f"{person} put the {thing} in the {place}.",
                     [(f"Where is the {thing}?", place), (f"Who put the {thing} away?", person),
                      (f"What did {person} put in the {place}?", thing)]),
                    (f"{person} took the {thing} to the {place}.",
                     [(f"Where is the {thing}?", place), (f"Who took the {thing}?", person)]),
                )
            ),
            "colour": (f"The {thing} of {person} is {colours[i]}.",
                       [(f"What colour is the {thing}?", colours[i]), (f"Who owns the {thing}?", person)]),
            "home": (f"{person} lives in {cities[i]}.",
                     [(f"Where does {person} live?", cities[i]), (f"Who lives in {cities[i]}?", person)]),
            "food": (f"{person} bought {foods[i]} at the market.",
                     [(f"What did {person} buy?", foods[i]), (f"Who bought {foods[i]}?", person)]),
        }[kind]  # fmt: skip
        sentences.append(sentence)
        questions.extend(asked)
    return sentences, questions


def question_answering(data: Path) -> Splits:  # noqa: ARG001 - generated, needs no data
    """A question about a text of two or three sentences; the answer is a word of the text."""

    def make(draw: random.Random) -> tuple[str, Row]:
        sentences, questions = _story(draw)
        question, answer = draw.choice(questions)
        text = " ".join(sentences)
        ask = draw.choice((f"{text} {question}", f"Text: {text} Question: {question}", f"Read: {text} {question}"))
        return text, {"input": ask, "output": answer}

    return generated(make, train=32000, seed=24)
