"""Every method, alone and mixed: the engine equals PEFT, and for mixtures the plain formula, whatever the batch."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Barrier

import pytest
import torch
from engine_cases import Case, cases, distance, run
from engine_peft import ATTENTION, BASES, METHODS, MLP, SEQUENCE, engine_of, lora, make_methods, reference, save
from engine_reference import answer, in_double
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapterhub.adapter import describe_base, read_adapter
from adapterhub.engine import Engine
from adapterhub.engine._library import Native
from adapterhub.route import Route

PLANS = (None, "dense", "packed", "blocked", "segment", "kernel")


def bounded(examples: int) -> settings:
    """Always the same examples, so that a run says the same everywhere; a failure is told at once, unshrunk."""
    return settings(
        max_examples=examples,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.fixture(scope="module", params=BASES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(kind, tmp_path_factory):
    """An adapter of every method, and two with heads where the base has classes for them."""
    root = tmp_path_factory.mktemp(f"methods-{kind}")
    made = make_methods(kind, root)
    if kind in SEQUENCE and kind != "bert":
        made["sequence"] = save(kind, root / "sequence", lora(kind, ATTENTION[kind], 4, task_type="SEQ_CLS"), 20)
        made["tokens"] = save(kind, root / "tokens", lora(kind, MLP[kind], 7, task_type="TOKEN_CLS"), 21)
    return made


@pytest.fixture(scope="module")
def adapters(kind, folders):
    base = describe_base(BASES[kind](), f"tests/{kind}")
    return {name: read_adapter(folder, base) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def engines(kind, folders):
    """An engine for every plan that there is here and one without a kernel, each on a base of its own."""
    plans = [plan for plan in PLANS if plan != "kernel" or Native().functions is not None]
    return {
        "torch": engine_of(kind, folders, kernel=False),
        **{plan: engine_of(kind, folders, plan=plan) for plan in plans},
    }


@pytest.fixture(scope="module")
def peers(kind, folders):
    """PEFT's own models, made when they are first asked for."""
    return cache(lambda name: reference(kind, folders[name]))


def plain(kind, adapters, case, model=None):
    """The formula, row by row."""
    model = model or BASES[kind]()
    return [
        answer(model, adapters, route, case.tokens(row), case.decoder_input_ids[row] if kind == "t5" else None)
        for row, route in enumerate(case.routes)
    ]


def is_the_sum(kind, adapters, case, mine):
    """Within 1e-5 of the formula; where float32 is not as good as that, about as near to float64 as the formula is."""
    single = plain(kind, adapters, case)
    if distance(mine, single) < 1e-5:
        return True
    doubled = {name: in_double(adapter) for name, adapter in adapters.items()}
    exact = plain(kind, doubled, case, BASES[kind]().double())
    return distance(mine, exact) < 3 * distance(single, exact)


def peft(kind, model, case):
    """PEFT's answers, row by row."""
    return plain(kind, {}, replace(case, routes=[Route()] * len(case.routes)), model)


def to_one(name, case):
    """The batch with every row under one adapter."""
    return replace(case, routes=[Route.to(name)] * len(case.routes))


# Only what is drawn goes through `given`: its report of a failure prints every argument, and fixtures are long.


@pytest.mark.parametrize("name", METHODS)
def test_a_method_alone_equals_peft(kind, name, peers, engines):
    @bounded(3)
    @given(case=cases([name], most=0))
    def check(case):
        mine = run(engines[None], to_one(name, case), kind=kind)
        assert distance(mine, peft(kind, peers(name), case)) < 1e-5

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_any_rank_equals_peft(kind, name):
    @bounded(17)
    @given(rank=st.integers(1, 17), case=cases([name], most=0))
    def check(rank, case):
        with tempfile.TemporaryDirectory() as root:
            folders = make_methods(kind, Path(root), [name], rank=rank)
            case = to_one(name, case)
            with engine_of(kind, folders) as engine:
                mine = run(engine, case, kind=kind)
            same = distance(mine, peft(kind, reference(kind, folders[name]), case)) < 1e-5
            # A large rsLoRA scale in Mamba: PEFT's own float32 is farther than that from float64.
            assert same or is_the_sum(kind, {name: read_adapter(folders[name], engine.base)}, case, mine)

    check()


