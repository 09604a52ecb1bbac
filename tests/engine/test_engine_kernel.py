"""The compiled kernel: the sum itself, to the bit where it promises bits, and who computes where it does not apply."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from engine_peft import BASES, engine_of, make_adapters, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapterhub.adapter import Adapter, LowRank
from adapterhub.engine import Engine
from adapterhub.engine._arena import Arena
from adapterhub.engine._delta import fold
from adapterhub.engine._forms import Packed, Rows
from adapterhub.engine._gates import Layout, Slice
from adapterhub.engine._kernel import Kernel
from adapterhub.engine._library import Native
from adapterhub.errors import InputError
from adapterhub.route import Route

NATIVE = Native()
pytestmark = pytest.mark.skipif(NATIVE.functions is None, reason=f"no compiled kernel: {NATIVE.state}")
LARGE = (768, 640, 48, 24)  # widths, rows and rank that are worth a second thread


class Batch:
    """Random rows of a bank with gaps between its adapters, x and y; some rows use nobody."""

    def __init__(self, seed, rows, ranks, k, d_in, d_out, tokens=1, dtype=torch.float32):
        random = torch.Generator().manual_seed(seed)
        self.tokens, self.dtype = tokens, dtype
        starts, total = [], 2
        for rank in ranks:
            starts.append(total)
            total += rank + int(torch.randint(0, 3, (), generator=random))
        self.weights = torch.zeros(rows, len(ranks), dtype=torch.float64)
        for row in range(rows):
            used = torch.randperm(len(ranks), generator=random)[: int(torch.randint(0, k + 1, (), generator=random))]
            self.weights[row, used] = torch.randn(len(used), generator=random, dtype=torch.float64)
        self.slices = tuple(Slice(*part) for part in zip(range(len(ranks)), starts, ranks, strict=True))
        self.down, self.up = (torch.randn(total, d, generator=random).to(dtype) for d in (d_in, d_out))
        self.x, self.y = (torch.randn(rows, tokens, d, generator=random).to(dtype) for d in (d_in, d_out))

    def rows(self, rows=slice(None)):
        layout = Layout(self.weights[rows], self.slices, torch.device("cpu"), self.dtype)
        return Rows(layout, self.down, self.up, None, None, tokens=False)

    def kernel(self, rows=slice(None)):
        return Kernel(self.rows(rows), self.tokens, NATIVE.functions)

    def exact(self):
        """The sum in float64, row by row, adapter by adapter."""
        y = self.y.double()
        for row, gates in enumerate(self.weights.tolist()):
            for part, gate in zip(self.slices, gates, strict=True):
                held = slice(part.start, part.start + part.rank)
                if gate:
                    y[row] += gate * (self.x[row].double() @ self.down[held].double().T @ self.up[held].double())
        return y

    def applied(self):
        y = self.y.clone()
        self.kernel().apply(y, self.x)
        return y


@st.composite
def batches(draw, dtype):
    ranks = draw(st.lists(st.integers(1, 64) | st.sampled_from([1, 4, 8, 16]), min_size=1, max_size=9))
    widths = [draw(st.integers(1, 150) | st.sampled_from([32, 64, 96, 128, 257])) for _ in range(2)]
    k, tokens, seed = draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 2, 5])), draw(st.integers(0, 2**16))
    return Batch(seed, draw(st.integers(1, 64)), ranks, k, *widths, tokens, dtype)


def always(examples):
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def far(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@given(batch=batches(torch.float32))
@always(150)
def test_it_is_the_weighted_sum(batch):
    assert far(batch.applied(), batch.exact()) < 2e-6
    idle = (batch.weights == 0).all(dim=1)
    assert torch.equal(batch.applied()[idle], batch.y[idle])


@given(batch=batches(torch.bfloat16))
@always(100)
def test_half_precision_is_rounded_once_and_no_further_away_than_packed(batch):
    exact, mine = batch.exact(), batch.applied()
    # half a unit in the last place of the result, and what float32 lost on the way
    assert bool(((mine.double() - exact).abs() <= exact.abs() * 2**-8 + exact.abs().max() * 1e-6).all())
    if batch.weights.any():
        packed, y = Packed(batch.rows(), batch.tokens), batch.y.clone()
        packed.add(y, packed.hidden(batch.x))
        assert (mine.double() - exact).norm() <= (y.double() - exact).norm() * 1.001 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 64, 130])
def test_whole_numbers_come_out_exactly(dtype, tokens):
    """Every sum is exact in float32, so what is left is the last rounding: torch's own, ties to even."""
    batch = Batch(tokens, 11, [8, 5, 17, 64], 3, 61, 131, tokens, dtype)
    for value in (batch.weights, batch.down, batch.up, batch.x, batch.y):
        value.copy_((2 * value).round().clamp(-4, 4))
    assert batch.exact().abs().max() < 2**24
    assert torch.equal(batch.applied(), batch.exact().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3])
