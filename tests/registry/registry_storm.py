"""Several processes that change one registry, killed at random moments, each with a log of what was acknowledged."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from registry_stores import HashEncoder, open_at

from adapterhub.registry import Registry, import_tasks
from adapterhub.task import Task

TASKS = 4  # of each process


def state_of(registry: Registry, name: str) -> str:
    """`gone`, or status, description and number of examples of a task."""
    status = registry.store.status(name)
    if status is None:
        return "gone"
    if status == "retired":
        return "retired"
    task = registry[name]
    return f"{task.description} {task.adapter is not None} {len(task.examples)}"


class Worker:
    """Changes tasks of its own. Before a change it logs what will be, behind it that it is so."""

    def __init__(self, kind: str, root: str, adapter: str, number: int, seed: int) -> None:
        self.registry, self.root, self.number = open_at(kind, f"{root}/registry"), Path(root), number
        self.adapter, self.chance = Path(adapter), random.Random(seed)
        self.log = os.open(f"{root}/log{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def run(self) -> None:
        while True:
            name = f"p{self.number}/t{self.chance.randrange(TASKS)}"
            self.change(name, state_of(self.registry, name))

    def change(self, name: str, state: str) -> None:
        word = str(self.chance.randrange(10**9))
        if self.chance.random() < 0.2:
            self.many(word)
        elif state == "gone" or self.chance.random() < 0.4:
            with_adapter = self.chance.random() < 0.7
            with self.told({name: f"{word} {with_adapter} 1"}):
                self.registry.add(Task(name, word, (word,)), self.adapter if with_adapter else None, replace=True)
        elif state == "retired":
            before = json.loads(self.registry.catalog.get(name).card) if self.chance.random() < 0.7 else None
            after = before and f"{before['description']} {'adapter' in before} {len(before.get('examples', []))}"
            with self.told({name: after or "gone"}):
                (self.registry.restore if before else self.registry.remove)(name)
        elif self.chance.random() < 0.3:
            with self.told({name: "retired"}):
                self.registry.retire(name)
        elif self.chance.random() < 0.5:
            described, adapter, examples = state.split()
            with self.told({name: f"{described} {adapter} {int(examples) + 1}"}):
                self.registry.add_example(name, word)
        else:
            self.registry.heard(HashEncoder())

    def many(self, word: str) -> None:
        """Import all of its tasks at once."""
        names = [f"p{self.number}/t{number}" for number in range(TASKS)]
        path = self.root / f"lines{self.number}.jsonl"
        path.write_text("".join(json.dumps({"name": name, "description": word}) + "\n" for name in names))
        with self.told(dict.fromkeys(names, f"{word} False 0")):
            import_tasks(self.registry, path, replace=True)

    def told(self, states: dict[str, str]) -> Told:
        return Told(self.log, states)


class Told:
    """Logs states as begun, then as done."""

    def __init__(self, log: int, states: dict[str, str]) -> None:
        self.log, self.states = log, states

    def __enter__(self) -> None:
        self.write("begin")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.write("done")

    def write(self, what: str) -> None:
        os.write(self.log, "".join(f"{what}\t{name}\t{state}\n" for name, state in self.states.items()).encode())


def storm(kind: str, root: str, adapter: str, processes: int, kills: int, seed: int) -> None:
    """Keep so many processes at work and kill one of them again and again."""
    chance = random.Random(seed)
    children: dict[int, int] = {}
    for number in range(processes):
        children[number] = start(kind, root, adapter, number, chance.randrange(10**9))
    for _ in range(kills):
        time.sleep(chance.uniform(0.005, 0.06))
        number = chance.randrange(processes)
        kill(children[number])
        children[number] = start(kind, root, adapter, number, chance.randrange(10**9))
    for child in children.values():
        kill(child)


def start(kind: str, root: str, adapter: str, number: int, seed: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            Worker(kind, root, adapter, number, seed).run()
        except BaseException as error:
            Path(f"{root}/fault{number}").write_text(repr(error))
        os._exit(1)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        sys.exit(1)


def allowed_states(log: Path) -> dict[str, set[str]]:
    """What each task may be: as it was acknowledged last, or as a change that began since would have made it."""
    allowed: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        what, name, state = line.split("\t")
        allowed[name] = {state} if what == "done" else allowed.get(name, {"gone"}) | {state}
    return allowed