@pytest.mark.parametrize("examples", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_mixtures_equal_the_plain_formula(kind, adapters, engines, examples):
    @bounded(examples)
    @given(case=cases(sorted(adapters)), plan=st.sampled_from(list(engines)))
    def check(case, plan):
        assert is_the_sum(kind, adapters, case, run(engines[plan], case, kind=kind))

    check()


@pytest.mark.parametrize("examples", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_every_plan_gives_the_same_answers(kind, adapters, engines, examples):
    @bounded(examples)
    @given(case=cases(sorted(adapters)))
    def check(case):
        dense, *others = (run(engines[plan], case, kind=kind) for plan in ("dense", "packed", "segment"))
        for other in others:
            assert distance(other, dense) < 1e-5

    check()


def test_permuting_the_rows_permutes_the_answers(kind, adapters, engines):
    @bounded(5)
    @given(case=cases(sorted(adapters)), by=st.randoms(use_true_random=False))
    def check(case, by):
        order = by.sample(range(len(case.routes)), len(case.routes))
        answers = run(engines[None], case, kind=kind)
        assert distance(run(engines[None], case.reordered(order), kind=kind), [answers[row] for row in order]) < 1e-5

    check()


@pytest.mark.parametrize("plan", ["dense", "packed", "segment"])
def test_rows_of_the_base_are_the_base_to_the_bit(kind, adapters, engines, plan):
    @bounded(3)
    @given(case=cases(sorted(adapters)), bare=st.lists(st.booleans(), min_size=6, max_size=6))
    def check(case, bare):
        mixed = [Route() if empty else route for empty, route in zip(bare, case.routes, strict=False)]
        mine = run(engines[plan], replace(case, routes=mixed), kind=kind)
        base = run(engines[plan], replace(case, routes=[Route()] * len(mixed)), kind=kind)
        for row, route in enumerate(mixed):
            assert route.adapters or torch.equal(mine[row], base[row])

    check()


def test_eviction_and_adapters_that_no_row_uses_change_nothing(kind, folders):
    names = [name for name in folders if name not in {"sequence", "tokens"}]
    used, idle = names[::2], names[1::2]

    @bounded(3)
    @given(case=cases(used))
    def check(case):
        with engine_of(kind, folders) as engine:
            first = run(engine, case, kind=kind)
            for name in idle:
                engine.load(name)
            assert all(torch.equal(*pair) for pair in zip(run(engine, case, kind=kind), first, strict=True))
            for name in used:
                engine.evict(name)
            assert set(engine.loaded) == set(idle)
            assert all(torch.equal(*pair) for pair in zip(run(engine, case, kind=kind), first, strict=True))

    check()


def test_bfloat16_stays_near_the_formula_in_float32(kind, folders, adapters):
    """Its distance is of the size of PEFT's own, over all methods."""
    rounded = BASES[kind]().to(torch.bfloat16)
    case = fixed_case(sorted(set(folders) - {"sequence", "tokens"}))
    with Engine(rounded, model_id=f"tests/{kind}") as engine:
        for name, folder in folders.items():
            engine.add(name, folder)
        mine = run(engine, case, kind=kind)
    exact = plain(kind, adapters, case, BASES[kind]().to(torch.bfloat16).float())
    theirs = [
        peft(kind, reference(kind, folders[route.adapters[0]]).to(torch.bfloat16), case.reordered([row]))[0]
        for row, route in enumerate(case.routes)
    ]
    assert distance(mine, exact) < 1.5 * distance(theirs, exact) + 0.01


def fixed_case(names):
    """One row for each adapter."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, 96, (len(names), 9), generator=generator)
    return Case(ids, torch.ones_like(ids), [Route.to(name) for name in names], ids[:, :2])


@pytest.mark.parametrize("shared", [False, True], ids=["two-engines", "one-engine"])
def test_two_threads_do_not_disturb_each_other(kind, folders, adapters, shared):
    names = sorted(set(folders) - {"sequence", "tokens"})
    halves = [fixed_case(names[::2]), fixed_case(names[1::2])]
    first = engine_of(kind, folders)
    engines = [first, first if shared else engine_of(kind, folders)]
    expected = [plain(kind, adapters, case) for case in halves]
    start = Barrier(2)

    def work(which):
        start.wait()
        return [run(engines[which], halves[which], kind=kind) for _ in range(4)]

    with ThreadPoolExecutor(2) as threads:
        rounds = list(threads.map(work, range(2)))
    for answers, exact in zip(rounds, expected, strict=True):
        assert all(distance(answer, exact) < 1e-5 for answer in answers)
    for engine in engines:
        engine.close()