def test_bits_do_not_depend_on_the_threads_or_on_the_other_rows(dtype, tokens, threads):
    d_in, d_out, rows, rank = LARGE
    batch = Batch(3, rows, [rank, 5, 16, 8, 31], 3, d_in + 7, d_out + 5, tokens, dtype)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(batch.applied())
    assert all(torch.equal(found[0], other) for other in found[1:])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    mixed = batch.y[order].clone()
    batch.kernel(order).apply(mixed, batch.x[order].contiguous())
    assert torch.equal(mixed, found[0][order])
    for row in range(0, rows, 7):
        alone = batch.y[row : row + 1].clone()
        if batch.weights[row].any():
            batch.kernel([row]).apply(alone, batch.x[row : row + 1])
        assert torch.equal(alone[0], found[0][row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_do_not_lie_in_one_piece(dtype, threads):
    threads(2)
    batch = Batch(1, 12, [8, 3, 20], 2, 70, 45, 2, dtype)
    kernel, expected = batch.kernel(), batch.applied()
    apart = torch.randn(12, 2, 140).to(dtype)
    apart[:, :, ::2] = batch.x
    wide = torch.zeros(12, 2, 90).to(dtype)
    wide[:, :, ::2] = batch.y
    kernel.apply(wide[:, :, ::2], apart[:, :, ::2])
    assert torch.equal(wide[:, :, ::2], expected)
    assert not wide[:, :, 1::2].any()
    halves = batch.y.clone()
    hidden = kernel.hidden(batch.x)
    kernel.add(halves, hidden)
    assert torch.equal(halves, expected)


def test_outputs_of_another_dtype_are_added_to():
    batch = Batch(1, 12, [8, 3, 20], 2, 70, 45)
    y = batch.y.double()
    batch.kernel().apply(y, batch.x)
    assert far(y, batch.exact()) < 2e-6
    with pytest.raises(ValueError, match="have the adapters' widths"):
        batch.kernel().apply(batch.y[:, :, :40], batch.x)
    with pytest.raises(ValueError, match="have the adapters' widths"):
        batch.kernel().apply(batch.y, batch.x[:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 3e38])
def test_what_overflows_stays_in_its_rows(dtype, bad):
    batch = Batch(5, 9, [8, 11, 3], 1, 50, 33, 1, dtype)
    batch.weights = torch.eye(3, dtype=torch.float64).repeat(3, 1)
    clean = batch.applied()
    batch.down[batch.slices[1].start :][:11] = bad
    batch.x[4] = float("nan")
    mine = batch.applied()
    assert not mine[1::3].isfinite().any()
    assert torch.equal(mine[0::3], clean[0::3])
    assert torch.equal(mine[2::3], clean[2::3])
    assert mine[4].isnan().all()


def small_arena(native, activation="identity", dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(24, 40)}).to(dtype).requires_grad_(False)
    arena = Arena(model.get_submodule, 64, native=native)
    for name, rank in (("p", 3), ("q", 8)):
        low = LowRank(torch.randn(rank, 24), torch.randn(rank, 40), "input", activation, None, None)
        arena.place(name, fold(Adapter("memory", "LORA", "base", "", "", {"a": low}), model.get_submodule))
    return model["a"], arena


ROUTES = [Route.to("p"), Route(("p", "q"), (0.5, -2.0)), Route()]


def forms_of(arena, plan, tokens):
    return [type(form).__name__ for part in arena.complete(plan).values() for _, form in part.forms(tokens)]


def test_autograd_gets_a_form_that_it_sees_into():
    module, arena = small_arena(NATIVE)
    plan = arena.plan(ROUTES)
    x = torch.randn(3, 1, 24, requires_grad=True)
    with arena.running(plan):
        with torch.no_grad():
            expected = module(x)
        y = module(x)
        y.sum().backward()
    torch.testing.assert_close(y.detach(), expected)
    assert x.grad is not None
    with torch.no_grad():
        assert forms_of(arena, plan, 1) == ["Kernel"]
    assert forms_of(arena, plan, 1) != ["Kernel"]


@torch.no_grad()
def test_what_it_does_not_know_takes_another_form():
    for module, arena in (small_arena(NATIVE, "relu"), small_arena(NATIVE, dtype=torch.float64), small_arena(None)):
        for kind in (None, "kernel"):
            plan = arena.plan(ROUTES, kind)
            assert "Kernel" not in forms_of(arena, plan, 1)
            with arena.running(plan):
                module(torch.randn(3, 1, 24, dtype=module.weight.dtype))


@torch.no_grad()
def test_beams_and_flat_tokens_are_blocks_of_their_row():
    module, arena = small_arena(NATIVE)
    for shape in ((3, 24), (3, 4, 24), (6, 1, 24), (12, 24)):
        x = torch.randn(*shape)
        with arena.running(arena.plan(ROUTES, "kernel")):
            mine = module(x)
        other, plain = small_arena(None)
        with plain.running(plain.plan(ROUTES, "dense")):
            torch.testing.assert_close(mine, other(x), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return make_adapters("llama", tmp_path_factory.mktemp("kernel"))


def test_an_engine_answers_alike_with_it_and_without(adapters, monkeypatch):
    ids, mask = texts(4, 9)
    routes = [Route.to("small"), Route(("wide", "small"), (0.4, 0.5)), Route(), Route(("neck", "wide"), (0.5, 2.0))]
    with engine_of("llama", adapters) as engine, engine_of("llama", adapters, kernel=False) as plain:
        assert engine.kernel.startswith("compiled")
        assert plain.kernel == "none, switched off by `kernel=False`"
        for mine, other in zip(engine.forward(ids, mask, routes), plain.forward(ids, mask, routes), strict=True):
            torch.testing.assert_close(mine, other, atol=2e-5, rtol=0)
        options = {"max_new_tokens": 6, "num_beams": 2}
        found = [each.generate(ids, mask, routes, **options).sequences for each in (engine, plain)]
        assert torch.equal(*found)
        explained = engine.explain(routes)
        assert {choice.plan for choice in explained.choices if choice.reads == "input"} == {"kernel"}
        assert str(explained).endswith(f"kernel: {engine.kernel}")
        assert all(choice.costs.kernel == float("inf") for choice in plain.explain(routes).choices)
        with pytest.raises(InputError, match=r"needs the compiled kernel\. Found none, switched off by `kernel=False`"):
            plain.planned(routes, plan="kernel").__enter__()
    monkeypatch.setenv("ADAPTERHUB_KERNEL", "0")
    with pytest.raises(InputError, match="switched off by ADAPTERHUB_KERNEL"):
        Engine(BASES["llama"](), model_id="tests/llama", plan="kernel")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc/self/maps")
def test_there_is_one_pool_of_threads(threads):
    threads(2)
    d_in, d_out, rows, rank = LARGE
    Batch(0, rows, [rank] * 4, 2, d_in, d_out).applied()
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    runtimes = [path for path in mapped if Path(path).name.startswith(("libgomp", "libiomp", "libomp"))]
    torch_folder = str(Path(torch.__file__).parent)
    assert [path for path in runtimes if path.startswith(torch_folder)]
    if "sklearn" not in sys.modules:  # scikit-learn brings its own
        assert len(runtimes) == 1
