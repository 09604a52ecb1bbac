"""Whatever is done to a catalogue in whatever order, it answers like a model of plain dicts."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import pytest
from catalog_contract import KINDS, Model, apply, assert_agrees, assert_hears, heard, opener, row
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from adapterhub.catalog import TaskRecord, TaskVectors
from adapterhub.errors import InputError, TaskNotFoundError

NAMES = ["a", "a-b", "a/b", "a/b/c", "a/b-c", "a0", "b", "b/a/b", "c/d"]
names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)
records = names.flatmap(
    lambda chosen: st.tuples(
        *[
            st.builds(
                row,
                st.just(name),
                st.sampled_from([None, "v1", "v2", f"hf://o/r@{'0' * 40}/x"]),
                st.sampled_from(["c", "d", "f" * 64]),
                tags=st.sampled_from([(), ("x",), ("x", "y"), ("y", "ü'\"")]),
                base_model=st.sampled_from(["", "m1", "m2@0f"]),
                source=st.sampled_from(["", "s"]),
                status=st.sampled_from(["active", "active", "retired"]),
            )
            for name in chosen
        ]
    )
)
shapes = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), min_size=4, max_size=4)


class Machine(RuleBasedStateMachine):
    """A catalogue beside the model, and an index that follows it."""

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.again = self.stack.enter_context(opener(self.kind))
        self.catalog, self.model = self.again(), Model()
        self.index: dict[int, object] = {}
        self.watermark = self.seen = 0
        self.known: dict[str, TaskRecord] = {}

    def teardown(self) -> None:
        self.stack.close()

    @property
    def encoder(self) -> str:
        return self.model.encoder or "e1"

    def made(self, chosen: list[str], shapes: list[tuple[int, bool, int]], content: str = "") -> list[TaskVectors]:
        return [heard(name, *shape[:2], content, shape[2]) for name, shape in zip(chosen, shapes, strict=False)]

    @initialize(chosen=records)
    def begin(self, chosen: tuple[TaskRecord, ...]) -> None:
        self.put(chosen)

    @rule(chosen=records)
    def put(self, chosen: tuple[TaskRecord, ...]) -> None:
        self.model.put(chosen)
        assert self.catalog.put(chosen) == self.model.seq

    @rule(chosen=records, shapes=shapes, number=st.integers(1, 4))
    def put_with_vectors(
        self, chosen: tuple[TaskRecord, ...], shapes: list[tuple[int, bool, int]], number: int
    ) -> None:
        vectors = self.made([record.name for record in chosen][:number], shapes)
        encoder = self.encoder
        self.model.put(chosen, encoder, vectors)
        assert self.catalog.put(chosen, encoder=encoder, vectors=vectors) == self.model.seq

    @rule(chosen=names, shapes=shapes, stale=st.booleans())
    def put_vectors(self, chosen: list[str], shapes: list[tuple[int, bool, int]], stale: bool) -> None:
        vectors = []
        for item in self.made(chosen, shapes, "gone"):
            entry = self.model.tasks.get(item.name)
            content = "gone" if entry is None or stale else entry.record.content_hash
            vectors.append(dataclasses.replace(item, content_hash=content))
        encoder = self.encoder
        self.model.put_vectors(encoder, vectors)
        assert self.catalog.put_vectors(encoder, vectors) == self.model.seq

    @rule(chosen=names, action=st.sampled_from(["retire", "restore", "delete"]))
    def mark(self, chosen: list[str], action: str) -> None:
        if not set(chosen) <= set(self.model.tasks):
            with pytest.raises(TaskNotFoundError):
                getattr(self.catalog, action)(chosen)
            return
        if action == "delete":
            self.model.delete(chosen)
        else:
            self.model.mark(chosen, {"retire": "retired", "restore": "active"}[action])
        assert getattr(self.catalog, action)(chosen) == self.model.seq

    @rule(encoder=st.sampled_from(["e1", "e2"]))
    def bind(self, encoder: str) -> None:
        if encoder != self.model.encoder:
            self.index.clear()  # an index is of one encoder
            self.watermark = 0
        self.model.bind(encoder)
        assert self.catalog.bind(encoder) == self.model.seq

    @rule(chosen=records)
    def refused(self, chosen: tuple[TaskRecord, ...]) -> None:
        with pytest.raises(InputError):
            self.catalog.put((*chosen, row("../x")), encoder="e1")

    @rule()
    def reopen(self) -> None:
        self.catalog = self.again()

    @rule()
    def agrees(self) -> None:
        assert_agrees(self.catalog, self.model)
        assert_hears(self.catalog, self.model, self.encoder)

    @rule()
    def follows(self) -> None:
        news = self.catalog.changes(self.seen)
        self.seen = news.seq
        for name in news.deleted:
            self.known.pop(name, None)
        self.known |= {record.name: record for record in news.records}
        assert self.known == {name: entry.record for name, entry in self.model.tasks.items()}

    @precondition(lambda self: self.model.encoder is not None)
    @rule()
    def indexes(self) -> None:
        changes = self.catalog.vector_changes(self.encoder, self.watermark)
        assert not set(changes.present.tolist()) & set(changes.gone.tolist())
        apply(self.index, self.catalog, changes, self.encoder)
        self.watermark = changes.seq
        assert self.index == self.model.present()

    @rule()
    def sound(self) -> None:
        assert self.catalog.verify() == []


def run(kind: str, examples: int, steps: int) -> None:
    machine = type(f"{kind.title()}Machine", (Machine,), {"kind": kind})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
        ),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_histories(kind: str) -> None:
    run(kind, 8 if kind == "sqlite" else 4, 25)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_histories(kind: str) -> None:
    run(kind, 300 if kind == "sqlite" else 60, 50)
