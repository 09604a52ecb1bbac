"""`affinity`, `cluster`, `doctor`: which tasks belong together, and what is wrong with their data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.table import Table

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import err, hint, out, print_json
from adapterhub.cli._sources import probe_rows, sources, training_rows
from adapterhub.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from adapterhub.registry import Registry
    from adapterhub.training import DataSource
    from adapterhub.training.grouping import Affinity, Finding, Group

    Matrix: TypeAlias = NDArray[np.float64]

__all__ = ["affinity_command", "cluster", "doctor"]

DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", "-d", help="NAME=FILE, repeated; or a folder with NAME/train.jsonl."),
]
ProbeOption = Annotated[
    Path | None,
    typer.Option(help="Inputs for all tasks, each answered by the task's own adapter, instead of --data."),
]
RowsOption = Annotated[int, typer.Option(min=1, help="Rows of a task at most.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a minibatch.")]
LeastOption = Annotated[float, typer.Option(min=0, max=1, help="Refuse below this split-half reliability.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the shared adapter, the halves and the resamples.")]

_FEW = 8  # tasks of which every grouping is looked at


def affinity_command(
    names: Annotated[list[str], typer.Argument(help="Names of two or more tasks of one base model.")],
    data: DataOption = None,
    probe: ProbeOption = None,
    rows: RowsOption = 512,
    batch_size: BatchOption = 8,
    least: LeastOption = 0.4,
    seed: SeedOption = 0,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Say how far tasks pull a shared adapter the same way, with intervals; refuse where the data cannot tell."""
    tasks = open_registry(registry)
    found = _affinity(tasks, names, data, probe, rows=rows, batch_size=batch_size, least=least, seed=seed)
    if json:
        print_json(_affinity_dict(found))
    else:
        out.print(_affinity_table(found))
        hint(f"reliability {found.reliability:.2f}, by {found.estimator}, rows {', '.join(map(str, found.rows))}")
    for warning in found.warnings:
        hint(warning)
    found.trusted()


def cluster(
    names: Annotated[list[str] | None, typer.Argument(help="Names of tasks. Default: all, or those of --data.")] = None,
    by: Annotated[
        Literal["text", "adapters", "affinity"],
        typer.Option(help="What is compared: the cards' texts, what the adapters add to the weights, gradients."),
    ] = "text",
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, help="Number of groups; by affinity of few tasks, at most.")
    ] = 3,
    head: Annotated[
        Literal["generation", "classification", "token-classification", "regression"] | None,
        typer.Option(help="The head that all tasks must have. Default: any."),
    ] = None,
    target: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the groups' cards.")] = None,
    data: DataOption = None,
    probe: ProbeOption = None,
    rows: RowsOption = 512,
    batch_size: BatchOption = 8,
    least: LeastOption = 0.4,
    seed: SeedOption = 0,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Propose groups of tasks that belong together; nothing is written without --out."""
    from adapterhub.training.grouping import build_group, write_groups

    if by != "affinity" and (data or probe):
        raise InputError(f"Rows are for --by affinity. Found them with --by {by}. Leave them out.")
    tasks = open_registry(registry)
    if by == "affinity":
        chosen = names or (list(sources(data or [], [])) if probe is None else [])
        found = _affinity(tasks, chosen, data, probe, rows=rows, batch_size=batch_size, least=least, seed=seed)
        matrix = found.trusted()
    else:
        chosen, matrix = _by_text(tasks, names) if by == "text" else _by_adapters(tasks, names)
    parts = _split(matrix, k, exhaustive=by == "affinity" and len(chosen) <= _FEW)
    groups = [
        build_group(tasks, f"group-{number}", [chosen[place] for place in part], head=head)
        for number, part in enumerate(parts, start=1)
    ]
    within = [_within(matrix, part) for part in parts]
    cards = [] if target is None else write_groups(groups, target)
    if json:
        print_json([_group_dict(group, inside) for group, inside in zip(groups, within, strict=True)])
    else:
        for group, inside in zip(groups, within, strict=True):
            out.print(_line(group, inside), markup=False, soft_wrap=True)
    for line in map(str, cards) if cards else ["Nothing is written. Give --out FOLDER for the groups' cards."]:
        hint(line)


def doctor(
    names: Annotated[list[str] | None, typer.Argument(help="Names of tasks. Default: those of --data.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", help="NAME=FILE (train, validation, test by its name), NAME=FOLDER, or a folder of these."
        ),
    ] = None,
    min_rows: Annotated[int, typer.Option(min=1, help="Fewest different training inputs.")] = 50,
    affinity: Annotated[bool, typer.Option("--affinity", help="Also look for tasks that pull apart.")] = False,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Look over tasks' data: too little, unbalanced, repeated, leaked, outside the card. Status 1 with findings."""
    from adapterhub.training.grouping import examine

    tasks = open_registry(registry)
    places = sources(data or [], names or [])
    found: list[Finding] = []
    for name, splits in places.items():
        found += examine(tasks[name], splits, min_rows=min_rows)
    if affinity:
        found += _apart(tasks, places, faulty=any(one.kind in ("labels", "rows") for one in found))
    if json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            out.print(f"{one.kind}: {one.text}", markup=False, soft_wrap=True)
    if found:
        raise DataError(f"Data to train on has no faults. Found {len(found)}, listed above. Mend what is named.")
    hint(f"{len(places)} task{'s' if len(places) > 1 else ''}, no findings")


