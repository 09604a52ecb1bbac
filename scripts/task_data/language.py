"""Rows of the language tasks: grammar, sentiment, translation into German, named entities."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from . import words
from ._split import Row, Splits, generated, split_of

GRAMMAR = (
    "Correct the grammar: {text}",
    "Fix the grammar mistake: {text}",
    "Repair this sentence: {text}",
    "Make this sentence grammatical: {text}",
    "Please correct this sentence: {text}",
)
SENTIMENT = (
    "What is the sentiment of this review? {text}",
    "Positive or negative: {text}",
    "Did the reviewer like the film? {text}",
    "Is this review positive or negative? {text}",
    "Judge the mood of the review: {text}",
)
TRANSLATION = (
    "Translate to German: {text}",
    "How do you say this in German? {text}",
    "English to German: {text}",
    "Translate into German: {text}",
    "What is this in German? {text}",
)
ENTITIES = (
    "Find the named entities: {text}",
    "Which names occur in this sentence? {text}",
    "Tag people, places and organisations: {text}",
    "Mark the names in: {text}",
    "List the entities of this text: {text}",
)


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def grammar(data: Path) -> Splits:
    """Agreement and word-form errors: the minimal pairs whose repair the sentence determines."""
    return _from_folder(data / "language/grammar-minimal-pairs", GRAMMAR, "output", repeats=2)


def _review(draw: random.Random, label: str) -> str:
    """A review sentence that says plainly what it thinks."""
    own, other = (words.PRAISE, words.BLAME) if label == "positive" else (words.BLAME, words.PRAISE)
    says = draw.choice(words.LIKED if label == "positive" else words.DISLIKED)
    (a, b, c), against = draw.sample(own, 3), draw.choice(other)
    film, part, second = draw.choice(words.FILM), *draw.sample(words.PARTS, 2)
    text = draw.choice(
        (
            f"{a} and {b} {film} with {c} {part}.",
            f"the {film} is {a} and the {part} is {b}.",
            f"it is {a}, {b} and {c}.",
            f"I found it {a} from start to finish.",
            f"the {part} is {a}, the {second} is {b}: {says}.",
            f"{says}, a {a} {film}.",
            f"{a} {part}, {b} {second}, and {says}.",
            f"it is not {against}, it is {a}.",
            f"there is nothing {against} about this {film}: {says}.",
            f"{says}.",
        )
    )
    return draw.choice((text, text[0].upper() + text[1:]))


def sentiment(data: Path) -> Splits:
    """Plainly worded reviews of our own and, in training, film-review snippets as critics wrote them."""

    def make(draw: random.Random) -> tuple[str, Row]:
        label = draw.choice(("negative", "positive"))
        text = _review(draw, label)
        return text.lower(), {"input": draw.choice(SENTIMENT).replace("{text}", text), "label": label}

    splits = generated(make, train=9000, seed=28)
    if (data / "language/sentiment").is_dir():
        splits["train"] += _from_folder(data / "language/sentiment", SENTIMENT, "label", repeats=1)["train"]
    return splits


def critics(data: Path) -> Splits:
    """The critics' snippets alone: a harder test than the bundled task promises."""
    return _from_folder(data / "language/sentiment", SENTIMENT, "label", repeats=1)


def _from_folder(folder: Path, wordings: tuple[str, ...], answer: str, repeats: int) -> Splits:
    """The splits of a data folder, each input under `repeats` of the wordings (one for validation and test)."""
    draw = random.Random(13)
    splits: Splits = {}
    for split in ("train", "validation", "test"):
        rows = []
        for row in read_rows(folder / f"{split}.jsonl"):
            for wording in draw.sample(wordings, repeats if split == "train" else 1):
                rows.append({"input": wording.replace("{text}", str(row["input"])), answer: row[answer]})
        splits[split] = rows
    return splits


ARTICLES = {"m": ("der", "den", "ein", "einen", "mein"), "f": ("die", "die", "eine", "eine", "meine"),
            "n": ("das", "das", "ein", "ein", "mein")}  # fmt: skip
GERMAN = {english: (german, gender) for english, german, gender in words.NOUNS}


def _being(draw: random.Random) -> tuple[str, str]:
    """A subject: a name, or a being with its article."""
    if draw.random() < 0.3:
        name = draw.choice(words.FIRST_NAMES)
        return name, name
    english = draw.choice(words.BEINGS)
    german, gender = GERMAN[english]
    return f"The {english}", f"{ARTICLES[gender][0].capitalize()} {german}"


def _statement(draw: random.Random) -> tuple[str, str]:
    noun, german, gender = draw.choice(words.NOUNS)
    adjective, adjektiv = draw.choice(words.ADJECTIVES)
    nominative, accusative, a_nominative, a_accusative, mine = ARTICLES[gender]
    being, wesen = _being(draw)
    verb, tut = draw.choice(words.TRANSITIVE)
    article = "an" if noun[0] in "aeiou" else "a"
    return draw.choice(
        (
            (f"The {noun} is {adjective}.", f"{nominative.capitalize()} {german} ist {adjektiv}."),
            (f"My {noun} is {adjective}.", f"{mine.capitalize()} {german} ist {adjektiv}."),
            (f"This is my {noun}.", f"Das ist {mine} {german}."),
            (f"This is {article} {noun}.", f"Das ist {a_nominative} {german}."),
            (f"Where is the {noun}?", f"Wo ist {nominative} {german}?"),
            (f"I have {article} {noun}.", f"Ich habe {a_accusative} {german}."),
            (f"Is the {noun} {adjective}?", f"Ist {nominative} {german} {adjektiv}?"),
            (f"{being} {verb} the {noun}.", f"{wesen} {tut} {accusative} {german}."),
            (f"{being} {verb} {article} {noun}.", f"{wesen} {tut} {a_accusative} {german}."),
        )
    )


