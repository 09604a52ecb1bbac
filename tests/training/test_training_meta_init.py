"""A starting point for new adapters: what it is, that it is the same again, and that it helps."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workshop import COLOURS, THINGS, card, llama_base, rows

from adapterhub.adapter import content_hash, describe_base, read_adapter, sealed_stack
from adapterhub.errors import DataError, IncompatibleAdapterError, InputError, IntegrityError, TaskNotFoundError
from adapterhub.model import load_base
from adapterhub.registry import Registry
from adapterhub.task import Task
from adapterhub.training import DivergedError, MetaInit, Trainer, base_id, meta_init
from adapterhub.training._reptile import reptile_step

WEIGHTS = "adapter_model.safetensors"
OPTIONS = {"rank": 4, "learning_rate": 1e-2, "batch_size": 8, "validation": 0, "progress": False}
HEADS = ("generation", "classification")
CARDS = {f"tests/{head}": card(head) for head in HEADS}
DATA = {f"tests/{head}": rows(head, 40) for head in HEADS}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("meta")
    llama_base(root / "_base")
    return Registry(root)


def learn(registry: Registry, out: Path, data=DATA, cards=CARDS, **options: object) -> MetaInit:
    outer = {name: options.pop(name) for name in ("steps", "inner_steps", "epsilon") if name in options}
    return meta_init(Trainer(registry, **OPTIONS | options), data, cards, out=out, **{"steps": 3, **outer})  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def test_a_starting_point_is_a_sealed_folder_without_a_head(registry: Registry, tmp_path: Path) -> None:
    found = learn(registry, tmp_path / "new" / "start")
    assert (found.folder, found.tasks) == (tmp_path / "new/start", tuple(DATA))
    assert found.sha256 == content_hash(found.folder)
    assert len(found.losses) == 3
    assert sealed_stack(found.folder) == {}
    assert {name.split(".")[-2] for name in weights(found.folder)} == {"lora_A", "lora_B"}
    place = str(registry.root / "_base")
    adapter = read_adapter(found.folder, describe_base(load_base(place)[0], base_id(place)))
    assert {low.rank for low in adapter.modules.values()} == {4}
    assert any(float(value.abs().max()) > 0 for name, value in weights(found.folder).items() if "lora_B" in name)
    assert len(registry) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["start"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(registry: Registry, tmp_path: Path) -> None:
    hashes = [learn(registry, tmp_path / name, seed=seed).sha256 for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_one_outer_step_is_the_formula_over_what_fit_makes_of_each_task(registry: Registry, tmp_path: Path) -> None:
    """Slow reference: the tasks trained one by one by `Session`, their ends put together by `reptile_step`."""
    names = ("tests/one", "tests/two")
    cards = {name: card("generation", name=name) for name in names}
    data = {name: rows("generation", 8, seed=seed) for seed, name in enumerate(names)}  # one batch holds every row
    found = learn(registry, tmp_path / "meta", data, cards, steps=1, inner_steps=3, epsilon=0.5)
    ends = []
    for name in names:
        with Trainer(registry, **OPTIONS).session([name], cards) as session:  # type: ignore[arg-type]
            if not ends:
                session.deliver(register=False, out=tmp_path / "fresh")
            for _ in range(3):
                session.train_step(data[name], name)
            session.deliver(register=False, out=tmp_path / "ends")
        ends.append(weights(tmp_path / "ends" / name))
    fresh = weights(tmp_path / "fresh" / names[0])
    for key, value in weights(found.folder).items():
        flat = torch.stack([end[key].flatten() for end in ends])
        wanted = reptile_step(fresh[key].flatten(), flat, 0.5).view_as(value)
        assert (value - wanted).abs().max() < 1e-4, key  # the rows' order within the batch differs


def test_the_order_of_the_tasks_does_not_matter(registry: Registry, tmp_path: Path) -> None:
    cards = {name: card("generation", name=name) for name in ("tests/one", "tests/two")}
    data = {name: rows("generation", 24, seed=seed) for seed, name in enumerate(cards)}
    one = learn(registry, tmp_path / "a", data, cards)
    other = learn(registry, tmp_path / "b", dict(reversed(data.items())), cards)
    for key, value in weights(one.folder).items():
        torch.testing.assert_close(weights(other.folder)[key], value, rtol=1e-3, atol=1e-5)


def test_fit_begins_there_whatever_the_head(registry: Registry, tmp_path: Path) -> None:
    start = learn(registry, tmp_path / "start")
    for head in ("generation", "classification", "regression", "token-classification"):
        name = f"tests/{head}"
        trainer = Trainer(registry, **OPTIONS | {"max_steps": 1, "learning_rate": 1e-12})  # type: ignore[arg-type]
        data, cards = {name: rows(head, 8)}, {name: card(head)}
        for place in (start.folder, str(start.folder)):
            out = tmp_path / head / type(place).__name__
            found = trainer.fit(data, cards, init_from={name: place}, register=False, out=out)[name]
            begun = weights(found.folder)
            for key, value in weights(start.folder).items():
                assert (begun[key] - value).abs().max() < 1e-6, key


def test_a_bottleneck_has_a_starting_point_too(registry: Registry, tmp_path: Path) -> None:
    start = learn(registry, tmp_path / "start", method="bottleneck")
    name = "tests/classification"
    trainer = Trainer(registry, **OPTIONS | {"method": "bottleneck", "max_steps": 1})  # type: ignore[arg-type]
    trainer.fit({name: DATA[name]}, CARDS, init_from={name: start.folder}, register=False, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"same method, rank and targets\. Found .*start, which differs"):
        Trainer(registry, **OPTIONS).fit(  # type: ignore[arg-type]
            {name: DATA[name]}, CARDS, init_from={name: start.folder}, register=False, out=tmp_path / "other"
        )


def test_a_folder_of_another_base_or_with_changed_bytes_is_no_start(registry: Registry, tmp_path: Path) -> None:
    start = learn(registry, tmp_path / "start").folder
    name = "tests/generation"
    other = Registry(tmp_path / "other")
    llama_base(other.root / "_base")
    (other.root / "_base/adapterhub.json").write_text('{"id": "tests/other"}')
    fit = {"init_from": {name: start}, "register": False}
    with pytest.raises(IncompatibleAdapterError, match=r"base_model should be tests/other\. Found tests/tiny-llama"):
        Trainer(other, **OPTIONS).fit({name: DATA[name]}, CARDS, **fit, out=tmp_path / "a")  # type: ignore[arg-type]
    data = bytearray((start / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (start / WEIGHTS).write_bytes(data)
    with pytest.raises(IntegrityError, match="should have sha256"):
        Trainer(registry, **OPTIONS).fit({name: DATA[name]}, CARDS, **fit, out=tmp_path / "b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("./none", InputError, r"with the adapter of a task or with a PEFT folder\. Found neither at ./none"),
        ("tests/none", TaskNotFoundError, "No task 'tests/none'"),
    ],
)
def test_a_start_that_is_nowhere_is_told(registry: Registry, place: str, error: type, message: str) -> None:
    name = "tests/generation"
    with pytest.raises(error, match=message):
        Trainer(registry, **OPTIONS).fit({name: DATA[name]}, CARDS, init_from={name: place})  # type: ignore[arg-type]


def test_what_gives_no_starting_point_is_told_at_once(registry: Registry, tmp_path: Path) -> None:
    one = {"tests/generation": DATA["tests/generation"]}
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError) as told:
        learn(registry, tmp_path / "taken", one, steps=0, inner_steps=True, epsilon=float("nan"))
    for said in ("`steps` should", "`inner_steps` should", "`epsilon` should be a number in (0, 1]. Found nan",
                 "two tasks or more. Found 1", "Found something at"):  # fmt: skip
        assert said in str(told.value), said
    llama_base(registry.root / "_second")
    cards: Mapping[str, Task] = {**CARDS, "tests/generation": card("generation", base_model="_second")}
    with pytest.raises(InputError, match=r"on one base model\. Found .*_base, .*_second"):
        learn(registry, tmp_path / "a", cards=cards)
    bad = {**DATA, "tests/classification": [{"input": "x", "label": "purple"}]}
    with pytest.raises(DataError, match="purple"):
        learn(registry, tmp_path / "a", bad)
    with pytest.raises(TaskNotFoundError, match="tests/unknown"):
        learn(registry, tmp_path / "a", {**DATA, "tests/unknown": []})
    with pytest.raises(DivergedError, match="in the batch of tests/"):
        learn(registry, tmp_path / "a", learning_rate=1e30)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


FAMILY = ("first", "second", "third", "fourth", "new")


def family_rows(member: str, head: str, count: int, seed: int) -> list[dict[str, object]]:
    """Related tasks: each answers the colour that a sentence names with another one, by a permutation of its own."""
    others = list(permutations(COLOURS))
    random.Random(5).shuffle(others)
    answers = dict(zip(COLOURS, others[FAMILY.index(member)], strict=True))
    chance = random.Random(f"{member} {seed}")
    field = "output" if head == "generation" else "label"
    found: list[dict[str, object]] = []
    for number in range(count):
        thing, colour = chance.choice(THINGS), chance.choice(COLOURS)
        found.append({"input": f"{number}: the {thing} is {colour}.", field: answers[colour]})
    return found


def held_out_losses(registry: Registry, head: str, out: Path, seed: int) -> tuple[float, float]:
    """Validation loss of a task that was not seen, after ten steps: from the starting point, and from fresh weights."""
    cards = {f"tests/{member}": card(head, name=f"tests/{member}") for member in FAMILY}
    known = {f"tests/{member}": family_rows(member, head, 48, seed) for member in FAMILY[:-1]}
    start = learn(registry, out / "start", known, cards, steps=20, seed=seed)
    name = "tests/new"
    held = {"validation": family_rows("new", head, 48, seed + 100)}
    trainer = Trainer(registry, **OPTIONS | {"max_steps": 10, "seed": seed} | held)  # type: ignore[arg-type]
    data = {name: family_rows("new", head, 24, seed)}
    begun = trainer.fit(data, cards, init_from={name: start.folder}, register=False, out=out / "begun")[name]
    fresh = trainer.fit(data, cards, register=False, out=out / "fresh")[name]
    assert begun.validation_loss is not None
    assert fresh.validation_loss is not None
    return begun.validation_loss, fresh.validation_loss


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_task_that_was_not_seen_is_learned_in_fewer_steps(registry: Registry, head: str, tmp_path: Path) -> None:
    found = [held_out_losses(registry, head, tmp_path / str(seed), seed) for seed in range(5)]
    assert all(begun < 0.5 * fresh for begun, fresh in found), found
