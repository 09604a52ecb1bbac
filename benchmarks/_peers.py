"""Peers in environments of their own: a specification goes out as a file, tokens and times come back as one."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import BASE, Spread, ratios

SCRIPTS = Path(__file__).parent / "peers"
GATE_TOKENS = 5
LIMIT = 3600  # seconds


@dataclass(frozen=True)
class Asked:
    """One case as a peer sees it.

    Args:
        name: The case.
        kind: decode, prefill or generate.
        k: Adapters a row; the peers express 1.
        rows: The (first) adapter of every row.
        ids: Token ids of the prompts, (rows, T).
        gate_ids: Those of the gate.
        tokens: The greedy tokens that must follow them, (rows, `GATE_TOKENS`).
        new_tokens: Tokens that a generation makes.
        steps: Steps in one sample.
    """

    name: str
    kind: str
    k: int
    rows: Sequence[str]
    ids: torch.Tensor
    gate_ids: torch.Tensor
    tokens: torch.Tensor
    new_tokens: int
    steps: int


@dataclass(frozen=True)
class Answer:
    """What a peer said.

    Args:
        versions: Of its packages.
        cases: For each case and clock the × of its own base, and that base in ms; None where it cannot express it.
    """

    versions: Mapping[str, str]
    cases: Mapping[str, Mapping[str, tuple[Spread, Spread]] | None]


def ask(peer: str, python: str, model: Any, adapters: Mapping[str, Path], cases: Sequence[Asked], folder: Path,
        repeats: int, targets: Sequence[str], max_rank: int) -> Answer:  # fmt: skip
    """Run `peers/PEER_peer.py` with the Python of its environment.

    Raises:
        SystemExit: If it fails, or its greedy tokens are not the expected ones.
    """
    base = folder / "base"
    if not base.exists():
        model.save_pretrained(base)
    spec = {
        "base": str(base), "dtype": str(model.dtype)[6:], "targets": list(targets), "repeats": repeats,
        "max_rank": max_rank, "gate_tokens": GATE_TOKENS,
        "adapters": {name: str(path) for name, path in adapters.items()},
        "cases": [
            {"name": case.name, "kind": case.kind, "k": case.k, "rows": list(case.rows), "ids": case.ids.tolist(),
             "gate_ids": case.gate_ids.tolist(), "new_tokens": case.new_tokens, "steps": case.steps}
            for case in cases
        ],
    }  # fmt: skip
    asked, answered = folder / f"{peer}.asked.json", folder / f"{peer}.answered.json"
    asked.write_text(json.dumps(spec), encoding="utf-8")
    done = subprocess.run(
        [python, str(SCRIPTS / f"{peer}_peer.py"), str(asked), str(answered)],
        check=False, timeout=LIMIT, stdout=sys.stderr,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"The peer {peer} failed with status {done.returncode}; its message is above.")
    found = json.loads(answered.read_text(encoding="utf-8"))
    versions = {f"{peer}: {name}": text for name, text in found["versions"].items()}
    return Answer(versions, {case.name: _checked(peer, case, found["cases"][case.name]) for case in cases})


def _checked(peer: str, case: Asked, found: Any) -> dict[str, tuple[Spread, Spread]] | None:
    if found is None:
        return None
    if found["tokens"] != case.tokens.tolist():
        raise SystemExit(f"{case.name}: the tokens of the peer {peer} differ from PEFT's; its times are worth nothing.")
    return {clock: (ratios(times, "peer"), Spread.of(times[BASE])) for clock, times in found["times"].items()}
