"""`convert`, `mix` and `merge`: what other programs load, made of adapters: plain LoRA folders, or a plain model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli._options import JsonOption, RegistryOption, open_registry
from adapterhub.cli._print import hint, out, print_json
from adapterhub.cli._run import Told
from adapterhub.errors import InputError
from adapterhub.route import Route

if TYPE_CHECKING:
    from adapterhub.registry import Registry

__all__ = ["convert", "merge", "mix"]

# What vLLM's --max-lora-rank may be.
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def convert(
    folder: Annotated[Path, typer.Argument(help="PEFT folder of an adapter: LoHa, LoKr, VeRA, …")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    base: Annotated[str, typer.Option(help="Base model that it was trained on: folder or Hub id.")],
    rank: Annotated[int | None, typer.Option(help="Rank at every module.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead of a rank: the share of ‖ΔW‖² to keep at every module, up to 1.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Convert an adapter of another method to LoRA, as far as a rank allows, and say what was lost."""
    if (rank is None) == (energy is None):
        raise InputError(
            "A conversion has a rank or a share of energy to keep. "
            f"Found {'neither' if rank is None else 'both'}. Give --rank 16, or --energy 0.99."
        )
    from adapterhub.adapter import convert_to_lora
    from adapterhub.model import load_base
    from adapterhub.training import base_id

    kept = rank if rank is not None else energy
    assert kept is not None
    made = convert_to_lora(folder, load_base(base)[0], target, rank=kept, model_id=base_id(base))
    if json:
        print_json(
            {
                "folder": str(target),
                "sha256": made.sha256,
                "method": made.method,
                "rank": made.rank,
                "error": made.error,
            }
        )
    else:
        out.print(str(target), markup=False, soft_wrap=True)
    hint(f"{made.method} as LoRA of rank {made.rank}: {made.error:.2%} of ΔW is lost")
    hint(f"Next: adapterhub add CARD --name GROUP/TASK -a {target}")


def mix(
    parts: Annotated[list[str], typer.Argument(metavar="TASK=GATE…", help="language/grammar=0.6 knowledge/trivia=0.4")],
    target: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    rank: Annotated[
        int | None, typer.Option(help="Fill up with zeros to this rank. Default: the sum of the ranks.")
    ] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Export a weighted sum of tasks' LoRA adapters as one plain PEFT adapter: exact, for PEFT and vLLM.

    What the tasks' adapters stand on is in the sum.
    """
    tasks = open_registry(registry)
    route = _route(parts)
    base = _base_of(tasks, route)

    from adapterhub.adapter import describe_base, export_mixture, mixture_rank, read_adapter
    from adapterhub.model import load_base
    from adapterhub.training import base_id

    signature = describe_base(load_base(base)[0], base_id(base))
    adapters = [
        (read_adapter(folder, signature, sha256=content), gate)
        for (folder, content), gate in _with_stacks(tasks, route).items()
    ]
    sha256 = export_mixture(adapters, signature, target, rank=rank)
    largest = rank or mixture_rank(adapters)
    if json:
        gates = [{"name": name, "gate": gate} for name, gate in zip(route.adapters, route.gates, strict=True)]
        print_json({"folder": str(target), "sha256": sha256, "base": base, "rank": largest, "adapters": gates})
    else:
        out.print(str(target), markup=False, soft_wrap=True)
    room = next((size for size in _VLLM_RANKS if size >= largest), None)
    hint(
        f"rank {largest}; too large for vLLM, which ends at {_VLLM_RANKS[-1]}"
        if room is None
        else f"Next: vllm serve {base} --enable-lora --max-lora-rank {room} --lora-modules mix={target}"
    )


def merge(
    parts: Annotated[list[str], typer.Argument(metavar="TASK[=GATE]…", help="language/grammar, or several with gates")],
    target: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    registry: RegistryOption = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hub id. Default: what the cards name.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fold tasks' adapters into a copy of the base: a plain model of transformers, for programs that know no adapters.

    What the tasks' adapters stand on is in it too.
    """
    if target.exists() or target.is_symlink():
        raise InputError(f"A model is written into a new folder. Found something at {target}. Give another path.")
    tasks = open_registry(registry)
    route = _route([part if "=" in part else f"{part}=1" for part in parts])
    folder = base or _base_of(tasks, route)

    from adapterhub.model import RoutedModel

    model = RoutedModel.from_pretrained(folder, tasks, router=Told(route.adapters[0]))
    plain = model.merge(route)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / "model"
        plain.save_pretrained(made)
        model.tokenizer.save_pretrained(made)
        made.rename(target)
    if json:
        gates = [{"name": name, "gate": gate} for name, gate in zip(route.adapters, route.gates, strict=True)]
        print_json({"folder": str(target), "base": folder, "adapters": gates})
    else:
        out.print(str(target), markup=False, soft_wrap=True)
    hint(f"Its inputs are the card's prompt: {tasks[route.adapters[0]].prompt!r}")


def _with_stacks(tasks: Registry, route: Route) -> dict[tuple[Path, str | None], float]:
    """The gate of each adapter of a route and of those that they stand on, by folder and content hash."""
    found: dict[tuple[Path, str | None], float] = {}
    for name, gate in zip(route.adapters, route.gates, strict=True):
        own = tasks.adapter_path(name)
        assert own is not None
        for key in ((own, tasks[name].sha256), *((one.folder, one.sha256) for one in tasks.below(name))):
            found[key] = found.get(key, 0.0) + gate
    return found


def _route(parts: list[str]) -> Route:
    """`TASK=GATE` by `TASK=GATE`; every one that is not is told."""
    names, gates, faults = [], [], []
    for part in parts:
        name, _, gate = part.rpartition("=")
        try:
            gates.append(float(gate))
        except ValueError:
            faults.append(part)
        if not name and part not in faults:
            faults.append(part)
        names.append(name)
    if faults:
        raise InputError(
            f"A part of a mixture is TASK=GATE. Found {', '.join(faults)}. Write for instance language/grammar=0.6"
        )
    return Route(tuple(names), tuple(gates))


def _base_of(tasks: Registry, route: Route) -> str:
    """The base that all tasks of a route share, each of which has an adapter."""
    bare = [name for name in route.adapters if tasks[name].adapter is None]
    if bare:
        raise InputError(
            f"A task of a mixture has an adapter. Found none for {', '.join(bare)}. Next: adapterhub train"
        )
    bases = sorted({tasks.base_path(name) for name in route.adapters})
    if len(bases) != 1:
        raise InputError(f"The tasks of a mixture share one base model. Found {', '.join(bases)}. Mix within one.")
    return bases[0]
