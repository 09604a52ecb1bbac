"""The engine's kernel: compiled and tried before it is used; and who computes where there is none."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import compiled
from adapterhub.engine import _library
from adapterhub.engine._library import Native

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load():
    """As the first engine of a process would."""
    return _library._loaded.__wrapped__()


@needs_compiler
def test_it_compiles_without_warnings_for_any_processor(tmp_path):
    whole = tmp_path / "whole.c"
    whole.write_text("".join(path.read_text() for path in _library._SOURCES))
    for flags in ((), ("-mavx2", "-mfma"), ("-mavx512f",)) if platform.machine() == "x86_64" else ((),):
        command = [*compiled._compiler(), "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags]
        subprocess.run([*command, str(whole)], check=True)
    assert not isinstance(load(), str)


def test_no_compiler_is_no_reason_to_warn(monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert load() == "no C compiler was found as $CC, cc, gcc or clang"


def test_a_kernel_that_does_not_compile_is_done_without(monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.warns(UserWarning, match="goes on without its compiled kernel: false does not work"):
        assert load().startswith("false does not work")


@needs_compiler
@pytest.mark.parametrize("change", [("low += old_low", "low -= old_low"), ("* gate[u]", "")])
def test_a_kernel_that_is_wrong_is_not_used(monkeypatch, tmp_path, change):
    text = "".join(path.read_text() for path in _library._SOURCES)
    assert change[0] in text
    wrong = tmp_path / "kernel.c"
    wrong.write_text(text.replace(*change))
    monkeypatch.setattr(_library, "_SOURCES", [wrong])
    with pytest.warns(UserWarning, match="failed its self-check"):
        assert load() == "it failed its self-check"


@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_the_environment_switches_it_off(monkeypatch, value):
    monkeypatch.setenv("ADAPTERHUB_KERNEL", value)
    assert Native().functions is None
    assert Native().state == "none, switched off by ADAPTERHUB_KERNEL"


def test_the_sources_are_a_part_of_the_package():
    assert {path.parent for path in _library._SOURCES} == {Path(_library.__file__).parent}
    assert all(path.is_file() for path in _library._SOURCES)
