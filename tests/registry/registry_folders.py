"""Adapter folders for the registry's tests, and what its worker processes do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from registry_stores import open_at

from adapterhub.registry import Registry, import_tasks
from adapterhub.task import Task


def make_adapter(folder: Path, seed: str = "0", size: int = 4096, stack: dict[str, str] | None = None) -> Path:
    """A folder with the right names and an honest seal; the registry never looks into the tensors."""
    folder.mkdir(parents=True)
    weights = hashlib.shake_256(seed.encode()).digest(size)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "seed": seed}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("not part of the adapter")
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    seal = {"format": 1, "base_model": "tiny", "fingerprint": "f", "files": files}
    if stack:
        seal |= {"format": 2, "stack": [{"task": name, "sha256": sha256} for name, sha256 in stack.items()]}
    (folder / "adapterhub.json").write_text(json.dumps(seal))
    return folder


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a registry but what is derived."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in files
        if ".catalog" not in path.parts and not path.name.startswith("tasks.db")
    }


def register_many(place: str, adapter: str, prefix: str, count: int, acknowledged: str) -> None:
    """Register tasks one after another, noting each one that `add` has returned for."""
    registry = Registry(place)
    with Path(acknowledged).open("a") as file:
        for number in range(count):
            name = f"{prefix}/t{number}"
            registry.add(Task(name, f"Task {number}.", examples=(f"example {number}",)), Path(adapter))
            os.write(file.fileno(), f"{name}\n".encode())


def kill_at_random(place: str, adapter: str, acknowledged: str, rounds: int) -> None:
    """Fork a process that registers tasks, kill it a random while after its first one, and again."""
    chance = random.Random(0)
    for moment in range(rounds):
        before = Path(acknowledged).stat().st_size
        child = os.fork()
        if child == 0:
            register_many(place, adapter, f"p{moment}", 999, acknowledged)
            os._exit(1)
        while Path(acknowledged).stat().st_size == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(1)


def die_at_each(kind: str, template: str, folder: str, adapter: str, action: str, step: int) -> None:
    """Do the same change to copies of a registry, killed before its first file operation, another one, and so on."""
    for moment in range(1, 400, step):
        root = f"{folder}/{moment:03}"
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                die_at(kind, root, adapter, action, moment)
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))
    sys.exit(2)


def die_at(kind: str, root: str, adapter: str, action: str, moment: int) -> None:
    """Change a registry and be killed just before the given file operation below its folder."""
    operations = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "sqlite3.connect"}
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        # Within shutil.rmtree names are relative to an open folder, so every removal counts.
        if event in operations and (root in str(arguments) or event in ("os.remove", "os.rmdir")):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    registry = open_at(kind, root)
    sys.addaudithook(hook)
    if action == "remove":
        registry.remove("old/task")
    elif action == "retire":
        registry.retire("old/task")
    elif action == "import":
        import_tasks(registry, Path(adapter).with_name("tasks.jsonl"), replace=True)
    elif action == "replace":
        registry.add(Task("old/task", "Another."), Path(adapter), replace=True)
    else:
        registry.add(Task("new/one/task", "New."), Path(adapter))
