"""The arena against a slow reference: ranges, growth, eviction, compaction, and the formula of every kind of row."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from adapterhub.adapter import Adapter, LowRank, Norm, Scaling
from adapterhub.engine._arena import Arena
from adapterhub.engine._delta import fold
from adapterhub.engine._planner import KINDS
from adapterhub.engine._ranges import Ranges
from adapterhub.errors import CapacityError, InputError
from adapterhub.route import Route

ACTS = {"identity": lambda h: h, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}
WIDTHS = {"wide": (6, 10), "narrow": (10, 4)}
VOCABULARY, WIDTH = 12, 7


def base():
    torch.manual_seed(0)
    modules = {name: nn.Linear(*widths) for name, widths in WIDTHS.items()}
    model = nn.ModuleDict({**modules, "table": nn.Embedding(VOCABULARY, WIDTH), "norm": nn.LayerNorm(WIDTH)}).double()
    nn.init.normal_(model["norm"].weight)
    nn.init.normal_(model["norm"].bias)
    return model.requires_grad_(False)


def factors(rank, widths, generator, reads="input", activation="identity", biased=False):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    d_in, d_out = widths
    bias, up_bias = (draw(rank), draw(d_out)) if biased else (None, None)
    d_z = d_out if reads == "output" else d_in
    return LowRank(draw(rank, d_z), draw(rank, d_out), reads, activation, bias, up_bias)


def adapter(modules=None, **parts):
    return Adapter("memory", "LORA", "base", "", "", modules or {}, **parts)


def place(arena, model, name, read, **options):
    arena.place(name, fold(read, model.get_submodule), **options)


def random_adapter(seed):
    """Another sort each time: methods, sides, activations, biases, modules, and ranks that differ between modules."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    modules, scalings, norms = {}, {}, {}
    for name in rng.choice([["wide"], ["narrow"], ["wide", "narrow"]]):
        rank, kind = rng.randint(1, 6), rng.choice(["low", "low", "dora", "scaling"])
        if kind == "scaling":
            side = rng.choice(["input", "output"])
            factor = torch.randn(WIDTHS[name][side == "output"], generator=generator, dtype=torch.float64)
            scalings[name] = Scaling(factor, side)
        elif kind == "dora":
            magnitude = torch.rand(WIDTHS[name][1], generator=generator, dtype=torch.float64)
            modules[name] = replace(factors(rank, WIDTHS[name], generator), magnitude=magnitude)
        else:
            side, activation = rng.choice(["input", "output"]), rng.choice(sorted(ACTS))
            modules[name] = factors(rank, WIDTHS[name], generator, side, activation, rng.random() < 0.5)
    if rng.random() < 0.5:
        modules["table"] = factors(rng.randint(1, 4), (VOCABULARY, WIDTH), generator, "tokens")
    if rng.random() < 0.5:
        weight, bias = torch.randn(2, WIDTH, generator=generator, dtype=torch.float64)
        norms["norm"] = Norm(weight, bias)
    return adapter(modules, scalings=scalings, norms=norms)


def change(module, name, x, read):
    """What one adapter at full scale adds to one row of a module, from the definition of its method."""
    y = module(x)
    if name in read.scalings:
        scaling = read.scalings[name]
        return (module(x * scaling.factors) if scaling.scales == "input" else y * scaling.factors) - y
    if name in read.norms:
        norm = read.norms[name]
        return functional.layer_norm(x, (WIDTH,), norm.weight, norm.bias) - y
    low = read.modules.get(name)
    if low is None:
        return torch.zeros_like(y)
    if low.magnitude is not None:
        weight = module.weight + low.up.T @ low.down
        weight = low.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        return functional.linear(x, weight, module.bias) - y
    z = {"input": x, "output": y}.get(low.reads)
    z = functional.one_hot(x, VOCABULARY).double() if z is None or low.reads == "tokens" else z
    h = z @ low.down.T + (0 if low.bias is None else low.bias)
    return ACTS[low.activation](h) @ low.up + (0 if low.up_bias is None else low.up_bias)