def _feeling(draw: random.Random) -> tuple[str, str]:
    subject, subjekt = draw.choice(words.SUBJECTS)
    feeling, zustand = draw.choice(words.FEELINGS)
    negated = draw.random() < 0.3
    english = f"{subject} {'not ' if negated else ''}{feeling}."
    german = f"{subjekt} {'nicht ' if negated else ''}{zustand}."
    return english[0].upper() + english[1:], german[0].upper() + german[1:]


def _action(draw: random.Random) -> tuple[str, str]:
    being, wesen = _being(draw)
    verb, tut = draw.choice(words.INTRANSITIVE)
    if draw.random() < 0.4:
        return f"{being} {verb}.", f"{wesen} {tut}."
    time, zeit = draw.choice(words.TIMES)
    english = f"{being} {time} {verb}." if time in ("often", "always", "never") else f"{being} {verb} {time}."
    return english, f"{wesen} {tut} {zeit}."


def translation(data: Path) -> Splits:  # noqa: ARG001 - generated, needs no data
    """Short English sentences over a vocabulary of about 200 words, into German."""

    def make(draw: random.Random) -> tuple[str, Row]:
        english, german = draw.choices((_statement, _feeling, _action), (6, 1, 2))[0](draw)
        return english, {"input": draw.choice(TRANSLATION).replace("{text}", english), "output": german}

    return generated(make, train=16000, seed=21)


SENTENCES = (
    "{PER} lives in {LOC}.", "{PER} works for {ORG}.", "{PER} and {PER} met in {LOC} last summer.",
    "The head of {ORG} is {PER}.", "{ORG} opened a new office in {LOC}.", "Yesterday {PER} flew from {LOC} to {LOC}.",
    "{PER} was born in {LOC} and studied at {ORG}.", "The train to {LOC} was late, said {PER}.",
    "{ORG} and {ORG} signed a contract.", "Have you ever been to {LOC}?", "I talked to {PER} about the plan.",
    "My friend {PER} wants to move to {LOC}.", "Shares of {ORG} fell after the report.",
    "{PER} left {ORG} in the spring.", "It was raining in {LOC} all day.", "The mayor of {LOC} thanked {PER}.",
    "According to {PER}, the meeting will take place in {LOC}.", "{ORG} hired {PER} as a director.",
    "The weather was fine and nobody complained.", "We bought bread and cheese for the evening.",
    "Doctor {PER} moved her practice to {LOC}.", "A letter from {PER} arrived at {ORG}.",
    "Visitors from {LOC} enjoyed the concert by {PER}.", "The museum in {LOC} was paid for by {ORG}.",
    "{PER} bought a ticket to {LOC} for {PER}.", "Last year {ORG} lost many customers in {LOC}.",
    "The old bridge was closed for repairs.", "She gave the keys to {PER} before the holidays.",
)  # fmt: skip


def _entity(kind: str, draw: random.Random, held_out: bool) -> str:
    """A name; a fifth of the surnames and towns is held out from training."""
    last = words.LAST_NAMES[::5] if held_out else [n for i, n in enumerate(words.LAST_NAMES) if i % 5]
    cities = words.CITIES[::5] if held_out else [n for i, n in enumerate(words.CITIES) if i % 5]
    if kind == "PER":
        first = draw.choice(words.FIRST_NAMES)
        return first if draw.random() < 0.25 else f"{first} {draw.choice(last)}"
    if kind == "LOC":
        return draw.choice(cities) if draw.random() < 0.75 else draw.choice(words.LANDS)
    if draw.random() < 0.25:
        return f"University of {draw.choice(cities)}"
    return f"{draw.choice(words.COMPANY_STEMS)} {draw.choice(words.COMPANY_ENDS)}"


def tagged(sentence: str, draw: random.Random, held_out: bool) -> tuple[list[str], list[str]]:
    """Words and BIO tags of a sentence with its slots filled."""
    tokens, tags = [], []
    for piece in re.findall(r"\{[A-Z]+\}|\w+|[^\w\s]", sentence):
        if not piece.startswith("{"):
            tokens.append(piece)
            tags.append("O")
            continue
        kind = piece[1:-1]
        for position, word in enumerate(_entity(kind, draw, held_out).split()):
            tokens.append(word)
            tags.append(f"{'I' if position else 'B'}-{kind}")
    return tokens, tags


def join(tokens: list[str]) -> str:
    """Words to text: no space before closing punctuation."""
    return re.sub(r" ([.,?!:])", r"\1", " ".join(tokens))


def named_entities(data: Path) -> Splits:  # noqa: ARG001 - generated, needs no data
    """People, places and organisations in short sentences; the held-out names occur in validation and test only."""

    def make(draw: random.Random) -> tuple[str, Row]:
        wording = draw.choice(ENTITIES).removesuffix(" {text}")
        sentence, held_out = draw.choice(SENTENCES), draw.random() < 0.2
        tokens, tags = tagged(sentence, draw, held_out)
        ask = re.findall(r"\w+|[^\w\s]", wording)
        row: Row = {"input": f"{wording} {join(tokens)}", "tokens": ask + tokens, "tags": ["O"] * len(ask) + tags}
        return f"{'held out' if held_out else 'train'}:{join(tokens)}", row

    return generated(make, train=8000, seed=22, place=_place)


def _place(key: str) -> str:
    """Sentences with held-out names go to validation or test, all others to training."""
    return split_of(key, 0.5) if key.startswith("held out:") else "train"
