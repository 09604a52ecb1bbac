"""Any order of changes leaves a registry as a plain dictionary would be."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from registry_folders import make_adapter
from registry_stores import HashEncoder, open_at

from adapterhub.adapter import content_hash
from adapterhub.errors import AdapterHubError, CardError, DataError, InputError, IntegrityError, TaskNotFoundError
from adapterhub.registry import Registry, export_tasks, import_tasks
from adapterhub.task import Task

NAMES = st.sampled_from(["a", "a/b", "a-b"])
BAD_NAMES = st.sampled_from(["A", "../a", "a/../b", "a/v1", "", "/a", "a/", "á", "ａ", "a\n", "a\\b"])
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6).filter(str.strip)


@dataclass
class Entry:
    """What the plain model knows of a task."""

    task: Task
    retired: bool
    versions: dict[str, str]


class RegistryMachine(RuleBasedStateMachine):
    """A registry beside a dictionary."""

    kind = "folder"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.registry: Registry = open_at(self.kind, self.folder / "registry")
        self.adapters = [make_adapter(self.folder / f"adapter{n}", str(n), 64) for n in range(2)]
        self.model: dict[str, Entry] = {}
        self.encoder = HashEncoder()

    def teardown(self) -> None:
        assert self.registry.verify() == []
        self.registry.store.catalog.close()
        shutil.rmtree(self.folder)

    @initialize(labels=st.booleans())
    def begin(self, labels: bool) -> None:
        for name, adapter in (("a", 0), ("a/b", None)):
            self.add(name, "x", adapter, replace=False, labels=labels)

    @rule(name=NAMES, description=TEXTS, adapter=st.sampled_from([None, 0, 1]), replace=st.booleans(),
          labels=st.booleans())  # fmt: skip
    def add(self, name: str, description: str, adapter: int | None, replace: bool, labels: bool) -> None:
        fields = {"head": "classification", "labels": ("x", "y")} if labels else {}
        task = Task(name, description, **fields)
        entry = self.model.get(name)
        folder = None if adapter is None else self.adapters[adapter]
        if entry is not None and not replace:
            with pytest.raises(InputError):
                self.registry.add(task, folder)
            return
        versions = dict(entry.versions) if entry is not None else {}
        if folder is not None:
            version = f"v{1 + len(versions)}"
            versions[version] = content_hash(folder)
            task = dataclasses.replace(task, adapter=version, sha256=versions[version])
        stored = self.registry.add(dataclasses.replace(task, adapter=None, sha256=None), folder, replace=replace)
        assert stored == task
        self.model[name] = Entry(task, False, versions)

    @rule(name=NAMES, back=st.integers(1, 3))
    def roll_back(self, name: str, back: int) -> None:
        entry = self.model.get(name)
        task = Task(name, "Rolled back.", adapter=f"v{back}")
        if entry is None or f"v{back}" not in entry.versions:
            with pytest.raises(IntegrityError):
                self.registry.add(task, replace=True)
            return
        labels = entry.task.labels if not entry.retired and entry.task.adapter == f"v{back}" else ()
        fields = {"head": "classification", "labels": labels} if labels else {}
        task = dataclasses.replace(task, sha256=entry.versions[f"v{back}"], **fields)
        assert self.registry.add(dataclasses.replace(task, sha256=None), replace=True) == task
        entry.task, entry.retired = task, False

    @rule(name=NAMES)
    def turn_labels(self, name: str) -> None:
        entry = self.model.get(name)
        if entry is None or entry.retired or not entry.task.labels:
            return
        turned = dataclasses.replace(entry.task, labels=entry.task.labels[::-1])
        if entry.task.adapter is None:
            self.registry.add(turned, replace=True)
            entry.task = turned
        else:
            with pytest.raises(CardError, match="order of the outputs"):
                self.registry.add(turned, replace=True)

    @rule(name=NAMES, text=TEXTS)
    def add_example(self, name: str, text: str) -> None:
        entry = self.model.get(name)
        if entry is None or entry.retired:
            with pytest.raises(TaskNotFoundError):
                self.registry.add_example(name, text)
            return
        examples = entry.task.examples
        entry.task = dataclasses.replace(entry.task, examples=examples if text in examples else (*examples, text))
        assert self.registry.add_example(name, text) == entry.task

    @rule(name=NAMES, action=st.sampled_from(["retire", "restore", "remove"]))
    def turn(self, name: str, action: str) -> None:
        if name not in self.model:
            with pytest.raises(TaskNotFoundError):
                getattr(self.registry, action)(name)
            return
        getattr(self.registry, action)(name)
        if action == "remove":
            del self.model[name]
        else:
            self.model[name].retired = action == "retire"

    @rule(rows=st.dictionaries(NAMES, st.tuples(TEXTS, st.booleans()), max_size=3), replace=st.booleans(),
          wrong=st.booleans())  # fmt: skip
    def many(self, rows: dict[str, tuple[str, bool]], replace: bool, wrong: bool) -> None:
        path = self.folder / "rows.jsonl"
        lines = [
            {"name": name, "description": text, **({"status": "retired"} if retired else {})}
            for name, (text, retired) in rows.items()
        ] + ([{"name": "a"}] if wrong else [])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks = {name: (Task(name, text), retired) for name, (text, retired) in rows.items()}
        clash = [n for n, want in tasks.items() if n in self.model and self.seen(n) != want]
        if wrong or (clash and not replace):
            with pytest.raises(DataError):
                import_tasks(self.registry, path, replace=replace)
            return
        done = import_tasks(self.registry, path, replace=replace)
        assert (done.added, done.replaced) == (len(rows.keys() - self.model), len(clash))
        for name, (task, retired) in tasks.items():
            versions = self.model[name].versions if name in self.model else {}
            self.model[name] = Entry(task, retired, versions)

    def seen(self, name: str) -> tuple[Task, bool]:
        return self.model[name].task, self.model[name].retired

    @rule(name=BAD_NAMES)
    def bad_name(self, name: str) -> None:
        for call in (self.registry.__getitem__, self.registry.remove, self.registry.retire, self.registry.restore):
            with pytest.raises(CardError):
                call(name)
        assert name not in self.registry

    @rule(name=NAMES, harm=st.sampled_from(["long", "many", "circle", "missing", "weights"]))
    def bad_task(self, name: str, harm: str) -> None:
        with pytest.raises(AdapterHubError):  # noqa: PT012 - the card or its registration is refused
            fields = {"long": {"description": "x" * 20_000}, "many": {"examples": ("x",) * 20_000},
                      "circle": {"stack": (name,)}, "missing": {"adapter": "v77"}}  # fmt: skip
            folder = self.folder / "broken"
            shutil.rmtree(folder, ignore_errors=True)
            if harm == "weights":
                (make_adapter(folder, "x", 64) / "adapter_model.safetensors").write_bytes(b"")
            task = Task(name, **{"description": "x", **fields.get(harm, {})})
            self.registry.add(task, folder if harm == "weights" else None, replace=True)

    @rule()
    def reopen(self) -> None:
        self.registry = open_at(self.kind, self.folder / "registry")

    @rule()
    def copy(self) -> None:
        export_tasks(self.registry, self.folder / "all.jsonl")
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        copy = open_at("sqlite" if self.kind == "folder" else "folder", self.folder / "copy")
        import_tasks(copy, self.folder / "all.jsonl")
        assert copy.under("") == self.registry.under("")
        assert copy.verify() == []
        copy.store.catalog.close()
        shutil.rmtree(self.folder / "all.adapters", ignore_errors=True)

    @rule()
    def hear(self) -> None:
        found = self.registry.heard(self.encoder).vectors("fake") if self.registry.refresh() else []
        active = {name: entry.task for name, entry in self.model.items() if not entry.retired}
        assert [vectors.name for vectors in found] == sorted(active)
        for vectors in found:
            task = active[vectors.name]
            assert np.array_equal(vectors.description, self.encoder.stored(task.description))
            wanted = [self.encoder.stored(text) for text in task.examples]
            assert np.array_equal(vectors.examples, np.reshape(wanted, (len(wanted), 8)))

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        active = {name: entry.task for name, entry in sorted(self.model.items()) if not entry.retired}
        assert list(self.registry) == list(active)
        assert len(self.registry) == len(active)
        assert self.registry.under("") == list(active.values())
        assert sum(count for _, count in self.registry.groups()) == len(active)
        for name, entry in self.model.items():
            assert self.registry.versions(name) == list(entry.versions)
            assert (name in self.registry) == (not entry.retired)
            if not entry.retired:
                assert self.registry[name] == entry.task
                path = self.registry.adapter_path(name)
                assert (path is None) == (entry.task.adapter is None)


class DatabaseMachine(RegistryMachine):
    """The same with a database."""

    kind = "sqlite"


QUICK = settings(max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class TestFolder(RegistryMachine.TestCase):
    settings = QUICK


class TestDatabase(DatabaseMachine.TestCase):
    settings = QUICK


@pytest.mark.slow
class TestFolderLong(RegistryMachine.TestCase):
    settings = LONG


@pytest.mark.slow
class TestDatabaseLong(DatabaseMachine.TestCase):
    settings = LONG