def slow(module, name, x, routes, adapters, expansion=1):
    """Row by row, adapter by adapter."""
    out = module(x).clone()
    for row in range(len(x)):
        route = routes[row // expansion]
        for used, gate in zip(route.adapters, route.gates, strict=True):
            out[row] += gate * change(module, name, x[row], adapters[used])
    return out


def check(arena, model, routes, adapters, shape=(5,), expansion=1, seed=0, kinds=(None, *KINDS)):
    plain = base()
    generator = torch.Generator().manual_seed(seed)
    rows = len(routes) * expansion
    inputs = {name: torch.randn(rows, *shape, d, generator=generator).double() for name, (d, _) in WIDTHS.items()}
    inputs["table"] = torch.randint(VOCABULARY, (rows, *shape), generator=generator)
    inputs["norm"] = torch.randn(rows, *shape, WIDTH, generator=generator).double()
    for kind in kinds:
        plan = arena.plan(routes, kind)
        for name, x in inputs.items():
            given = x.clone()
            with torch.no_grad(), arena.running(plan):
                mine = model[name](x)
            torch.testing.assert_close(mine, slow(plain[name], name, x, routes, adapters, expansion))
            assert torch.equal(x, given)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=["flat", "decode", "prefill", "nested"])
@pytest.mark.parametrize("expansion", [1, 3])
@pytest.mark.parametrize("seed", [0, 8, 16])
def test_the_formula_for_mixed_rows(shape, expansion, seed):
    adapters = {str(index): random_adapter(seed + index) for index in range(8)}
    model = base()
    arena = Arena(model.get_submodule, 64)
    for name, read in adapters.items():
        place(arena, model, name, read)
    routes = [Route(), Route.to("3"), Route(("0", "5", "7"), (0.5, -1.5, 0.0)), Route(("7", "1"), (2.0, 0.25)), Route()]
    check(arena, model, routes, adapters, shape, expansion)
    check(arena, model, [Route(("2", "6"), (0.5, 0.5))] * 3, adapters, shape, expansion)
    check(arena, model, [Route.to(str(row)) for row in range(8)], adapters, shape, expansion)


def test_a_plan_outlives_what_happens_to_other_adapters():
    adapters = {str(index): random_adapter(40 + index) for index in range(6)}
    model = base()
    arena = Arena(model.get_submodule, 64)
    for name in "0123":
        place(arena, model, name, adapters[name])
    routes = [Route.to("1"), Route(("1", "3"), (0.5, 2.0)), Route()]
    plans = [arena.plan(routes, kind) for kind in KINDS]
    x = torch.randn(3, 2, 6).double()
    expected = slow(base()["wide"], "wide", x, routes, adapters)
    for step in range(4):
        if step == 1:
            arena.drop("0")
            place(arena, model, "4", adapters["4"])
        if step == 2:
            arena.drop("2")
            arena._compact()
        if step == 3:
            place(arena, model, "5", adapters["5"])
        for plan in plans:
            with torch.no_grad(), arena.running(plan):
                torch.testing.assert_close(model["wide"](x), expected)


def test_a_closed_arena_leaves_the_modules_as_they_were():
    model = base()
    arena = Arena(model.get_submodule, 16)
    own = model["narrow"].forward = lambda x: x + 1  # somebody else's patch
    place(arena, model, "a", adapter({name: factors(2, WIDTHS[name], torch.Generator()) for name in WIDTHS}))
    arena.close()
    assert "forward" not in vars(model["wide"])
    assert model["narrow"].forward is own


@pytest.mark.parametrize("seed", range(5))
def test_any_history_of_loads_and_evictions_leaves_the_right_rows(seed):
    rng = random.Random(seed)
    adapters = {str(index): random_adapter(100 * seed + index) for index in range(12)}
    model = base()
    arena = Arena(model.get_submodule, 17)
    for step in range(40):
        used = rng.sample(sorted(adapters), rng.randint(0, 2))
        for name in used:
            if name not in arena:
                place(arena, model, name, adapters[name], keep=used)
        arena.touch(used)
        if arena.names and rng.random() < 0.3:
            arena.drop(rng.choice([name for name in arena.names if name not in used] or [arena.names[0]]))
        used = [name for name in used if name in arena]
        routes = [Route(tuple(used), tuple(rng.uniform(-2, 2) for _ in used)), Route(), *map(Route.to, used)]
        check(arena, model, routes, adapters, seed=step, kinds=(None, rng.choice(KINDS)))


def test_the_least_recently_used_leaves_first():
    model = base()
    generator = torch.Generator().manual_seed(0)
    arena = Arena(model.get_submodule, 9)
    for name in "abc":
        place(arena, model, name, adapter({"wide": factors(3, WIDTHS["wide"], generator)}))
    arena.touch(["a"])
    place(arena, model, "d", adapter({"wide": factors(2, WIDTHS["wide"], generator)}))
    assert arena.names == ("c", "a", "d")


