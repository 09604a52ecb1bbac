"""The arena against a slow reference: ranges, growth, eviction, compaction, and the formula of every kind of row."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from adapterhub.adapter import Adapter, LowRank
from adapterhub.engine._arena import Arena
from adapterhub.engine._ranges import Ranges
from adapterhub.errors import CapacityError, InputError
from adapterhub.route import Route

ACTS = {"identity": lambda h: h, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}
WIDTHS = {"wide": (6, 10), "narrow": (10, 4)}


def base():
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(*widths) for name, widths in WIDTHS.items()}).double()


def factors(rank, widths, generator, reads="input", activation="identity", biased=False):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    d_in, d_out = widths
    bias, up_bias = (draw(rank), draw(d_out)) if biased else (None, None)
    d_z = d_in if reads == "input" else d_out
    return LowRank(draw(rank, d_z), draw(rank, d_out), reads, activation, bias, up_bias)


def adapter(modules):
    return Adapter("memory", "LORA", "base", "", "", modules)


def random_adapter(seed):
    """Another sort each time: sides, activations, biases, modules, and ranks that differ between modules."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    modules = {}
    for name in rng.choice([["wide"], ["narrow"], ["wide", "narrow"]]):
        modules[name] = factors(
            rng.randint(1, 6),
            WIDTHS[name],
            generator,
            rng.choice(["input", "output"]),
            rng.choice(sorted(ACTS)),
            rng.random() < 0.5,
        )
    return adapter(modules)


def slow(module, name, x, routes, adapters, expansion=1):
    """Row by row, adapter by adapter, from the definition."""
    y = module(x)
    out = y.clone()
    for row in range(len(x)):
        route = routes[row // expansion]
        for used, gate in zip(route.adapters, route.gates, strict=True):
            low = adapters[used].modules.get(name)
            if low is None:
                continue
            z = x[row] if low.reads == "input" else y[row]
            h = z @ low.down.T + (0 if low.bias is None else low.bias)
            out[row] += gate * (ACTS[low.activation](h) @ low.up + (0 if low.up_bias is None else low.up_bias))
    return out


def check(arena, model, routes, adapters, shape=(5,), expansion=1, seed=0):
    for name, (d_in, _) in WIDTHS.items():
        x = torch.randn(
            len(routes) * expansion, *shape, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        with torch.no_grad():
            with arena.running(arena.plan(routes)):
                mine = model[name](x)
            torch.testing.assert_close(mine, slow(model[name], name, x, routes, adapters, expansion))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=["flat", "decode", "prefill", "nested"])
@pytest.mark.parametrize("expansion", [1, 3])
def test_the_formula_for_mixed_rows(shape, expansion):
    adapters = {str(seed): random_adapter(seed) for seed in range(8)}
    model = base()
    arena = Arena(model.get_submodule, 64)
    for name, read in adapters.items():
        arena.place(name, read)
    routes = [Route(), Route.to("3"), Route(("0", "5", "7"), (0.5, -1.5, 0.0)), Route(("7", "1"), (2.0, 0.25)), Route()]
    check(arena, model, routes, adapters, shape, expansion)


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
                arena.place(name, adapters[name], keep=used)
        arena.touch(used)
        if arena.names and rng.random() < 0.3:
            arena.drop(rng.choice([name for name in arena.names if name not in used] or [arena.names[0]]))
        used = [name for name in used if name in arena]
        routes = [Route(tuple(used), tuple(rng.uniform(-2, 2) for _ in used)), Route(), *map(Route.to, used)]
        check(arena, model, routes, adapters, seed=step)


def test_the_least_recently_used_leaves_first():
    model = base()
    generator = torch.Generator().manual_seed(0)
    arena = Arena(model.get_submodule, 9)
    for name in "abc":
        arena.place(name, adapter({"wide": factors(3, WIDTHS["wide"], generator)}))
    arena.touch(["a"])
    arena.place("d", adapter({"wide": factors(2, WIDTHS["wide"], generator)}))
    assert arena.names == ("c", "a", "d")


def test_fragments_are_joined_before_anything_else_leaves():
    model = base()
    arena = Arena(model.get_submodule, 10)
    adapters = {
        name: adapter({"wide": factors(rank, WIDTHS["wide"], torch.Generator().manual_seed(rank), biased=True)})
        for name, rank in {"a": 2, "b": 3, "c": 2, "d": 3, "e": 4}.items()
    }
    for name in "abcd":
        arena.place(name, adapters[name])
    arena.drop("a")
    arena.drop("c")
    arena.place("e", adapters["e"])  # two gaps of two ranks
    assert arena.names == ("b", "d", "e")
    check(arena, model, [Route(("b", "d", "e"), (1.0, 0.5, 0.25))], adapters)


def test_a_batch_never_evicts_its_own_adapters():
    model = base()
    arena = Arena(model.get_submodule, 6)
    reads = {name: adapter({"wide": factors(3, WIDTHS["wide"], torch.Generator())}) for name in "abc"}
    arena.place("a", reads["a"])
    arena.place("b", reads["b"])
    with pytest.raises(CapacityError, match=r"needs adapters of 9 ranks in all but the arena holds 6\."):
        arena.place("c", reads["c"], keep="abc")
    assert arena.names == ("a", "b")


def test_memory_is_taken_as_it_is_needed_and_not_beyond_the_capacity():
    model = base()
    arena = Arena(model.get_submodule, 20)
    assert arena.nbytes == 0
    row = 8 * (6 + 10 + 1)
    for index, rows in enumerate([3, 6, 12, 12, 20, 20]):
        arena.place(str(index), adapter({"wide": factors(3, WIDTHS["wide"], torch.Generator())}))
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
        arena.place(name, read)
    x = torch.randn(3, 4, 6, dtype=torch.float64) * 1e3
    routes = [Route.to("huge"), Route(), Route.to("tame")]
    with torch.no_grad(), arena.running(arena.plan(routes)):
        mine = model["wide"](x)
    assert not mine[0].isfinite().all()
    torch.testing.assert_close(mine[1:], slow(model["wide"], "wide", x[1:], routes[1:], adapters).detach())


def test_a_module_that_sees_part_of_the_rows_is_an_error():
    model = base()
    arena = Arena(model.get_submodule, 8)
    arena.place("a", adapter({"wide": factors(2, WIDTHS["wide"], torch.Generator())}))
    with arena.running(arena.plan([Route.to("a")] * 2)), pytest.raises(InputError, match="Found 3 at wide"):
        model["wide"](torch.zeros(3, 6, dtype=torch.float64))


def test_half_precision_follows_the_base():
    model = base().to(torch.bfloat16)
    low = factors(4, WIDTHS["wide"], torch.Generator().manual_seed(0), "output", "gelu", biased=True)
    arena = Arena(model.get_submodule, 8)
    arena.place("a", adapter({"wide": low}))
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
