"""The compiled decoding step: the engine's own tokens, and one graph however routes change."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import tiny_bert, tiny_llama, tiny_mamba
from engine_cases import routes
from engine_peft import METHODS, engine_of, lora, make_methods, save
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounterWithBackend

from adapterhub.adapter import seal
from adapterhub.engine import Engine
from adapterhub.engine._compiled import Compiled
from adapterhub.errors import InputError
from adapterhub.methods import BottleneckConfig
from adapterhub.route import Route

KINDS = ("llama", "gpt2")
NEW = {"max_new_tokens": 6, "do_sample": False}


def bounded(examples: int) -> settings:
    """Always the same examples, so that a run says the same everywhere."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(kind, tmp_path_factory):
    """An adapter of every method, and LoRA of three ranks."""
    root = tmp_path_factory.mktemp(f"compiled-{kind}")
    found = make_methods(kind, root, rank=5)
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}[kind]
    for seed, rank in enumerate((2, 8, 20)):
        found[f"r{rank}"] = save(kind, root / f"r{rank}", lora(kind, targets, rank), seed)
    neck = BottleneckConfig(r=6, activation="relu", target_modules=targets, task_type="CAUSAL_LM")
    found["neck"] = save(kind, root / "neck", neck, 3)
    return found


@pytest.fixture(scope="module")
def engine(kind, folders):
    with engine_of(kind, folders) as engine:
        yield engine


def compiled(engine: Engine, **options) -> Compiled:
    return Compiled(engine._tiers, engine._arena, engine._backbone, **{"rows": 4, "context": 32, **options})


def counted(engine: Engine, backend: str = "eager", **options) -> tuple[Compiled, CompileCounterWithBackend]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return compiled(engine, backend=counter, **options), counter


def batch(lengths: list[int], seed: int = 0):
    ids = torch.randint(2, 96, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def same(found: Compiled, engine: Engine, lengths: list[int], routes: list[Route], seed: int = 0, **options) -> None:
    ids, mask = batch(lengths, seed)
    options = {**NEW, **options}
    expected = engine.generate(ids, mask, routes, **options).sequences
    assert torch.equal(found.generate(ids, mask, routes, **options), expected)


@pytest.fixture(scope="module")
def ready(engine, folders):
    """A step that has met every kind of part, in one batch of all adapters, and how many graphs that took."""
    found, counter = counted(engine, ranks=128)
    ids, mask = batch([3, 4, 5, 6])
    shares = [[*folders][row::4] for row in range(4)]
    found.generate(ids, mask, [Route(tuple(share), (0.5,) * len(share)) for share in shares], **NEW)
    return found, counter


@pytest.fixture
def settled(ready):
    """The same; whatever a test does with it, no graph may be added."""
    found, counter = ready
    yield found
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_no_graph_is_added_as_routes_change(engine, backend):
    found, counter = counted(engine, backend, ranks=16)
    mixed = Route(("r2", "r8"), (0.5, -1.0))
    for seed, rows in enumerate(
        (
            [Route.to("r2"), Route.to("r8"), Route(), mixed],
            [Route.to("r8")] * 4,
            [Route.to("r2"), Route(), mixed, Route()],
            [Route()] * 4,
            [Route(("r8",), (-0.25,))],
            [Route(("r8", "r2"), (1.0, 0.0)), Route.to("r2"), mixed],
        )
    ):
        same(found, engine, [2 + seed, 6, 3, 9 - seed][: len(rows)], rows, seed, max_new_tokens=3 + seed)
        assert counter.frame_count == 1


def test_only_a_new_shape_is_compiled_and_only_once(engine):
    found, counter = counted(engine)
    counts = []
    for name in ("r8", "r20", "neck", "r8", "r20", "neck", "r2"):
        same(found, engine, [4, 6], [Route.to(name), Route()])
        counts.append(counter.frame_count)
    # Ranks beyond 8, then modules that read their own output at either rank.
    assert counts == [1, 2, 3, 3, 4, 4, 4]


def test_every_method_gives_the_tokens_of_the_engine(settled, engine, folders):
    names = [*folders]
    for first, one in enumerate(names):
        other, third = names[first - 1], names[first - 3]
        same(settled, engine, [5, 2, 7], [Route((one, other), (0.75, -0.5)), Route.to(third), Route()], first)


@bounded(15)
@drawn(data=st.data())
def test_any_routes_give_the_tokens_of_the_engine(settled, engine, folders, data):
    rows = data.draw(st.lists(routes([*folders], most=2), min_size=1, max_size=4))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=len(rows), max_size=len(rows)))
    same(settled, engine, lengths, rows, data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("name", METHODS)
def test_a_frame_forgets_what_a_batch_before_put_into_it(settled, engine, name):
    same(settled, engine, [4, 5], [Route.to(name), Route.to("r20")])
    same(settled, engine, [4, 5], [Route(), Route.to("r2")])
    same(settled, engine, [4, 5], [Route(), Route()])


def test_fewer_rows_than_the_graph_has_answer_alike(settled, engine):
    given = [Route.to("r2"), Route.to("r8"), Route.to("lora"), Route()]
    ids, mask = batch([6, 6, 6, 6])
    together = settled.generate(ids, mask, given, **NEW, eos_token_id=None)
    for row, route in enumerate(given):
        same(settled, engine, [6], [route], row)
        alone = settled.generate(ids[row : row + 1], mask[row : row + 1], [route], **NEW, eos_token_id=None)
        assert torch.equal(alone[0], together[row])


def test_rows_end_as_in_generate(settled, engine):
    given = [Route.to("r2"), Route.to("r8"), Route()]
    ids, mask = batch([4, 4, 4])
    free = engine.generate(ids, mask, given, **NEW, eos_token_id=None).sequences[:, 4:]
    for eos in (int(free[0, 1]), [int(free[0, 2]), int(free[1, 0]), int(free[2, 3])]):
        same(settled, engine, [4, 4, 4], given, eos_token_id=eos)
        same(settled, engine, [4, 4, 4], given, eos_token_id=eos, pad_token_id=7)
    same(settled, engine, [4, 4, 4], given, max_new_tokens=1)
    same(settled, engine, [4, 4, 4], given, eos_token_id=None)


def test_adapters_that_leave_and_come_back_need_no_graph(settled, engine):
    same(settled, engine, [4], [Route.to("r8")])
    assert engine.evict("r8")
    same(settled, engine, [4, 3], [Route(), Route.to("r8")])


def test_the_base_is_left_as_it_is(settled, engine):
    ids, mask = batch([5, 5])
    with torch.no_grad():
        before = engine.model(input_ids=ids, attention_mask=mask).logits
    same(settled, engine, [5, 5], [Route.to("r20"), Route.to("ia3")])
    with torch.no_grad():
        assert torch.equal(engine.model(input_ids=ids, attention_mask=mask).logits, before)


def test_an_adapter_that_overflows_does_not_reach_other_rows(settled, engine, folders, tmp_path):
    """0 · inf is NaN: not even the zeros of a row without adapters may meet what another left behind."""
    shutil.copytree(folders["r8"], tmp_path / "huge")
    tensors = load_file(tmp_path / "huge" / "adapter_model.safetensors")
    save_file({key: value * 1e30 for key, value in tensors.items()}, tmp_path / "huge" / "adapter_model.safetensors")
    seal(tmp_path / "huge", engine.base)
    engine.add("huge", tmp_path / "huge")
    ids, mask = batch([5, 5])
    expected = engine.generate(ids, mask, [Route(), Route.to("r2")], **NEW).sequences
    for row in range(2):
        given = [Route(), Route.to("r2")]
        given[row] = Route.to("huge")
        found = settled.generate(ids, mask, given, **NEW)
        assert torch.equal(found[1 - row], expected[1 - row])
    assert torch.equal(settled.generate(ids, mask, [Route(), Route.to("r2")], **NEW), expected)
    engine.remove("huge")


def test_threads_take_turns(settled, engine):
    given = [([5, 2], [Route.to("r2"), Route()]), ([3, 4], [Route.to("r8"), Route.to("ia3")])]
    expected = [engine.generate(*batch(lengths), rows, **NEW).sequences for lengths, rows in given]

    def ask(number: int) -> torch.Tensor:
        lengths, rows = given[number % 2]
        return settled.generate(*batch(lengths), rows, **NEW)

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(ask, range(8))):
            assert torch.equal(found, expected[number % 2])