def _affinity(
    tasks: Registry,
    names: Sequence[str],
    data: list[str] | None,
    probe: Path | None,
    *,
    rows: int,
    batch_size: int,
    least: float,
    seed: int,
) -> Affinity:
    from adapterhub.training.grouping import affinity, gradients_of

    if (probe is None) == (not data):
        found = "both" if data else "neither"
        raise InputError(f"An affinity is of rows of the tasks or of a probe. Found {found}. Give --data or --probe.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"Affinity is between two different tasks or more. Found {', '.join(names) or 'none'}.")
    cards = {name: (tasks[name], tasks.base_path(name)) for name in names}  # an unknown name is told first
    given: Mapping[str, DataSource]
    given = training_rows(data or [], names) if probe is None else probe_rows(tasks, names, probe)
    with err.status("gradients"):
        gradients = gradients_of(cards, given, rows=rows, batch_size=batch_size, seed=seed)
    return affinity(gradients, least=least, seed=seed)


def _by_text(tasks: Registry, names: list[str] | None) -> tuple[list[str], Matrix]:
    from adapterhub.encoder import SentenceEncoder
    from adapterhub.training.grouping import text_similarity

    cards = [tasks[name] for name in names or tasks]  # an unknown name is told before the seconds that loading takes
    return [card.name for card in cards], text_similarity(cards, SentenceEncoder())


def _by_adapters(tasks: Registry, names: list[str] | None) -> tuple[list[str], Matrix]:
    """Of the tasks named, or of all whose adapters can be compared."""
    from adapterhub.adapter import adapter_similarity, describe_base, read_adapter
    from adapterhub.model import load_base
    from adapterhub.training import base_id

    folders = {name: tasks.adapter_path(name) for name in names or tasks}
    bare = [name for name, folder in folders.items() if folder is None]
    bases = sorted({tasks.base_path(name) for name in folders})
    if (bare and names) or len(bases) != 1:
        found = f"no adapter of {', '.join(bare)}" if bare and names else ", ".join(bases) or "no task"
        raise InputError(f"Adapters of tasks of one base model are compared. Found {found}. Name other tasks.")
    signature = describe_base(load_base(bases[0])[0], base_id(bases[0]))
    there = {name: folder for name, folder in folders.items() if folder is not None}
    adapters = {name: read_adapter(folder, signature, sha256=tasks[name].sha256) for name, folder in there.items()}
    others = [] if names else [name for name, adapter in adapters.items() if adapter.method != "LORA"]
    if bare or others:
        hint(f"Left out, since only LoRA adapters are compared: {', '.join([*bare, *others])}")
    kept = [name for name in adapters if name not in others]
    return kept, adapter_similarity([adapters[name] for name in kept])


def _split(matrix: Matrix, k: int, *, exhaustive: bool) -> list[tuple[int, ...]]:
    """The groups by the places of their tasks; where all splits are looked at there may be fewer than k."""
    from adapterhub.training.grouping import average_linkage, best_grouping, pairwise_loss

    if exhaustive:
        table = -matrix
        for place in range(len(table)):
            table[place, place] = 0  # a task alone has nothing to gain or to lose
        return best_grouping(pairwise_loss(table), len(table), k)
    labels = average_linkage(matrix, k)
    return [tuple(place for place, label in enumerate(labels) if label == group) for group in range(k)]


def _within(matrix: Matrix, part: Sequence[int]) -> float | None:
    """Mean similarity of a group's pairs; None for a task alone."""
    pairs = [float(matrix[a, b]) for a in part for b in part if a < b]
    return sum(pairs) / len(pairs) if pairs else None


def _apart(tasks: Registry, places: Mapping[str, Mapping[str, str]], *, faulty: bool) -> list[Finding]:
    """A finding for each two tasks that pull a shared adapter apart."""
    from adapterhub.training.grouping import Finding, affinity, gradients_of

    given = {name: splits["train"] for name, splits in places.items() if "train" in splits}
    if faulty or len(given) < 2:
        hint("Affinity is not looked at: it takes two tasks whose training rows can be read.")
        return []
    measured = affinity(gradients_of({name: (tasks[name], tasks.base_path(name)) for name in given}, given))
    for text in (*measured.warnings, measured.refusal):
        if text:
            hint(text)
    return [
        Finding(
            f"{a}, {b}",
            "negative-affinity",
            1,
            f"{a} and {b} pull a shared adapter apart: affinity {value:.2f}, and its whole interval is below 0. Do not "
            "put them into one group.",
        )
        for a, b, value in (() if measured.refusal else measured.negative())
    ]


def _affinity_table(found: Affinity) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "task", "affinity", "95 % interval", "inputs in common"):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for a, b in _pairs(found):
        span = f"{found.low[a, b]:+.2f} … {found.high[a, b]:+.2f}"
        cells = (found.tasks[a], found.tasks[b], f"{found.matrix[a, b]:+.2f}", span, f"{found.overlap[a, b]:.0%}")
        table.add_row(*cells)
    return table


