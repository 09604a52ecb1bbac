"""The tasks of a data folder in several wordings, and their encodings, kept between runs outside the repository."""

import hashlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.encoder import Encoder
from scripts.background_statistics import TaskSample, asked, begin, heard, permissive, read_wordings, wordings_of

Doubles = NDArray[np.float64]

FOREIGN = "out-of-scope/clinc-oos"
INTENTS = "language/intent-assistant"
BARE, BEHIND, MIXED = "no instruction", "instruction", "instruction, half of the support bare"
BLOCK = 512  # texts encoded between two saves of the cache


@dataclass(frozen=True)
class Sizes:
    """How many inputs of a task are read: for the background, to draw support from, to choose by, to ask."""

    background: int
    pool: int
    validation: int
    test: int
    foreign: int


@dataclass(frozen=True)
class Texts:
    """Texts of one task, disjoint."""

    name: str
    description: str
    train: list[str]
    validation: list[str]
    test: list[str]
    wordings: list[str]
    permissive: bool = True


@dataclass(frozen=True)
class Vectors:
    """Encodings of one task: (n, d) of what support is drawn from, of what is asked, and (d,) of the description."""

    name: str
    description: Doubles
    pool: Doubles
    validation: Doubles
    test: Doubles


@dataclass(frozen=True)
class Corpus:
    """The encoded tasks.

    Args:
        tracks: By wording, the tasks in one order.
        background: What the background statistics would take of each task, or None where its licence forbids it.
        intents: The intents of one of the tasks, each as a task of its own.
        intents_of: The place of that task.
        foreign: (f, d) encodings of texts that no task covers.
    """

    tracks: dict[str, list[Vectors]]
    background: list[TaskSample | None]
    intents: list[Vectors]
    intents_of: int
    foreign: Doubles


