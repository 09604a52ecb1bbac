"""A kernel's sources through the machine's own C compiler, once for each source, compiler and processor."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["NoKernelError", "opened"]

# Sums keep their order, and a product that is added is rounded once: a machine's results are always the same.
_FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared")
_NATIVE = (("-march=native",), ("-mcpu=native",), ())
_SECONDS = 120


class NoKernelError(Exception):
    """Why there is no kernel here."""


def opened(*sources: Path) -> ctypes.CDLL:
    """The library of source files, which are compiled as one: from the cache, or compiled into it.

    What is in the cache is named by a hash of source, flags, compiler and the processor's abilities, and by its own, so
    that neither another machine's library nor a damaged one is loaded. Without a cache to write to, the library is
    compiled for this process alone.

    Args:
        sources: C files; each knows what those before it define.

    Raises:
        NoKernelError: If there is no compiler, or it or the loader fails.
    """
    compiler = _compiler()
    target, macros = _target(compiler)
    text = b"".join(b'#line 1 "%s"\n%s\n' % (path.name.encode(), path.read_bytes()) for path in sources)
    command = [*compiler, *_FLAGS, *target]
    key = _hash(b"\0".join([text, macros, platform.machine().encode(), *map(os.fsencode, command)]))
    folder = _folder()
    found = None if folder is None else _cached(folder, key)
    if found is not None:
        return found
    # From its own private folder, in case the cache cannot be written or run from; it may be deleted once it is open.
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as temporary:
        library = _compile(command, text, Path(temporary))
        if folder is not None:
            found = _kept(folder, key, library.read_bytes())
        return found or _load(library)


def _compiler() -> list[str]:
    """The command of the first compiler that is installed."""
    names = [os.environ.get("CC"), "cc", "gcc", "clang", sysconfig.get_config_var("CC")]
    for name in names:
        command = shlex.split(name or "")
        if command and shutil.which(command[0]):
            return command
    raise NoKernelError("no C compiler was found as $CC, cc, gcc or clang")


def _target(compiler: Sequence[str]) -> tuple[Sequence[str], bytes]:
    """Flags for this processor, and what the compiler says of itself and of the processor under them."""
    for flags in _NATIVE:
        found = _run([*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull])
        if not found.returncode:
            return flags, found.stdout
    raise NoKernelError(f"{compiler[0]} does not work: {_first_line(found.stderr)}")


def _compile(command: Sequence[str], text: bytes, folder: Path) -> Path:
    source, library = folder / "kernel.c", folder / "kernel.so"
    source.write_bytes(text)
    found = _run([*command, "-o", str(library), str(source)])
    if found.returncode or not library.is_file():
        raise NoKernelError(f"{command[0]} could not compile it: {_first_line(found.stderr)}")
    return library


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernelError(f"{command[0]} does not work: {error}") from error


def _folder() -> Path | None:
    """The cache's folder, or None where it cannot be made, or others may write to it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapterhub" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # no home
        return None
    mine = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if mine else None


def _cached(folder: Path, key: str) -> ctypes.CDLL | None:
    for path in folder.glob(f"{key}-*.so"):
        try:
            if path.name == f"{key}-{_hash(path.read_bytes())}.so":
                return _load(path)
        except (OSError, NoKernelError):
            continue
    return None


def _kept(folder: Path, key: str, library: bytes) -> ctypes.CDLL | None:
    """The library from the cache, written there under its name at once or not at all."""
    path = folder / f"{key}-{_hash(library)}.so"
    try:
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(library)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        return _load(path)
    except (OSError, NoKernelError):
        return None


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelError(f"what was compiled cannot be loaded: {error}") from error


def _hash(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:32]


def _first_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    faults = [line for line in lines if "error" in line]
    return (faults or lines or ["it says nothing"])[0][:300]
