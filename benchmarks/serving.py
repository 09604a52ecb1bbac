"""How fast do eight tasks answer: eight full models one after another, or one pass over a hub of eight adapters?

Adapters are random, of rank 8 on q, k, v and o; a full model is the base with one of them merged into it. Before
anything is timed, both give the same answers. Every request comes with its task; "routed" lets the router find it, its
encoder included, among tasks whose examples are the requests themselves. Cold: nothing is in the process yet, but the
system may have the files in memory. Warm: eight requests, one a task. Batch: 64 requests, eight a task.

One full model that answers one request is a row too: a hub that is as fast has nothing left to gain, and then eight
models take eight times as long. The table of more tasks has one request a task, cold.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub.adapter import describe_base
from adapterhub.model import RoutedModel
from adapterhub.registry import Registry, bundled_registry
from adapterhub.task import Task
from adapterhub.training import base_id
from benchmarks._measure import THREADS, Spread
from benchmarks._models import ATTENTION, Setting, linear_widths, write_adapter
from benchmarks._training_tables import speed_table
from benchmarks._training_world import Told
from benchmarks.report import Target, arguments, save

TASKS, RANK, NEW_TOKENS, EACH = 8, 8, 16, 8
MORE: Mapping[bool, tuple[int, ...]] = {False: (8, 16, 32, 64), True: (8, 16)}  # tasks; of the large base or not
THINGS = ("rivers", "kitchens", "engines", "birds", "ledgers", "violins", "glaciers", "bridges")
LARGE = Setting("84M", 768, 12, 2048, ATTENTION, (RANK,), vocabulary=4096)
SEPARATE, TOLD, ROUTED = "eight full models", "hub, task given", "hub, routed"
ONE = "one full model, one request"

QUESTION = "How fast do eight tasks answer: eight full models one after another, or one pass over a hub?"

Row = dict[str, object]
Times = dict[str, dict[str, Spread]]


def main() -> None:
    args = arguments(QUESTION)
    rows: list[Row] = []
    more: list[Row] = []
    targets: list[Target] = []
    for base, large in (("6M", False), ("84M", True))[: 2 if args.full else 1]:
        counts, repeats = (MORE[large], 7) if args.full else ((TASKS,), 1)
        with tempfile.TemporaryDirectory() as scratch:
            times = _times(_world(Path(scratch) / "hub", TASKS, large=large), repeats)
            larger = _world(Path(scratch) / "larger", max(counts), large=large)
            more += [{"base": base, **row} for row in _grown(larger, counts, (repeats + 1) // 2)]
        rows += [{"base": base, **row} for row in speed_table(times, SEPARATE)]
        faster = times["cold"][SEPARATE].median / times["cold"][TOLD].median
        targets.append(Target(f"{base}, cold: eight models ÷ hub (the guide's claim)", faster, 10.0, "higher"))
    tables = {"More tasks, cold: as many full models ÷ hub": more}
    save("serving", QUESTION, rows, targets, (), folder=args.results, tables=tables)


@dataclass(frozen=True)
class World:
    """What is asked.

    Args:
        base: The base's folder.
        models: Each task's full model, by the task's name.
        registry: The hub.
    """

    base: Path
    models: Mapping[str, Path]
    registry: Registry

    def first(self, count: int) -> "World":
        """With so many of the tasks."""
        return replace(self, models=dict(list(self.models.items())[:count]))

    def requests(self, each: int) -> tuple[list[str], list[str]]:
        """So many texts of every task, and their tasks."""
        pairs = [
            (_text(thing, n), name)
            for name, thing in zip(self.models, _things(len(self.models)), strict=True)
            for n in range(each)
        ]
        return [text for text, _ in pairs], [name for _, name in pairs]


def _times(world: World, repeats: int) -> Times:
    """Wall seconds with two threads, by condition and way.

    Args:
        world: All of its tasks are asked.
        repeats: Turns; the ways take turns.
    """
    torch.set_num_threads(THREADS["wall"])
    texts, names = world.requests(1)
    full = {name: _Full(path) for name, path in world.models.items()}
    told, routed = _hub(world, told=True), _hub(world, told=False)
    ways = _ways(full, told, routed)
    _check(ways, texts, names)
    many = world.requests(EACH)
    cases: dict[str, dict[str, Callable[[], object]]] = {
        "warm": {way: (lambda ask=ask: ask(texts, names)) for way, ask in ways.items()}
        | {ONE: lambda: full[names[0]].answer(texts[:1])},
        "batch": {way: (lambda ask=ask: ask(*many)) for way, ask in ways.items()},
        "cold": _cold(world)
        | {
            ROUTED: lambda: _hub(world, told=False).generate(texts),
            ONE: lambda: _Full(world.models[names[0]]).answer(texts[:1]),
        },
    }
    return {condition: _timed(rivals, repeats) for condition, rivals in cases.items()}


def _cold(world: World) -> dict[str, Callable[[], object]]:
    """One request a task, with nothing in the process."""
    texts, names = world.requests(1)
    return {
        SEPARATE: lambda: [_Full(world.models[n]).answer([t]) for t, n in zip(texts, names, strict=True)],
        TOLD: lambda: _hub(world, told=True).generate(texts, names),
    }


def _grown(world: World, counts: Sequence[int], repeats: int) -> list[Row]:
    rows: list[Row] = []
    for count in counts:
        times = _timed(_cold(world.first(count)), repeats)
        ratio = times[SEPARATE].median / times[TOLD].median
        rows.append({"tasks": count, "full models, seconds": times[SEPARATE], "hub, seconds": times[TOLD],
                     "faster": ratio})  # fmt: skip
    return rows


class _Full:
    """A model of one task."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    @torch.no_grad()
    def answer(self, texts: Sequence[str]) -> list[str]:
        found = self._tokenizer([f"{text}\n=>" for text in texts], return_tensors="pt", padding=True)
        made = self._model.generate(
            input_ids=found["input_ids"], attention_mask=found["attention_mask"],
            max_new_tokens=NEW_TOKENS, do_sample=False,
        )  # fmt: skip
        told = self._tokenizer.batch_decode(made[:, found["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in told]


Ask = Callable[[Sequence[str], Sequence[str]], list[str]]


def _ways(full: Mapping[str, _Full], told: RoutedModel, routed: RoutedModel) -> dict[str, Ask]:
    def separately(texts: Sequence[str], names: Sequence[str]) -> list[str]:
        found = dict.fromkeys(range(len(texts)), "")
        for name, model in full.items():
            places = [place for place, one in enumerate(names) if one == name]
            found |= dict(zip(places, model.answer([texts[place] for place in places]), strict=True))
        return list(found.values())

    return {
        SEPARATE: separately,
        TOLD: lambda texts, names: told.generate(texts, list(names)),
        ROUTED: lambda texts, _: routed.generate(texts),
    }


def _check(ways: Mapping[str, Ask], texts: Sequence[str], names: Sequence[str]) -> None:
    right = ways[SEPARATE](texts, names)
    for way, ask in ways.items():
        if ask(texts, names) != right:
            raise SystemExit(f"{way}: the answers are not those of the full models; nothing was timed.")


def _timed(rivals: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Spread]:
    times: dict[str, list[float]] = {way: [] for way in rivals}
    for run in rivals.values():
        run()  # once, for the system's own caches
    for _ in range(repeats):
        for way, run in rivals.items():
            begin = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - begin)
    return {way: Spread.of(found) for way, found in times.items()}


def _hub(world: World, *, told: bool) -> RoutedModel:
    return RoutedModel.from_pretrained(world.base, world.registry, router=Told() if told else None)


def _things(count: int) -> list[str]:
    """What the tasks are about."""
    return [THINGS[n % TASKS] + (f" of kind {n // TASKS}" if n >= TASKS else "") for n in range(count)]


def _text(thing: str, number: int) -> str:
    return f"Tell me something about {thing}, number {number}."


def _world(folder: Path, tasks: int, *, large: bool) -> World:
    """The base, its adapters in a registry, and the full models.

    Args:
        folder: An empty one.
        tasks: How many.
        large: A random Llama of 84M parameters instead of the embedded base.
    """
    source, base = Path(bundled_registry()) / "_base", folder / "_base"
    if large:
        model = LARGE.base()
        model.save_pretrained(base)
        AutoTokenizer.from_pretrained(source).save_pretrained(base)
    else:
        shutil.copytree(source, base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    signature = describe_base(model, base_id(str(base)))
    widths = linear_widths(model, ATTENTION)
    registry, models = Registry(folder), {}
    for number, thing in enumerate(_things(tasks)):
        with tempfile.TemporaryDirectory() as scratch:
            adapter = write_adapter(Path(scratch) / "adapter", widths, ATTENTION, RANK, number, signature)
            name = f"serving/{thing.replace(' ', '-')}"
            examples = tuple(_text(thing, n) for n in range(EACH))
            card = Task(name, f"Say something about {thing}.", examples=examples, prompt="{text}\n=>",
                        max_new_tokens=NEW_TOKENS, base_model="_base")  # fmt: skip
            registry.add(card, adapter=adapter)
            merged = PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
            ).merge_and_unload()
            models[name] = folder.with_name(folder.name + "-full") / name
            merged.save_pretrained(models[name])
            AutoTokenizer.from_pretrained(base).save_pretrained(models[name])
    return World(base, models, registry)


if __name__ == "__main__":
    main()
