"""An encoder without a model, and a process that serves routes of a registry, to look at from outside."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from adapterhub.registry import Registry
from adapterhub.router import Background, Router


@dataclass
class TableEncoder:
    """Looks vectors up; other texts get a direction of their own, which only equal texts share."""

    table: Mapping[str, np.ndarray] = field(default_factory=dict)
    fingerprint: str = field(default_factory=lambda: Background.shipped().fingerprint)
    dimension: int = 384

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        found = [self.table[text] if text in self.table else self._own(text) for text in texts]
        return np.stack(found) if found else np.empty((0, self.dimension), dtype=np.float32)

    def _own(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        drawn = np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)
        return drawn / np.linalg.norm(drawn)


def resident() -> float:
    """MB of memory that this process holds."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Serving:
    """Another process with a router over the same registry. Use it as a context."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "benchmarks._registry_serving", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started = self._answer()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, texts: Sequence[str]) -> dict:
        """The first task of each text, the milliseconds that it took, and the memory held."""
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the serving process ended with {self._process.wait()}")
        return json.loads(line)


def _serve(url: str) -> None:
    before = resident()
    begin = time.perf_counter()
    router = Router(Registry(url), TableEncoder())
    ready = 1000 * (time.perf_counter() - begin)
    print(json.dumps({"ms": ready, "before": before, "resident": resident()}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        decisions = router.decide(json.loads(line))
        took = 1000 * (time.perf_counter() - begin)
        tasks = [decision.candidates[0].task if decision.candidates else None for decision in decisions]
        print(json.dumps({"tasks": tasks, "ms": took, "resident": resident()}), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
