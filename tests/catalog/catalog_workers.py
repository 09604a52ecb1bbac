"""What the worker processes of the crash tests do: change a catalogue, note what was acknowledged, and be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from catalog_contract import heard, row

from adapterhub.catalog import SqliteCatalog

ENCODER = "e"


def work(path: str, worker: int, life: int, log: str) -> None:
    """Change tasks of one's own until the end, and note each change before it is asked for and once it is done."""
    chance, parent = random.Random(1000 * worker + life), os.getppid()
    catalog = SqliteCatalog(path)
    number = life * 100_000
    with Path(log).open("ab", buffering=0) as file:

        def note(kind: str, action: str, names: list[str], seq: int = 0) -> None:
            os.write(file.fileno(), (json.dumps([kind, action, names, number, seq]) + "\n").encode())

        while os.getppid() == parent:  # whoever should kill us may have been killed
            number += 1
            names = sorted(chance.sample([f"w{worker}/t{task}" for task in range(6)], chance.randint(1, 3)))
            there = [name for name in names if catalog.get(name) is not None]
            action = chance.choice(["put", "put", "replace", "put_vectors", "delete", "retire"])
            if action in ("delete", "retire", "put_vectors"):
                names = there
            if not names:
                continue
            note("asked", action, names)
            note("done", action, names, apply(catalog, action, names, number))


def apply(catalog: SqliteCatalog, action: str, names: list[str], number: int) -> int:
    """One change; whatever it writes says `number`, so that a half-written one would show."""
    if action == "delete":
        return catalog.delete(names)
    if action == "retire":
        return catalog.retire(names)
    if action == "put_vectors":
        contents = {name: catalog.get(name).content_hash for name in names}
        return catalog.put_vectors(ENCODER, [heard(name, 2, True, contents[name], number) for name in names])
    rows = [row(name, f"v{number}", f"c{number}", source=str(number), tags=(f"t{number}",)) for name in names]
    vectors = [heard(name, 2, True, f"c{number}", number) for name in names] if action == "put" else []
    return catalog.put(rows, encoder=ENCODER if vectors else "", vectors=vectors)


def kill_at_random(folder: str, processes: int, kills: int) -> None:
    """Keep some writers running; kill one of them a random while after its first word, and start another."""
    chance = random.Random(0)
    lives = [0] * processes
    children = {worker: start(folder, worker, 0) for worker in range(processes)}
    try:
        for _ in range(kills):
            worker = chance.randrange(processes)
            log = log_of(folder, worker, lives[worker])
            while not log.exists() or log.stat().st_size == 0:
                if os.waitpid(children[worker], os.WNOHANG) != (0, 0):
                    sys.exit(2)  # it has failed, and said why
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03))
            stop(children.pop(worker))
            lives[worker] += 1
            children[worker] = start(folder, worker, lives[worker])
    finally:
        for child in children.values():
            stop(child)


def start(folder: str, worker: int, life: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            work(f"{folder}/catalog.sqlite", worker, life, str(log_of(folder, worker, life)))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    return child


def stop(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        sys.exit(1)


def log_of(folder: str, worker: int, life: int) -> Path:
    return Path(folder) / f"log-{worker}-{life:04}"
