"""The compiled kernel as the engine calls it: found once a process, tried before it is trusted."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.compiled import NoKernelError, opened
from adapterhub.engine._jobs import BankOf, Jobs

__all__ = ["SWITCH", "Library", "Native"]

SWITCH = "ADAPTERHUB_KERNEL"
_SOURCES = tuple(Path(__file__).with_name(name) for name in ("lanes.c", "tiles.c", "kernel.c"))
_lock = threading.Lock()

Call = Callable[[int, int, int, int, int], int]


@dataclass(frozen=True)
class Library:
    """The kernel's functions: addresses of jobs, bank, what is read and what is written, and threads, to 0 or a fault.

    Args:
        apply: Adds the sums of x to y.
        read: The first half, x to activations, (hidden,) float32.
        add: The second half, activations to y.
        threads: Whether it runs in torch's own threads; else in one.
    """

    apply: Call
    read: Call
    add: Call
    threads: bool


class Native:
    """The kernel of one engine, compiled and loaded when a plan first wants it.

    Args:
        wanted: Whether it may be used; the environment variable ADAPTERHUB_KERNEL=0 says no for all engines.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._refused = None if wanted else "switched off by `kernel=False`"
        if wanted and os.environ.get(SWITCH, "").lower() in {"0", "false", "no", "off"}:
            self._refused = f"switched off by {SWITCH}"

    @property
    def functions(self) -> Library | None:
        """The kernel's functions, or None where there is none."""
        found = self._refused or _found()
        return None if isinstance(found, str) else found

    @property
    def state(self) -> str:
        """Whether it is compiled, or why not; for people."""
        found = self._refused or _found()
        if isinstance(found, str):
            return f"none, {found}"
        return "compiled, in torch's threads" if found.threads else "compiled, in one thread"


def _found() -> Library | str:
    with _lock:  # one thread compiles, the others wait for it
        return _loaded()


@functools.cache
def _loaded() -> Library | str:
    """The library, or why there is none."""
    if sys.platform == "win32":
        return "it is not built on Windows"
    try:
        library = _bound(opened(*_SOURCES))
    except NoKernelError as reason:
        if "no C compiler" not in str(reason):
            warnings.warn(f"The engine goes on without its compiled kernel: {reason}.", stacklevel=2)
        return str(reason)
    if not _holds(library):
        warnings.warn("The engine goes on without its compiled kernel: it failed its self-check.", stacklevel=2)
        return "it failed its self-check"
    return library


def _bound(library: ctypes.CDLL) -> Library:
    apply, read, add = calls = [getattr(library, f"adapterhub_{name}") for name in ("apply", "read", "add")]
    for call in calls:
        call.argtypes, call.restype = [*[ctypes.c_void_p] * 4, ctypes.c_int], ctypes.c_int
    team = _team()
    if team is not None:
        library.adapterhub_threads.argtypes, library.adapterhub_threads.restype = [ctypes.c_void_p] * 4, None
        library.adapterhub_threads(*team)
    return Library(apply, read, add, threads=team is not None)


def _team() -> list[int | None] | None:
    """How to run in the threads of the OpenMP runtime that torch itself is linked with; None where it has none."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        runtime = ctypes.CDLL(str(path))  # it is loaded already; its symbols are searched first, then its libraries'
        names = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num", "GOMP_barrier")
        return [ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value for name in names]
    except (OSError, AttributeError):
        return None


def _holds(library: Library) -> bool:
    """Whether the kernel gives what torch does: uneven widths and ranks, both dtypes, whole and in halves."""
    random = torch.Generator().manual_seed(0)
    ranks, rows, d_in, d_out = (3, 16, 12, 1), 7, 333, 270
    starts = [sum(ranks[:i]) + 2 for i in range(len(ranks))]
    gates = torch.randn(rows, len(ranks), generator=random, dtype=torch.float64)
    gates[2], gates[3, 1:], gates[5, 0] = 0, 0, 0
    jobs = Jobs(gates, list(zip(starts, ranks, strict=True)), 1)
    spread = torch.zeros(rows, sum(ranks) + 2, dtype=torch.float64)
    for column, (start, rank) in enumerate(zip(starts, ranks, strict=True)):
        spread[:, start : start + rank] = gates[:, column : column + 1]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        x, y = (torch.randn(rows, d, generator=random).to(dtype) for d in (d_in, d_out))
        down, up = (torch.randn(sum(ranks) + 2, d, generator=random).to(dtype) for d in (d_in, d_out))
        expected = y.double() + (x.double() @ down.double().T * spread) @ up.double()
        bank = BankOf(down, up)
        found = []
        for threads in (1, 2 if torch.get_num_threads() > 1 else 1):
            mine, h = y.clone(), torch.empty(jobs.hidden)
            faults = library.read(jobs.address, bank.address, x.data_ptr(), h.data_ptr(), threads)
            faults += library.add(jobs.address, bank.address, h.data_ptr(), mine.data_ptr(), threads)
            whole = y.clone()
            faults += library.apply(jobs.address, bank.address, x.data_ptr(), whole.data_ptr(), threads)
            found += [mine, whole]
        far = (found[0].double() - expected).abs().max() / expected.abs().max()
        if faults or not far < tolerance or not all(torch.equal(found[0], other) for other in found[1:]):
            return False
    return True
