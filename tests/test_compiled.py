"""C that is compiled on the machine: once, kept, verified before it is loaded; and a clear word where it cannot be."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import threading

import pytest

from adapterhub import compiled as room
from adapterhub.compiled import NoKernelError, opened

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"
)
SOURCE = "int answer(void) { return 41 + 1; }\n"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "small.c"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adapterhub" / "kernels"


@pytest.fixture
def commands(monkeypatch):
    """The commands that were run to compile, not those that only ask the compiler."""
    ran, run = [], subprocess.run

    def noted(command, **options):
        if "-E" not in command:
            ran.append(command)
        return run(command, **options)

    monkeypatch.setattr(room.subprocess, "run", noted)
    return ran


@needs_compiler
def test_it_is_compiled_once_and_kept(source, cache, commands):
    for _ in range(3):
        assert opened(source).answer() == 42
    assert len(commands) == 1
    (kept,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    source.write_text(SOURCE.replace("41", "22"))
    assert opened(source).answer() == 23
    assert len(commands) == 2
    assert kept in cache.iterdir()


@needs_compiler
@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-100], lambda whole: whole.replace(b"\x2a", b"\x2b"), lambda _: b""]
)
def test_a_damaged_library_is_not_loaded(source, cache, commands, monkeypatch, tmp_path, damage):
    opened(source)
    (kept,) = cache.iterdir()
    other = tmp_path / "other" / "adapterhub" / "kernels"  # a process loads each path once, and maps it
    other.mkdir(parents=True, mode=0o700)
    (other / kept.name).write_bytes(damage(kept.read_bytes()))
    assert (other / kept.name).read_bytes() != kept.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert opened(source).answer() == 42
    assert len(commands) == 2
    assert (other / kept.name).read_bytes() == kept.read_bytes()


@needs_compiler
def test_a_cache_that_others_may_write_to_is_not_trusted(source, cache, commands):
    opened(source)
    cache.chmod(0o777)
    assert opened(source).answer() == 42
    assert len(commands) == 2


@needs_compiler
@pytest.mark.parametrize("fault", ["a file", "read-only"])
def test_without_a_cache_it_is_compiled_for_this_process(source, cache, commands, monkeypatch, fault):
    if fault == "a file":
        cache.parent.mkdir(parents=True)
        cache.write_text("in the way")
    else:  # for root nothing is read-only

        def refused(*_, **__):
            raise PermissionError(30, "Read-only file system")

        monkeypatch.setattr(room.tempfile, "mkstemp", refused)
    for count in (1, 2):
        assert opened(source).answer() == 42
        assert len(commands) == count
    assert not cache.is_dir() or not list(cache.iterdir())


@needs_compiler
def test_the_compiler_of_the_environment_is_taken(source, cache, commands, monkeypatch, tmp_path):
    mine = tmp_path / "my cc"
    mine.symlink_to(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
    monkeypatch.setenv("CC", f"'{mine}' -DUNUSED")
    assert opened(source).answer() == 42
    assert commands[0][:2] == [str(mine), "-DUNUSED"]


@needs_compiler
def test_a_source_that_does_not_compile_says_why(source, cache):
    source.write_text("int answer(void) { return nothing; }\n")
    with pytest.raises(NoKernelError, match=r"could not compile it: .*nothing"):
        opened(source)
    assert not list(cache.iterdir())


def test_without_a_compiler(source, cache, monkeypatch):
    monkeypatch.setattr(room.shutil, "which", lambda name: None)
    with pytest.raises(NoKernelError, match="no C compiler was found"):
        opened(source)


def test_a_compiler_that_does_not_run(source, cache, monkeypatch, tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("not a program")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(NoKernelError, match="broken-cc does not work"):
        opened(source)


@needs_compiler
def test_threads_and_processes_may_compile_at_once(source, cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(opened(source).answer())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [42] * 4
    assert all(path.suffix == ".so" for path in cache.iterdir())
