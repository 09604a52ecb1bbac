"""What goes wrong with one request stays with it, and what goes wrong with a step ends with the step."""

from __future__ import annotations

import random
import shutil
import threading
import time

import pytest
import torch
from conftest import tiny_llama
from engine_batching import Gate, Note, alone, prompts
from engine_peft import engine_of, make_adapters
from transformers import LogitsProcessor, LogitsProcessorList

from adapterhub.engine._rows import RunningRows
from adapterhub.errors import CapacityError, InputError, IntegrityError
from adapterhub.route import Route

NEW = {"max_new_tokens": 10, "do_sample": False}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return make_adapters("llama", tmp_path_factory.mktemp("faults"))


@pytest.fixture
def engine(adapters):
    with engine_of("llama", adapters, arena_ranks=24) as engine:
        yield engine


@pytest.fixture
def rows():
    return prompts(random.Random(0), 6)


def with_processor(*processors):
    return {**NEW, "logits_processor": LogitsProcessorList(processors)}


def assert_nothing_is_held(engine):
    """Every lease has ended: all adapters can be evicted."""
    deadline = time.monotonic() + 10
    while not all(engine.evict(name) for name in engine.loaded):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_tokens_come_one_by_one(engine, rows):
    gate = Gate()
    with engine.batcher() as batcher:
        generation = batcher.submit(rows[0], Route.to("small"), **with_processor(gate))
        stream = iter(generation)
        found = []
        for _ in range(4):
            gate.open(1)
            found.append(next(stream))
            assert not generation.done
            assert generation.finish_reason is None
        with pytest.raises(TimeoutError, match="4 tokens so far"):
            generation.result(0.01)
        gate.open()
        found += stream
        assert found == list(generation) == generation.result() == alone(engine, rows[0], Route.to("small"), **NEW)