class TestRefusals:
    @pytest.mark.parametrize(
        ("lengths", "options", "message"),
        [
            ([2] * 5, {}, "has 4 rows. Found 5"),
            ([8], {"max_new_tokens": 25}, "at most 32 in all. Found 8 and 25"),
            ([2], {"do_sample": True}, "likeliest token. Found options"),
            ([2], {"num_beams": 2}, "likeliest token. Found options"),
            ([2], {"repetition_penalty": 1.5}, "repetition_penalty"),
            ([2], {"max_new_tokens": 3, "no_such_option": 1}, "no_such_option"),
        ],
    )
    def test_of_a_batch(self, engine, lengths, options, message):
        found = compiled(engine, backend="eager")
        with pytest.raises(InputError, match=message):
            found.generate(*batch(lengths), [Route.to("r2")] * len(lengths), **{**NEW, **options})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rows": 0, "context": 0}, "(?s)rows should be at least 1.*context should be at least 1"),
            ({"context": 65}, "at most the base's, 64. Found 65"),
        ],
    )
    def test_of_sizes(self, engine, options, message):
        with pytest.raises(InputError, match=message):
            compiled(engine, **options)

    @pytest.mark.parametrize("make", [tiny_bert, tiny_mamba])
    def test_of_a_base_without_a_cache_of_keys_and_values(self, make):
        with Engine(make(), model_id="tests/base") as engine, pytest.raises(InputError, match="keys and values"):
            compiled(engine)

    def test_of_what_does_not_compile(self):
        def broken(graph, inputs):
            raise RuntimeError("no compiler was found")

        torch._dynamo.reset()
        with Engine(tiny_llama(), model_id="tests/llama") as engine:
            found = compiled(engine, backend=broken)
            with pytest.raises(InputError, match="no compiler was found"):
                found.generate(*batch([3]), [Route()], **NEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
def test_inductor_gives_the_tokens_of_the_engine(engine):
    torch._dynamo.reset()
    found = compiled(engine)
    same(found, engine, [5, 3, 7], [Route.to("r2"), Route.to("r8"), Route()])
    same(found, engine, [2, 6, 3], [Route(("r8", "r2"), (0.5, 0.5)), Route(), Route.to("r2")], 1)