def _affinity_dict(found: Affinity) -> dict[str, object]:
    return {
        "estimator": found.estimator,
        "reliability": None if found.reliability != found.reliability else found.reliability,
        "refusal": found.refusal,
        "warnings": list(found.warnings),
        "tasks": [{"name": name, "rows": rows} for name, rows in zip(found.tasks, found.rows, strict=True)],
        "pairs": [
            {
                "tasks": [found.tasks[a], found.tasks[b]],
                "affinity": float(found.matrix[a, b]),
                "low": float(found.low[a, b]),
                "high": float(found.high[a, b]),
                "overlap": float(found.overlap[a, b]),
            }
            for a, b in _pairs(found)
        ],
    }


def _pairs(found: Affinity) -> list[tuple[int, int]]:
    """Pairs of tasks, the most alike first."""
    size = len(found.tasks)
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    return sorted(pairs, key=lambda pair: -float(found.matrix[pair]))


def _group_dict(group: Group, within: float | None) -> dict[str, object]:
    return {**asdict(group), "tasks": list(group.tasks), "within": within}


def _line(group: Group, within: float | None) -> str:
    mean = "" if within is None else f", mean similarity {within:.2f}"
    return f"{group.name} ({group.head or 'several heads'}{mean}): {', '.join(group.tasks)}"