def test_several_threads_read_one_generation(engine, rows):
    found = [[], [], []]
    with engine.batcher() as batcher:
        generation = batcher.submit(rows[0], Route(), **NEW)
        threads = [threading.Thread(target=lambda into=into: into.extend(generation)) for into in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == [generation.result()] * 3


def test_a_cancelled_row_leaves_and_the_others_stay(engine, rows):
    gate = Gate()
    with engine.batcher() as batcher:
        cancelled = batcher.submit(rows[0], Route.to("wide"), **with_processor(gate))
        other = batcher.submit(rows[1], Route.to("small"), **{**NEW, "max_new_tokens": 30})
        gate.open(3)
        stream = iter(cancelled)
        found = [next(stream) for _ in range(3)]
        assert cancelled.cancel()
        assert not cancelled.cancel()
        gate.open()
        assert cancelled.result(0) == found == list(cancelled)
        assert cancelled.finish_reason == "cancelled"
        other.result(30)
        assert_nothing_is_held(engine)
    assert found == alone(engine, rows[0], Route.to("wide"), **NEW)[:3]
    assert other.result() == alone(engine, rows[1], Route.to("small"), max_new_tokens=30)


def test_a_request_that_waits_can_be_cancelled(engine, rows):
    gate = Gate()
    with engine.batcher(max_rows=1, max_waiting=2) as batcher:
        running = batcher.submit(rows[0], Route(), **with_processor(gate))
        assert gate.arrived.acquire(timeout=30)
        first, second = (batcher.submit(row, Route(), **NEW) for row in rows[1:3])
        with pytest.raises(CapacityError, match="At most 2 requests wait"):
            batcher.submit(rows[3], Route(), **NEW)
        assert first.cancel()
        gate.open()
        assert second.result(30) == alone(engine, rows[2], Route(), **NEW)
        assert first.result(0) == []
        assert running.result(0) == alone(engine, rows[0], Route(), **NEW)
        assert batcher.submit(rows[3], Route(), **NEW).result(30)


def test_a_request_that_generate_runs_can_be_cancelled(engine, rows):
    gate = Gate()
    with engine.batcher() as batcher:
        generation = batcher.submit(rows[0], Route(), num_beams=2, **with_processor(gate))
        assert gate.arrived.acquire(timeout=30)
        generation.cancel()
        gate.open(2)  # it does not need the other eight
        assert batcher.submit(rows[1], Route(), **NEW).result(30) == alone(engine, rows[1], Route(), **NEW)
    assert (generation.finish_reason, generation.result(0)) == ("cancelled", [])


def test_faults_of_adapters_reach_only_their_requests(engine, rows, adapters, tmp_path):
    damaged = shutil.copytree(adapters["small"], tmp_path / "damaged")
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    engine.add("damaged", damaged)
    bad = {
        "unknown": (Route.to("smal"), InputError, "Did you mean `small`"),
        "damaged": (Route.to("damaged"), IntegrityError, "damaged"),
        "headed": (Route.to("sequence"), InputError, "without a head"),
        "too many": (
            Route(("small", "wide", "pattern", "neck", "neck-relu"), (1.0,) * 5),
            CapacityError,
            "26 ranks",
        ),
    }
    gate = Gate()
    with engine.batcher() as batcher:
        held = batcher.submit(rows[0], Route.to("small"), **with_processor(gate))
        assert gate.arrived.acquire(timeout=30)
        failing = {name: batcher.submit(rows[1], route, **NEW) for name, (route, _, _) in bad.items()}
        late = batcher.submit(rows[2], Route.to("neck"), **NEW)
        gate.open()
    for name, (_, error, message) in bad.items():
        with pytest.raises(error, match=message):
            failing[name].result(0)
        with pytest.raises(error):
            list(failing[name])
        assert failing[name].done
        assert failing[name].finish_reason is None
    assert held.result(0) == alone(engine, rows[0], Route.to("small"), **NEW)
    assert late.result(0) == alone(engine, rows[2], Route.to("neck"), **NEW)
    assert_nothing_is_held(engine)


class Broken(LogitsProcessor):
    """Fails at a row's third step."""

    def __init__(self):
        self.steps = 0

    def __call__(self, input_ids, scores):
        self.steps += 1
        if self.steps == 3:
            raise ZeroDivisionError("a processor's own")
        return scores


def test_a_processor_that_fails_ends_its_own_row(engine, rows):
    with engine.batcher() as batcher:
        bad = batcher.submit(rows[0], Route.to("small"), **with_processor(Broken()))
        good = batcher.submit(rows[1], Route.to("small"), **NEW)
        beams = batcher.submit(rows[1], Route.to("small"), num_beams=2, **with_processor(Broken()))
    for generation in (bad, beams):
        with pytest.raises(ZeroDivisionError):
            generation.result(0)
    assert good.result(0) == alone(engine, rows[1], Route.to("small"), **NEW)
    assert_nothing_is_held(engine)


def test_a_prompt_that_cannot_be_read_fails_alone(engine, rows, monkeypatch):
    """The rows that were to be read with it are read one by one."""
    gate, model = Gate(), engine.model
    forward = model.forward

    def picky(*args, input_ids, **kwargs):
        if input_ids.shape[1] > 1 and (input_ids == 95).any():
            raise RuntimeError("out of memory")
        return forward(*args, input_ids=input_ids, **kwargs)

    with engine.batcher() as batcher:
        running = batcher.submit(rows[0], Route(), **with_processor(gate))
        assert gate.arrived.acquire(timeout=30)
        monkeypatch.setattr(model, "forward", picky)
        good = [batcher.submit([t for t in row if t != 95] + [2], Route.to("neck"), **NEW) for row in rows[1:4]]
        bad = batcher.submit([7, 95, 7], Route.to("wide"), **NEW)
        gate.open()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(0)
    for row, generation in zip(rows[1:4], good, strict=True):
        ids = [t for t in row if t != 95] + [2]
        assert generation.result(0) == alone(engine, ids, Route.to("neck"), **NEW)
    assert running.result(0) == alone(engine, rows[0], Route(), **NEW)
    assert_nothing_is_held(engine)


def test_a_step_that_fails_ends_the_running_rows_and_the_batcher_goes_on(engine, rows, monkeypatch):
    step, failed = RunningRows.step, threading.Event()

    def breaking(self, tokens):
        if len(tokens) == 2 and not failed.is_set():
            failed.set()
            raise RuntimeError("no more memory")
        return step(self, tokens)

    monkeypatch.setattr(RunningRows, "step", breaking)
    gate = Gate()
    engine.load("wide")  # or the first row might end while it is being loaded
    with engine.batcher(max_rows=2) as batcher:
        first = batcher.submit(rows[0], Route.to("small"), **with_processor(gate))
        assert gate.arrived.acquire(timeout=30)
        second = batcher.submit(rows[1], Route.to("wide"), **NEW)
        third = batcher.submit(rows[2], Route.to("neck"), **NEW)  # waits for a place
        gate.open()
        for generation in (first, second):
            with pytest.raises(RuntimeError, match="no more memory"):
                generation.result(30)
        assert third.result(30) == alone(engine, rows[2], Route.to("neck"), **NEW)
        assert_nothing_is_held(engine)
        assert batcher.submit(rows[3], Route.to("small"), **NEW).result(30)


@pytest.mark.parametrize("max_rows", [1, 2, 4])
def test_a_flood_of_one_adapter_starves_no_other(adapters, rows, max_rows):
    """A, B, A, A, A, ... where the arena has room for only one of the two."""
    names = []
    with engine_of("llama", adapters, arena_ranks=8) as engine, engine.batcher(max_rows=max_rows) as batcher:
        gate = Gate()
        held = batcher.submit(rows[0], Route.to("wide"), **with_processor(gate))
        assert gate.arrived.acquire(timeout=30)
        order = ["small"] + ["wide"] * 30
        found = [
            batcher.submit(
                rows[0], Route.to(name), **{**with_processor(Note(name, names)), "max_new_tokens": 3 + i % 4}
            )
            for i, name in enumerate(order)
        ]
        gate.open()
        assert found[0].result(60) == alone(engine, rows[0], Route.to("small"), max_new_tokens=3)
    assert len(names) == len(order)
    assert names.index("small") <= 2 * max_rows
    assert held.result(0)


def test_leaving_the_block_finishes_what_was_submitted(engine, rows):
    with engine.batcher(max_rows=2) as batcher:
        found = [batcher.submit(row, Route(), **NEW) for row in rows]
    assert all(generation.done for generation in found)
    assert [g.result(0) for g in found] == [alone(engine, row, Route(), **NEW) for row in rows]
    with pytest.raises(InputError, match="closed batcher"):
        batcher.submit(rows[0], Route(), **NEW)
    batcher.close()


def test_an_error_in_the_block_and_a_closing_engine_cancel(engine, rows):
    gate, batcher = Gate(), engine.batcher(max_rows=1)
    running = batcher.submit(rows[0], Route.to("small"), **with_processor(gate))
    waiting = batcher.submit(rows[1], Route.to("small"), **NEW)
    assert gate.arrived.acquire(timeout=30)
    threading.Timer(0.1, gate.open).start()
    with pytest.raises(KeyError), batcher:
        raise KeyError
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert_nothing_is_held(engine)
    batcher = engine.batcher()
    late = batcher.submit(rows[0], Route.to("small"), max_new_tokens=40, min_new_tokens=40)
    engine.close()
    assert late.done


def test_the_base_s_own_random_state_and_plan_are_left_alone(engine, rows):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with engine.batcher() as batcher:
        batcher.submit(rows[0], Route.to("small"), do_sample=True, seed=3, max_new_tokens=5).result(30)
        batcher.submit(rows[0], Route.to("small"), do_sample=True, seed=3, num_beams=2, max_new_tokens=5).result(30)
        batcher.submit(rows[0], Route.to("small"), **NEW).result(30)
    assert torch.equal(torch.rand(3), expected)
    ids = torch.tensor([rows[0]])
    with torch.no_grad():
        assert torch.equal(engine.model(ids).logits, tiny_llama()(ids).logits)