def test_fragments_are_joined_before_anything_else_leaves():
    model = base()
    arena = Arena(model.get_submodule, 10)
    adapters = {
        name: adapter({"wide": factors(rank, WIDTHS["wide"], torch.Generator().manual_seed(rank), biased=True)})
        for name, rank in {"a": 2, "b": 3, "c": 2, "d": 3, "e": 4}.items()
    }
    for name in "abcd":
        place(arena, model, name, adapters[name])
    arena.drop("a")
    arena.drop("c")
    place(arena, model, "e", adapters["e"])  # two gaps of two ranks
    assert arena.names == ("b", "d", "e")
    check(arena, model, [Route(("b", "d", "e"), (1.0, 0.5, 0.25))], adapters)


def test_a_batch_never_evicts_its_own_adapters():
    model = base()
    arena = Arena(model.get_submodule, 6)
    reads = {name: adapter({"wide": factors(3, WIDTHS["wide"], torch.Generator())}) for name in "abc"}
    place(arena, model, "a", reads["a"])
    place(arena, model, "b", reads["b"])
    with pytest.raises(CapacityError, match=r"needs adapters of 9 ranks in all but the arena holds 6\."):
        place(arena, model, "c", reads["c"], keep="abc")
    assert arena.names == ("a", "b")


def test_memory_is_taken_as_it_is_needed_and_not_beyond_the_capacity():
    model = base()
    arena = Arena(model.get_submodule, 20)
    assert arena.nbytes == 0
    row = 8 * (6 + 10)
    for index, rows in enumerate([3, 6, 12, 12, 20, 20]):
        place(arena, model, str(index), adapter({"wide": factors(3, WIDTHS["wide"], torch.Generator())}))
        assert arena.nbytes == rows * row


def test_an_adapter_that_overflows_reaches_no_other_row():
    model = base()
    generator = torch.Generator().manual_seed(1)
    huge = factors(2, WIDTHS["wide"], generator)
    adapters = {
        "huge": adapter({"wide": LowRank(huge.down * 1e308, huge.up)}),
        "tame": adapter({"wide": factors(3, WIDTHS["wide"], generator)}),
    }
    arena = Arena(model.get_submodule, 8)
    for name, read in adapters.items():
        place(arena, model, name, read)
    x = torch.randn(3, 4, 6, dtype=torch.float64) * 1e3
    routes = [Route.to("huge"), Route(), Route.to("tame")]
    with torch.no_grad(), arena.running(arena.plan(routes)):
        mine = model["wide"](x)
    assert not mine[0].isfinite().all()
    torch.testing.assert_close(mine[1:], slow(model["wide"], "wide", x[1:], routes[1:], adapters).detach())


def test_a_module_that_sees_part_of_the_rows_is_an_error():
    model = base()
    arena = Arena(model.get_submodule, 8)
    place(arena, model, "a", adapter({"wide": factors(2, WIDTHS["wide"], torch.Generator())}))
    with arena.running(arena.plan([Route.to("a")] * 2)), pytest.raises(InputError, match="Found 3 at wide"):
        model["wide"](torch.zeros(3, 6, dtype=torch.float64))


def test_half_precision_follows_the_base():
    model = base().to(torch.bfloat16)
    low = factors(4, WIDTHS["wide"], torch.Generator().manual_seed(0), "output", "gelu", biased=True)
    arena = Arena(model.get_submodule, 8)
    place(arena, model, "a", adapter({"wide": low}))
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    routes = [Route(("a",), (0.3,)), Route()]
    with torch.no_grad(), arena.running(arena.plan(routes)):
        mine = model["wide"](x)
    assert mine.dtype == torch.bfloat16
    expected = slow(model["wide"].double(), "wide", x.double(), routes, {"a": adapter({"wide": low})})
    torch.testing.assert_close(mine.double(), expected.detach(), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_ranges_never_overlap_and_are_found_while_they_fit(seed):
    rng = random.Random(seed)
    ranges = Ranges(50)
    for name in map(str, range(60)):
        length = rng.randint(1, 12)
        free = ranges.free
        if ranges.take(name, length) is None and free >= length:
            ranges.compact()
            assert ranges.take(name, length) is not None
        held = [rank for other in ranges for rank in ranges[other]]
        assert held == sorted(set(held))
        assert all(0 <= rank < 50 for rank in held)
        assert ranges.free == 50 - len(held)
        for other in list(ranges):
            if rng.random() < 0.25:
                ranges.release(other)