class Encodings:
    """Encodings by the hash of the text, in memory and in one file.

    Args:
        encoder: Encodes what is not known yet.
        folder: Where the file is.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:16]
        self._encoder, self._path = encoder, folder / f"encodings-{name}.npz"
        self._known: dict[bytes, NDArray[np.float32]] = {}
        if self._path.exists():
            with np.load(self._path) as stored:
                self._known = dict(zip(map(bytes, stored["keys"]), stored["vectors"], strict=True))

    def add(self, texts: Iterable[str]) -> None:
        """Encode the texts that are not known; what was done is kept when the run is interrupted."""
        missing = sorted({text for text in texts if _key(text) not in self._known}, key=len)
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            self._known.update(zip(map(_key, block), self._encoder.encode(block), strict=True))
            self._save()
            print(f"encoded {start + len(block)} of {len(missing)} texts", file=sys.stderr, flush=True)

    def of(self, texts: Sequence[str]) -> Doubles:
        """(n, d) of texts that were added."""
        found = [self._known[_key(text)] for text in texts]
        return np.asarray(found, dtype=np.float64).reshape(len(texts), self._encoder.dimension)

    def _save(self) -> None:
        partial = self._path.with_suffix(".partial.npz")
        keys = np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, 16)
        np.savez(partial, keys=keys, vectors=np.stack(list(self._known.values())))
        partial.replace(self._path)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def read_corpus(data: Path, sizes: Sizes, encodings: Encodings, *, full: bool) -> Corpus:
    """Read and encode a folder of data; without `full` every second task, in one wording, and no intents."""
    tasks, foreign = _read(data, sizes)
    tasks = tasks if full else tasks[::2]
    tracks = {BARE: tasks}
    if full:
        behind, mixed = ([_instructed(task, every) for task in tasks] for every in (1, 2))
        tracks |= {BEHIND: behind, MIXED: mixed}
    pooled = {wording: [_cut(task, sizes.pool) for task in found] for wording, found in tracks.items()}
    spoken = [_heard(task, sizes) if task.permissive else None for task in tasks]
    intents = _intents(data / INTENTS) if full else []
    encodings.add(_all([*(task for found in pooled.values() for task in found), *filter(None, spoken), *intents]))
    encodings.add(foreign)
    return Corpus(
        {wording: [_encode(task, encodings) for task in found] for wording, found in pooled.items()},
        [None if task is None else _sample(task, encodings) for task in spoken],
        [_encode(task, encodings) for task in intents],
        next((place for place, task in enumerate(tasks) if task.name == INTENTS), -1),
        encodings.of(foreign),
    )


def _read(data: Path, sizes: Sizes) -> tuple[list[Texts], list[str]]:
    """The tasks, bare inputs, and the foreign texts; a text that occurs twice in a task is used once."""
    wordings = read_wordings(data)
    tasks, foreign = [], []
    for path in sorted(data.rglob("task.json")):
        folder, name = path.parent, path.parent.relative_to(data).as_posix()
        if name == FOREIGN:
            foreign = _inputs(folder / "test.jsonl", sizes.foreign, set())
            continue
        seen: set[str] = set()
        train = _inputs(folder / "train.jsonl", max(sizes.background, sizes.pool), seen)
        validation = _inputs(folder / "validation.jsonl", sizes.validation, seen)
        test = _inputs(folder / "test.jsonl", sizes.test, seen)
        card = json.loads(path.read_text(encoding="utf-8"))
        allowed, asked = permissive(folder, card), wordings_of(name, wordings)
        tasks.append(Texts(name, card["description"], train, validation, test, asked, allowed))
    return tasks, foreign


def _inputs(path: Path, count: int, seen: set[str]) -> list[str]:
    """Random inputs that were not seen before, nor in the file before."""
    with path.open(encoding="utf-8") as lines:
        inputs = [json.loads(line)["input"] for line in lines]
    random.Random(0).shuffle(inputs)
    fresh = [text for text in dict.fromkeys(inputs) if text not in seen][:count]
    seen.update(fresh)
    return fresh


def _instructed(task: Texts, every: int) -> Texts:
    """Of the support each so-manieth stands behind the description's first sentence; a user's wording is asked."""
    first = begin(task.description)
    support = [f"{first} {text}" if turn % every == 0 else text for turn, text in enumerate(task.train)]
    validation, test = (
        [task.wordings[turn % len(task.wordings)].replace("{input}", text) for turn, text in enumerate(texts)]
        for texts in (task.validation, task.test)
    )
    return Texts(task.name, task.description, support, validation, test, task.wordings)


def _heard(task: Texts, sizes: Sizes) -> Texts:
    train = heard(task.train[: sizes.background], task.description, task.wordings)
    return Texts(task.name, task.description, train, asked(task.validation, task.wordings), [], task.wordings)


def _intents(folder: Path) -> list[Texts]:
    """The intents of a classification task: 20 utterances of each as support, those of the other files are asked."""
    found: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "validation", "test"):
        found[split] = defaultdict(list)
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[split][row["label"]].append(row["input"])
    return [
        Texts(label, label.replace("_", " "), inputs[:20], [], found["validation"][label] + found["test"][label], [])
        for label, inputs in sorted(found["train"].items())
    ]


def _cut(task: Texts, pool: int) -> Texts:
    return Texts(task.name, task.description, task.train[:pool], task.validation, task.test, task.wordings)


def _all(tasks: Iterable[Texts]) -> Iterable[str]:
    for task in tasks:
        yield from (task.description, *task.train, *task.validation, *task.test)


def _encode(task: Texts, encodings: Encodings) -> Vectors:
    texts = (task.train, task.validation, task.test)
    return Vectors(task.name, encodings.of([task.description])[0], *(encodings.of(found) for found in texts))


def _sample(task: Texts, encodings: Encodings) -> TaskSample:
    train, validation = encodings.of(task.train), encodings.of(task.validation)
    return TaskSample(task.name, train, validation, encodings.of([task.description])[0])
